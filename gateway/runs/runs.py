"""Starts runs, attaches callers to runs that they started before, and waits for outcomes, for every protocol alike."""

import asyncio
import contextlib
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from sqlalchemy.exc import IntegrityError
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowFailureError
from temporalio.common import (
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import (
    ApplicationError,
    CancelledError,
    TerminatedError,
    WorkflowAlreadyStartedError,
)
from temporalio.exceptions import (
    TimeoutError as WorkflowTimedOut,
)
from temporalio.service import RPCError, RPCStatusCode

from engine.audit.trail import AuditEvent
from engine.authorization.requests import AuthorizationRequest
from engine.errors import (
    AuthorizationEnded,
    KeyReused,
    NotAllowed,
    QuestionEnded,
    RunUnknown,
    TemporalUnreachable,
)
from engine.identity.model import Actor, Identity, Principal, TriggerKind, call_digest
from engine.identity.runs import Run, UnansweredRun, run_row
from engine.interceptors.client import acting_as
from engine.questions.questions import Question
from engine.registry import Offer, Registry, Tool
from engine.services import Services
from engine.wire import IDENTITY_TYPE, PRINCIPAL_ATTRIBUTE, RUN_ATTRIBUTE, TOOL_ATTRIBUTE, TRIGGER_ATTRIBUTE
from gateway.runs.told import Told
from gateway.runs.wait_watch import WaitWatch

Offered = TypeVar("Offered", bound=Offer)

_PRINCIPAL = SearchAttributeKey.for_keyword(PRINCIPAL_ATTRIBUTE)
_TOOL = SearchAttributeKey.for_keyword(TOOL_ATTRIBUTE)
_TRIGGER = SearchAttributeKey.for_keyword(TRIGGER_ATTRIBUTE)
_RUN = SearchAttributeKey.for_keyword(RUN_ATTRIBUTE)

RUN_CANCELLED: Final = "run_cancelled"
_STILL_TRYING: Final = timedelta(minutes=10)
_ENDED_WAITS = frozenset(
    ended.code for kind in (AuthorizationEnded, QuestionEnded) for ended in kind.__subclasses__()
)


@dataclass(frozen=True, slots=True)
class Finished:
    """The run returned a value."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The run ended without a value, for this reason."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Awaiting:
    """The run waits for its principal to consent to these requests, and for people to answer these questions."""

    requests: tuple[AuthorizationRequest, ...]
    questions: tuple[Question, ...]

    @property
    def ids(self) -> list[str]:
        """The id of each request and question."""
        return [*(request.id for request in self.requests), *(question.id for question in self.questions)]


@dataclass(frozen=True, slots=True)
class Running:
    """The run goes on."""


Outcome = Finished | Failed | Awaiting | Running


@dataclass(frozen=True, slots=True)
class Caller:
    """The principal in whose name a call is made, the actor that makes it, its trigger, and the limits of the token."""

    principal: Principal
    actor: Actor
    trigger: TriggerKind
    tools: frozenset[str] | None = None
    """The tools that the caller's token is limited to, or None for all that the principal may call."""
    in_person: bool = False
    """Whether the principal signed in for this. False for API tokens, back ends, schedules and webhooks."""

    def reaches(self, tool: str) -> bool:
        """Return whether the caller's token covers a tool. The policy is checked separately."""
        return self.tools is None or tool in self.tools

    def require_reach(self, tool: str) -> None:
        """Raise NotAllowed where the caller's token does not cover the tool."""
        if not self.reaches(tool):
            raise NotAllowed(f"This token does not reach {tool}. Make one that does, or sign in.")


@dataclass(frozen=True, slots=True)
class Serving:
    """The run that serves a call. `is_rejoined` is true where an earlier call started it."""

    run_id: str
    rejoined: bool


@dataclass(frozen=True, slots=True)
class _Call:
    offer: Offer
    given: list[Any]
    digest: str
    caller: Caller
    key: str | None
    retry_of: str | None

    def identity(self, run_id: str) -> Identity:
        caller = self.caller
        return Identity.of(
            caller.principal,
            caller.actor,
            caller.trigger,
            root=run_id,
            tool=self.offer.name,
            call=self.digest,
        )


class Runs:
    """Starts runs on Temporal, reads them and waits for their outcomes."""

    def __init__(self, services: Services, temporal: Client, registry: Registry) -> None:
        self._services = services
        self._temporal = temporal
        self._registry = registry
        self._waits = WaitWatch(services.waiters, self._is_under_way)
        self._told = Told(services.runs)

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        caller: Caller,
        *,
        key: str | None = None,
        retry_of: str | None = None,
    ) -> Serving:
        """Return the run that serves this call: one of the same call whose outcome was not delivered yet, or a new one.

        With an idempotency key, the same call is the one with the same key. Raises ToolUnknown, NotAllowed,
        ArgumentsInvalid, KeyReused or TemporalUnreachable.
        """
        offer = self._registry.offer(name)
        await self.allow(name, caller)
        call = _Call(offer, offer.arguments(arguments), call_digest(name, arguments), caller, key, retry_of)
        if key is not None:
            return await self._once(call)
        earlier = None if retry_of else await self._unanswered(call)
        if earlier is not None and await self._is_worth_attaching(earlier):
            return Serving(earlier.id, rejoined=True)
        return Serving(await self._begin(call), rejoined=False)

    async def owned(self, run_id: str, caller: Caller) -> Run:
        """Return a run. Raises RunUnknown where it is not the caller's own or their token does not cover its tool."""
        run = await self._services.runs.get(run_id)
        if run is None or run.principal_id != caller.principal.id or not caller.reaches(run.tool):
            raise RunUnknown(f"You have no run '{run_id}'.")
        return run

    async def outcome(self, run_id: str, *, within: float, told: Collection[str] = ()) -> Outcome:
        """Wait at most `timeout_seconds` until a run ends or waits for something, and return which.

        Waits in `announced_waits`, which the caller knows already, do not end the waiting early. Returns Running where
        the run goes on and waits for nothing. Raises TemporalUnreachable.
        """
        result = asyncio.create_task(self.result(run_id))
        try:
            async with self._waits.watch(run_id, told) as waits:
                asked = asyncio.create_task(waits.wait())
                try:
                    await asyncio.wait({result, asked}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    asked.cancel()
            if result.done():
                return result.result()
        finally:
            result.cancel()
        awaiting = await self.awaiting(run_id)
        return awaiting if awaiting.ids else Running()

    async def awaiting(self, run_id: str) -> Awaiting:
        """Return what a run and all its descendants wait for now, which may be nothing."""
        requests = await self._services.authorization.awaited_by(run_id)
        questions = await self._services.questions.awaited_by(run_id)
        return Awaiting(tuple(requests), tuple(questions))

    def answered(self, run_id: str) -> None:
        """Record that the outcome is delivered to the caller, so that the same call starts a new run from now on."""
        self._told.note(run_id)

    async def close(self) -> None:
        """Return once every delivered outcome is recorded."""
        await self._told.close()

    async def allow(self, tool: str, caller: Caller) -> None:
        """Raise NotAllowed unless policy and token let the caller call the tool."""
        caller.require_reach(tool)
        await self._services.policy.require(caller.principal, tool)

    async def allowed(self, caller: Caller) -> list[Tool]:
        """Return every tool that policy and token let the caller call, ordered by name."""
        return await self.offered(caller, self._registry.tools)

    async def offered(self, caller: Caller, offers: Mapping[str, Offered]) -> list[Offered]:
        """Return those of the offers that policy and token let the caller ask for, ordered by name."""
        reached = sorted(name for name in offers if caller.reaches(name))
        return [offers[name] for name in await self._services.policy.allowed(caller.principal, reached)]

    async def described(
        self, workflow_id: str, temporal_run_id: str | None = None
    ) -> WorkflowExecutionDescription | None:
        """Return Temporal's description of a workflow, or None where it keeps none with this id.

        Raises TemporalUnreachable.
        """
        try:
            return await self._temporal.get_workflow_handle(workflow_id, run_id=temporal_run_id).describe()
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return None
            raise TemporalUnreachable(
                "The workflow engine does not answer. Runs go on as soon as it does; ask again in a moment."
            ) from error

    async def _is_under_way(self, run_id: str) -> bool:
        """Return whether the root workflow does anything but wait, or has children that may."""
        try:
            description = await self.described(run_id)
        except TemporalUnreachable:
            return True
        if description is None:
            return False
        raw = description.raw_description
        return bool(raw.pending_activities or raw.pending_children or raw.HasField("pending_workflow_task"))

    async def _once(self, call: "_Call") -> Serving:
        """Return the run of an idempotency key.

        A new key registers and starts a run. A run that an earlier call registered and could not start is started now.
        Raises KeyReused or TemporalUnreachable.
        """
        assert call.key is not None  # noqa: S101 -- only calls with a key come here
        known = await self._services.runs.by_key(call.caller.principal.id, call.key)
        if known is None:
            try:
                return Serving(await self._begin(call), rejoined=False)
            except IntegrityError:
                # The same call arrived twice at once, and the other one was registered first.
                known = await self._services.runs.by_key(call.caller.principal.id, call.key)
                if known is None:
                    raise
        if known.call != call.digest:
            raise KeyReused(
                "This idempotency key belongs to another call. Use a new key for a call with other arguments."
            )
        if not known.begun:
            await self._start(call, call.identity(known.id))
        return Serving(known.id, rejoined=True)

    async def _begin(self, call: "_Call") -> str:
        identity = call.identity(f"{call.offer.name}-{secrets.token_urlsafe(16)}")
        row = run_row(identity, idempotency_key=call.key, retry_of=call.retry_of)
        await self._services.trail.append(
            AuditEvent(kind="tool.called", identity=identity, run_id=identity.root), row
        )
        await self._start(call, identity)
        return identity.root

    async def _start(self, call: "_Call", identity: Identity) -> None:
        token = await self._services.keys.sign(identity.claims(), IDENTITY_TYPE)
        told = await self._services.notifier.end_listeners(identity.principal_id, identity.trigger)
        try:
            # When a keyed call arrives twice at once, either request may be first to start the run of the key.
            with acting_as(token, notify=told), contextlib.suppress(WorkflowAlreadyStartedError):
                await self._temporal.start_workflow(
                    call.offer.name,
                    args=call.given,
                    id=identity.root,
                    task_queue=self._services.settings.temporal.task_queue,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    search_attributes=_search_attributes(identity),
                    static_summary=f"{call.offer.declaration.title}, for {identity.name}",
                )
        except RPCError as error:
            if error.status not in {RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED}:
                raise
            raise TemporalUnreachable(
                "The workflow engine does not answer, so the tool was not started. Try again in a moment."
            ) from error

    async def _unanswered(self, call: "_Call") -> UnansweredRun | None:
        """Return the run that the same call started and whose outcome was not delivered yet, or None."""
        caller = call.caller
        earlier = await self._services.runs.unanswered(caller.principal.id, call.digest, caller.trigger)
        return None if earlier is None or self._told.has(earlier.id) else earlier

    async def _is_worth_attaching(self, earlier: UnansweredRun) -> bool:
        """Return whether the caller is served by this earlier run, and needs no new one.

        False where its wait ended without a grant or an answer, where Temporal no longer keeps it, or where it never
        waited and closed so long ago that no caller can still be retrying for its outcome.
        """
        description = await self.described(earlier.id)
        if description is None:
            return False
        if description.close_time is None:
            return True
        if not earlier.has_waited and description.close_time < datetime.now(UTC) - _STILL_TRYING:
            return False
        outcome = await self.result(earlier.id)
        return not (isinstance(outcome, Failed) and outcome.code in _ENDED_WAITS)

    async def result(self, run_id: str) -> Finished | Failed:
        """Wait until a run ends, and return how it ended. Raises TemporalUnreachable."""
        try:
            return Finished(await self._temporal.get_workflow_handle(run_id).result())
        except WorkflowFailureError as error:
            return _failed(error)
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return Failed(RunUnknown.code, f"Run '{run_id}' is not kept any more.")
            raise TemporalUnreachable(
                "The workflow engine does not answer; the run goes on. Ask for its outcome again in a moment."
            ) from error


def _search_attributes(identity: Identity) -> TypedSearchAttributes:
    return TypedSearchAttributes(
        [
            SearchAttributePair(_PRINCIPAL, identity.name),
            SearchAttributePair(_TOOL, identity.tool),
            SearchAttributePair(_TRIGGER, identity.trigger),
            SearchAttributePair(_RUN, identity.root),
        ]
    )


def _failed(error: WorkflowFailureError) -> Failed:
    """Convert the outermost cause that says what happened, with the message of whoever raised it."""
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case ApplicationError():
                return Failed(cause.type or "run_failed", cause.message)
            case CancelledError():
                return Failed(RUN_CANCELLED, "The run was cancelled.")
            case TerminatedError():
                return Failed("run_terminated", "The run was terminated by an operator.")
            case WorkflowTimedOut():
                return Failed("run_timed_out", "A step of the run did not end in time.")
            case _:
                cause = cause.__cause__
    return Failed("run_failed", "The run failed.")
