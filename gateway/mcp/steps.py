"""Report a run's steps to its client as they happen: actions, child workflows and waits for people."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, get_args

from mcp_types import (
    LOG_LEVEL_META_KEY,
    EmptyResult,
    LoggingLevel,
    LoggingMessageNotification,
    LoggingMessageNotificationParams,
    SetLevelRequestParams,
)
from pydantic import BaseModel, ValidationError
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client
from temporalio.service import RPCError

from engine.errors import AnswerRequired, AuthorizationRequired
from engine.wire import NOTIFY_WORKFLOW, PROGRESS_MEMO
from gateway.mcp.clients import Context, is_modern, session_state
from gateway.runs.runs import Caller
from gateway.runs.states import Progress

_LEVELS: Final[tuple[LoggingLevel, ...]] = get_args(LoggingLevel)
_LOG_LEVEL: Final = "byline_log_level"
_OWN: Final = "byline."
_LAST_STEPS_WITHIN_SECONDS: Final = 2.0
_MOST_FOLLOWED: Final = 50
_HAIR: Final = 1e-6


class Heard(BaseModel):
    """How far a run's progress has been reported to a client, over all requests of the same call.

    `at` is the time of the last reported step, in seconds since the epoch. `number` is the last reported progress
    number, if any. `counts` says whether that number was a count of steps.
    """

    at: float = 0.0
    number: float | None = None
    counts: bool = False


class Steps:
    """Opens progress reporters, which follow the histories of a run's workflows for clients that want progress."""

    def __init__(self, temporal: Client) -> None:
        self._temporal = temporal

    @asynccontextmanager
    async def told(
        self, context: Context, caller: Caller, run_id: str, heard: Heard
    ) -> AsyncIterator["Telling"]:
        """Report to the client every step after the cursor while the block runs, and move the cursor forward.

        Steps are progress notifications where the request has a progress token. Otherwise they are log messages, if
        the client asked for these: progress that the tool reports at level info, its other steps at level debug.
        """
        telling = Telling(self._temporal, context, caller, heard)
        if telling.wanted:
            telling.begin(run_id)
        try:
            yield telling
        finally:
            telling.end()


class Telling:
    """Reports the steps of one run to the client of one request."""

    def __init__(self, temporal: Client, context: Context, caller: Caller, heard: Heard) -> None:
        self._temporal = temporal
        self._context = context
        self._caller = caller
        self._has_token = bool(context.meta and context.meta.get("progress_token") is not None)
        self._levels = _levels(context)
        self._following: dict[str, asyncio.Task[None]] = {}
        self._heard = heard
        self._since = heard.at

    @property
    def wanted(self) -> bool:
        """Whether the client wants any progress notifications or log messages."""
        return self._has_token or "debug" in self._levels or "info" in self._levels

    def begin(self, workflow_id: str, run_id: str | None = None) -> None:
        """Follow a workflow's history, and its children's as they start; at most 50 workflows in all."""
        if len(self._following) < _MOST_FOLLOWED:
            following = asyncio.create_task(self._follow(workflow_id, run_id))
            self._following[workflow_id] = following

    async def all(self) -> None:
        """Wait until all steps of an ended run are reported, for at most 2 seconds."""
        if self._following:
            await asyncio.wait(self._following.values(), timeout=_LAST_STEPS_WITHIN_SECONDS)

    def end(self) -> None:
        """Stop following the workflows."""
        for following in self._following.values():
            following.cancel()

    async def _follow(self, workflow_id: str, run_id: str | None) -> None:
        # A call must not fail because its progress cannot be read.
        with contextlib.suppress(RPCError):
            handle = self._temporal.get_workflow_handle(workflow_id, run_id=run_id)
            async for event in handle.fetch_history_events(wait_new_event=True):
                await self._see(event)
                if event.HasField("workflow_execution_continued_as_new_event_attributes"):
                    continued = event.workflow_execution_continued_as_new_event_attributes
                    await self._follow(workflow_id, continued.new_execution_run_id)

    async def _see(self, event: HistoryEvent) -> None:
        if event.HasField("child_workflow_execution_started_event_attributes"):
            child = event.child_workflow_execution_started_event_attributes
            if child.workflow_type.name != NOTIFY_WORKFLOW:
                self.begin(child.workflow_execution.workflow_id, child.workflow_execution.run_id)
        at = event.event_time.ToNanoseconds() / 1e9
        if at <= self._since:
            return
        self._heard.at = max(self._heard.at, at)
        if event.HasField("workflow_properties_modified_event_attributes"):
            memo = event.workflow_properties_modified_event_attributes.upserted_memo.fields
            if PROGRESS_MEMO in memo:
                await self._tell("info", await self._progress(memo[PROGRESS_MEMO]))
            return
        message = await self._message(event)
        if message is not None:
            await self._tell("debug", Progress(message=message))

    async def _message(self, event: HistoryEvent) -> str | None:
        match event.event_type:
            case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                name = event.activity_task_scheduled_event_attributes.activity_type.name
            case EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED:
                name = event.start_child_workflow_execution_initiated_event_attributes.workflow_type.name
            case EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED:
                return await self._wait(event)
            case _:
                return None
        return None if name.startswith(_OWN) else name

    async def _wait(self, event: HistoryEvent) -> str | None:
        failure = event.activity_task_failed_event_attributes.failure
        info = failure.application_failure_info
        if info.type == AuthorizationRequired.code and info.details.payloads:
            details = await self._decoded(info.details.payloads[0])
            return f"Waiting for {self._caller.principal.name} to consent on {details['connection']}"
        if info.type == AnswerRequired.code:
            return failure.message
        return None

    async def _progress(self, payload: Payload) -> Progress | None:
        try:
            return Progress.model_validate(await self._decoded(payload))
        except ValidationError:
            return None

    async def _decoded(self, payload: Payload) -> Any:
        return (await self._temporal.data_converter.decode([payload]))[0]

    async def _tell(self, level: LoggingLevel, progress: Progress | None) -> None:
        if progress is None:
            return
        session = self._context.session
        if self._has_token:
            await session.report_progress(self._next(progress.done), progress.of, progress.message)
        elif level in self._levels:
            params = LoggingMessageNotificationParams(level=level, data=progress.message, logger="byline")
            await session.send_notification(
                LoggingMessageNotification(params=params), self._context.request_id
            )

    def _next(self, done: float | None) -> float:
        """Return a progress number that is larger than the last, as MCP requires.

        It is the number that the tool reports, and for a step in between slightly more than the last. Before the tool
        reports any number, steps are counted.
        """
        heard = self._heard
        if heard.number is None:
            heard.number, heard.counts = (1.0, True) if done is None else (done, False)
        elif done is not None and (done > heard.number or heard.counts):
            heard.number, heard.counts = max(done, heard.number + _HAIR), False
        else:
            heard.number += 1.0 if heard.counts else _HAIR
        return heard.number


async def set_log_level(context: Context, params: SetLevelRequestParams) -> EmptyResult:
    """Handle logging/setLevel: set the lowest level of log messages for this session, which gets none before."""
    session_state(context)[_LOG_LEVEL] = params.level
    return EmptyResult()


def _levels(context: Context) -> frozenset[LoggingLevel]:
    """List the log levels that the client asked for: with its request in modern versions, else for its session."""
    state = (context.meta or {}) if is_modern(context) else session_state(context)
    wanted = state.get(LOG_LEVEL_META_KEY if is_modern(context) else _LOG_LEVEL)
    return frozenset(_LEVELS[_LEVELS.index(wanted) :]) if wanted in _LEVELS else frozenset()
