"""Report a run's steps to its client as they happen: actions, child workflows and waits for people."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from mcp_types import LoggingLevel, LoggingMessageNotification, LoggingMessageNotificationParams
from pydantic import ValidationError
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client
from temporalio.service import RPCError

from engine.errors import AnswerRequired, AuthorizationRequired
from engine.identity.model import Principal
from engine.runs.state import Progress
from engine.wire import NOTIFY_WORKFLOW, PROGRESS_MEMO
from gateway.mcp.exchange.log_levels import find_log_levels
from gateway.mcp.exchange.progress_cursor import ProgressCursor
from gateway.mcp.mcp_request import RequestContext

_INTERNAL_NAME_PREFIX: Final = "byline."
_LAST_STEPS_TIMEOUT_SECONDS: Final = 2.0
_MAX_FOLLOWED_WORKFLOWS: Final = 50


@asynccontextmanager
async def report_progress(
    temporal_client: Client,
    context: RequestContext,
    principal: Principal,
    run_id: str,
    progress_cursor: ProgressCursor,
) -> AsyncIterator["ProgressReporter"]:
    """Report to the client every step after the cursor while the block runs, and move the cursor forward.

    Steps are progress notifications where the request has a progress token. Otherwise they are log messages, if
    the client asked for these: progress that the tool reports at level info, its other steps at level debug.
    """
    progress_reporter = ProgressReporter(temporal_client, context, principal, progress_cursor)
    if progress_reporter.is_wanted:
        progress_reporter.follow_workflow(run_id)
    try:
        yield progress_reporter
    finally:
        progress_reporter.stop_following()


class ProgressReporter:
    """Reports the steps of one run to the client of one request."""

    def __init__(
        self,
        temporal_client: Client,
        context: RequestContext,
        principal: Principal,
        progress_cursor: ProgressCursor,
    ) -> None:
        self._temporal_client = temporal_client
        self._context = context
        self._principal = principal
        self._has_progress_token = bool(context.meta and context.meta.get("progress_token") is not None)
        self._log_levels = find_log_levels(context)
        self._following_tasks: dict[str, asyncio.Task[None]] = {}
        self._progress_cursor = progress_cursor
        self._since_epoch_seconds = progress_cursor.last_step_epoch_seconds

    @property
    def is_wanted(self) -> bool:
        """Whether the client wants any progress notifications or log messages."""
        return self._has_progress_token or "debug" in self._log_levels or "info" in self._log_levels

    def follow_workflow(self, workflow_id: str, run_id: str | None = None) -> None:
        """Follow a workflow's history, and its children's as they start; at most 50 workflows in all."""
        if len(self._following_tasks) < _MAX_FOLLOWED_WORKFLOWS:
            following_task = asyncio.create_task(self._follow_history(workflow_id, run_id))
            self._following_tasks[workflow_id] = following_task

    async def wait_until_reported(self) -> None:
        """Wait until all steps of an ended run are reported, for at most 2 seconds."""
        if self._following_tasks:
            await asyncio.wait(self._following_tasks.values(), timeout=_LAST_STEPS_TIMEOUT_SECONDS)

    def stop_following(self) -> None:
        """Stop following the workflows."""
        for following_task in self._following_tasks.values():
            following_task.cancel()

    async def _follow_history(self, workflow_id: str, run_id: str | None) -> None:
        # A call must not fail because its progress cannot be read.
        with contextlib.suppress(RPCError):
            workflow_handle = self._temporal_client.get_workflow_handle(workflow_id, run_id=run_id)
            async for history_event in workflow_handle.fetch_history_events(wait_new_event=True):
                await self._report_event(history_event)
                if history_event.HasField("workflow_execution_continued_as_new_event_attributes"):
                    continued_as_new = history_event.workflow_execution_continued_as_new_event_attributes
                    await self._follow_history(workflow_id, continued_as_new.new_execution_run_id)

    async def _report_event(self, history_event: HistoryEvent) -> None:
        if history_event.HasField("child_workflow_execution_started_event_attributes"):
            child_started = history_event.child_workflow_execution_started_event_attributes
            if child_started.workflow_type.name != NOTIFY_WORKFLOW:
                self.follow_workflow(
                    child_started.workflow_execution.workflow_id, child_started.workflow_execution.run_id
                )
        event_epoch_seconds = history_event.event_time.ToNanoseconds() / 1e9
        if event_epoch_seconds <= self._since_epoch_seconds:
            return
        self._progress_cursor.last_step_epoch_seconds = max(
            self._progress_cursor.last_step_epoch_seconds, event_epoch_seconds
        )
        if history_event.HasField("workflow_properties_modified_event_attributes"):
            memo_fields = history_event.workflow_properties_modified_event_attributes.upserted_memo.fields
            if PROGRESS_MEMO in memo_fields:
                await self._send_progress("info", await self._decode_progress(memo_fields[PROGRESS_MEMO]))
            return
        message = await self._describe_event(history_event)
        if message is not None:
            await self._send_progress("debug", Progress(message=message))

    async def _describe_event(self, history_event: HistoryEvent) -> str | None:
        match history_event.event_type:
            case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                type_name = history_event.activity_task_scheduled_event_attributes.activity_type.name
            case EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED:
                type_name = (
                    history_event.start_child_workflow_execution_initiated_event_attributes.workflow_type.name
                )
            case EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED:
                return await self._describe_wait(history_event)
            case _:
                return None
        return None if type_name.startswith(_INTERNAL_NAME_PREFIX) else type_name

    async def _describe_wait(self, history_event: HistoryEvent) -> str | None:
        failure = history_event.activity_task_failed_event_attributes.failure
        failure_info = failure.application_failure_info
        if failure_info.type == AuthorizationRequired.code and failure_info.details.payloads:
            failure_details = await self._decode_payload(failure_info.details.payloads[0])
            return f"Waiting for {self._principal.name} to consent on {failure_details['connection']}"
        if failure_info.type == AnswerRequired.code:
            return failure.message
        return None

    async def _decode_progress(self, payload: Payload) -> Progress | None:
        try:
            return Progress.model_validate(await self._decode_payload(payload))
        except ValidationError:
            return None

    async def _decode_payload(self, payload: Payload) -> Any:
        return (await self._temporal_client.data_converter.decode([payload]))[0]

    async def _send_progress(self, log_level: LoggingLevel, progress: Progress | None) -> None:
        if progress is None:
            return
        mcp_session = self._context.session
        if self._has_progress_token:
            await mcp_session.report_progress(
                self._progress_cursor.advance_number(progress.done), progress.of, progress.message
            )
        elif log_level in self._log_levels:
            notification_params = LoggingMessageNotificationParams(
                level=log_level, data=progress.message, logger="byline"
            )
            await mcp_session.send_notification(
                LoggingMessageNotification(params=notification_params), self._context.request_id
            )
