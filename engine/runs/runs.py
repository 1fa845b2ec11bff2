"""Starts runs, attaches callers to runs that they started before, and waits for outcomes, for every protocol alike."""

import asyncio
import contextlib
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from sqlalchemy.exc import IntegrityError
from temporalio.client import Client, WorkflowExecutionDescription, WorkflowFailureError
from temporalio.common import (
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
from engine.identity.model import Actor, Identity, Principal, TriggerKind, digest_call
from engine.interceptors.client import carry_identity
from engine.interceptors.search_attributes import list_search_attributes
from engine.questions.questions import Question
from engine.runs.delivered_outcomes import DeliveredOutcomes
from engine.runs.records import Run, UnansweredRun, build_run_row
from engine.runs.wait_watch import WaitWatch
from engine.services import Services
from engine.tools.registry import CompositeTool, OfferedWorkflow, Registry
from engine.wire import IDENTITY_TYPE

OfferType = TypeVar("OfferType", bound=OfferedWorkflow)

RUN_CANCELLED: Final = "run_cancelled"
_RETRY_WINDOW: Final = timedelta(minutes=10)
_ENDED_WAIT_CODES = frozenset(
    ended_class.code
    for error_class in (AuthorizationEnded, QuestionEnded)
    for ended_class in error_class.__subclasses__()
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
class PendingWaits:
    """The run waits for its principal to consent to these requests, and for people to answer these questions."""

    requests: tuple[AuthorizationRequest, ...]
    questions: tuple[Question, ...]

    @property
    def ids(self) -> list[str]:
        """The id of each request and question."""
        return [
            *(authorization_request.id for authorization_request in self.requests),
            *(question.id for question in self.questions),
        ]


@dataclass(frozen=True, slots=True)
class Running:
    """The run goes on."""


Outcome = Finished | Failed | PendingWaits | Running


@dataclass(frozen=True, slots=True)
class Caller:
    """The principal in whose name a call is made, the actor that makes it, its trigger, and the limits of the token."""

    principal: Principal
    actor: Actor
    trigger: TriggerKind
    tool_names: frozenset[str] | None = None
    """The tools that the caller's token is limited to, or None for all that the principal may call."""
    is_in_person: bool = False
    """Whether the principal signed in for this. False for API tokens, back ends, schedules and webhooks."""

    def covers_tool(self, tool_name: str) -> bool:
        """Return whether the caller's token covers a tool. The policy is checked separately."""
        return self.tool_names is None or tool_name in self.tool_names

    def select_covered(self, offer_names: Iterable[str]) -> list[str]:
        """Return those of the offers that the caller's token covers, sorted by name."""
        return sorted(offer_name for offer_name in offer_names if self.covers_tool(offer_name))

    def require_tool(self, tool_name: str) -> None:
        """Raise NotAllowed where the caller's token does not cover the tool."""
        if not self.covers_tool(tool_name):
            raise NotAllowed(f"This token does not reach {tool_name}. Make one that does, or sign in.")


@dataclass(frozen=True, slots=True)
class StartedRun:
    """The run that serves a call. `is_rejoined` is true where an earlier call started it."""

    run_id: str
    is_rejoined: bool


@dataclass(frozen=True, slots=True)
class _OfferCall:
    offer: OfferedWorkflow
    workflow_arguments: list[Any]
    argument_digest: str
    caller: Caller
    idempotency_key: str | None
    retry_of: str | None

    def build_identity(self, run_id: str) -> Identity:
        caller = self.caller
        return Identity.for_run(
            caller.principal,
            caller.actor,
            caller.trigger,
            run_id=run_id,
            tool_name=self.offer.name,
            call_digest=self.argument_digest,
        )


class Runs:
    """Starts runs on Temporal, reads them and waits for their outcomes."""

    def __init__(self, services: Services, temporal_client: Client, registry: Registry) -> None:
        self._services = services
        self._temporal_client = temporal_client
        self._registry = registry
        self._wait_watch = WaitWatch(services.waiters, self._is_under_way)
        self._delivered_outcomes = DeliveredOutcomes(services.run_records)

    async def start_or_attach(
        self,
        offer_name: str,
        arguments: Mapping[str, Any],
        caller: Caller,
        *,
        idempotency_key: str | None = None,
        retry_of: str | None = None,
    ) -> StartedRun:
        """Return the run that serves this call: one of the same call whose outcome was not delivered yet, or a new one.

        With an idempotency key, the same call is the one with the same key. Raises ToolUnknown, NotAllowed,
        ArgumentsInvalid, KeyReused or TemporalUnreachable.
        """
        offer = self._registry.find_offer(offer_name)
        await self.require_allowed(offer_name, caller)
        offer_call = _OfferCall(
            offer,
            offer.validate_arguments(arguments),
            digest_call(offer_name, arguments),
            caller,
            idempotency_key,
            retry_of,
        )
        if idempotency_key is not None:
            return await self._serve_keyed_call(offer_call)
        earlier_run = None if retry_of else await self._find_undelivered_run(offer_call)
        if earlier_run is not None and await self._is_worth_attaching(earlier_run):
            return StartedRun(earlier_run.id, is_rejoined=True)
        return StartedRun(await self._register_and_start(offer_call), is_rejoined=False)

    async def require_own_run(self, run_id: str, caller: Caller) -> Run:
        """Return a run. Raises RunUnknown where it is not the caller's own or their token does not cover its tool."""
        run = await self._services.run_records.find_run(run_id)
        if run is None or run.principal_id != caller.principal.id or not caller.covers_tool(run.tool_name):
            raise RunUnknown(f"You have no run '{run_id}'.")
        return run

    async def wait_for_outcome(
        self, run_id: str, *, timeout_seconds: float, announced_waits: Collection[str] = ()
    ) -> Outcome:
        """Wait at most `timeout_seconds` until a run ends or waits for something, and return which.

        Waits in `announced_waits`, which the caller knows already, do not end the waiting early. Returns Running where
        the run goes on and waits for nothing. Raises TemporalUnreachable.
        """
        result_task = asyncio.create_task(self.wait_for_result(run_id))
        try:
            with self._wait_watch.watch_run(run_id, announced_waits) as new_wait_event:
                new_wait_task = asyncio.create_task(new_wait_event.wait())
                try:
                    await asyncio.wait(
                        {result_task, new_wait_task},
                        timeout=timeout_seconds,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    new_wait_task.cancel()
            if result_task.done():
                return result_task.result()
        finally:
            result_task.cancel()
        pending_waits = await self.read_pending_waits(run_id)
        return pending_waits if pending_waits.ids else Running()

    async def read_pending_waits(self, run_id: str) -> PendingWaits:
        """Return what a run and all its descendants wait for now, which may be nothing."""
        authorization_requests = await self._services.authorization_requests.list_awaited_requests(run_id)
        questions = await self._services.questions.list_awaited_questions(run_id)
        return PendingWaits(tuple(authorization_requests), tuple(questions))

    def mark_outcome_delivered(self, run_id: str) -> None:
        """Record that the outcome is delivered to the caller, so that the same call starts a new run from now on."""
        self._delivered_outcomes.mark_delivered(run_id)

    async def close(self) -> None:
        """Return once every delivered outcome is recorded."""
        await self._delivered_outcomes.close()

    async def require_allowed(self, tool_name: str, caller: Caller) -> None:
        """Raise NotAllowed unless policy and token let the caller call the tool."""
        caller.require_tool(tool_name)
        await self._services.policy.require_permission(caller.principal, tool_name)

    async def list_allowed_tools(self, caller: Caller) -> list[CompositeTool]:
        """Return every tool that policy and token let the caller call, ordered by name."""
        return await self.list_allowed_offers(caller, self._registry.tools)

    async def list_allowed_offers(self, caller: Caller, offers: Mapping[str, OfferType]) -> list[OfferType]:
        """Return those of the offers that policy and token let the caller ask for, ordered by name."""
        allowed_names = await self._services.policy.filter_allowed_tools(
            caller.principal, caller.select_covered(offers)
        )
        return [offers[offer_name] for offer_name in allowed_names]

    async def describe_workflow(
        self, workflow_id: str, temporal_run_id: str | None = None
    ) -> WorkflowExecutionDescription | None:
        """Return Temporal's description of a workflow, or None where it keeps none with this id.

        Raises TemporalUnreachable.
        """
        try:
            return await self._temporal_client.get_workflow_handle(
                workflow_id, run_id=temporal_run_id
            ).describe()
        except RPCError as rpc_error:
            if rpc_error.status == RPCStatusCode.NOT_FOUND:
                return None
            raise TemporalUnreachable(
                "The workflow engine does not answer. Runs go on as soon as it does; ask again in a moment."
            ) from rpc_error

    async def _is_under_way(self, run_id: str) -> bool:
        """Return whether the root workflow does anything but wait, or has children that may."""
        try:
            description = await self.describe_workflow(run_id)
        except TemporalUnreachable:
            return True
        if description is None:
            return False
        raw_description = description.raw_description
        return bool(
            raw_description.pending_activities
            or raw_description.pending_children
            or raw_description.HasField("pending_workflow_task")
        )

    async def _serve_keyed_call(self, offer_call: "_OfferCall") -> StartedRun:
        """Return the run of an idempotency key.

        A new key registers and starts a run. A run that an earlier call registered and could not start is started now.
        Raises KeyReused or TemporalUnreachable.
        """
        assert offer_call.idempotency_key is not None  # noqa: S101 -- only calls with a key come here
        keyed_run = await self._services.run_records.find_by_idempotency_key(
            offer_call.caller.principal.id, offer_call.idempotency_key
        )
        if keyed_run is None:
            try:
                return StartedRun(await self._register_and_start(offer_call), is_rejoined=False)
            except IntegrityError:
                # The same call arrived twice at once, and the other one was registered first.
                keyed_run = await self._services.run_records.find_by_idempotency_key(
                    offer_call.caller.principal.id, offer_call.idempotency_key
                )
                if keyed_run is None:
                    raise
        if keyed_run.call_digest != offer_call.argument_digest:
            raise KeyReused(
                "This idempotency key belongs to another call. Use a new key for a call with other arguments."
            )
        if not keyed_run.has_begun:
            await self._start_workflow(offer_call, offer_call.build_identity(keyed_run.id))
        return StartedRun(keyed_run.id, is_rejoined=True)

    async def _register_and_start(self, offer_call: "_OfferCall") -> str:
        identity = offer_call.build_identity(f"{offer_call.offer.name}-{secrets.token_urlsafe(16)}")
        new_run_row = build_run_row(
            identity, idempotency_key=offer_call.idempotency_key, retry_of=offer_call.retry_of
        )
        await self._services.trail.append_event(
            AuditEvent(kind="tool.called", identity=identity, run_id=identity.run_id), new_run_row
        )
        await self._start_workflow(offer_call, identity)
        return identity.run_id

    async def _start_workflow(self, offer_call: "_OfferCall", identity: Identity) -> None:
        identity_token = await self._services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
        notify_channels = await self._services.notifier.find_end_listeners(
            identity.principal_id, identity.trigger
        )
        try:
            # When a keyed call arrives twice at once, either request may be first to start the run of the key.
            with (
                carry_identity(identity_token, notify_channels=notify_channels),
                contextlib.suppress(WorkflowAlreadyStartedError),
            ):
                await self._temporal_client.start_workflow(
                    offer_call.offer.name,
                    args=offer_call.workflow_arguments,
                    id=identity.run_id,
                    task_queue=self._services.settings.temporal.task_queue,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    search_attributes=TypedSearchAttributes(list_search_attributes(identity)),
                    static_summary=f"{offer_call.offer.declaration.title}, for {identity.name}",
                )
        except RPCError as rpc_error:
            if rpc_error.status not in {RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED}:
                raise
            raise TemporalUnreachable(
                "The workflow engine does not answer, so the tool was not started. Try again in a moment."
            ) from rpc_error

    async def _find_undelivered_run(self, offer_call: "_OfferCall") -> UnansweredRun | None:
        """Return the run that the same call started and whose outcome was not delivered yet, or None."""
        caller = offer_call.caller
        earlier_run = await self._services.run_records.find_unanswered_run(
            caller.principal.id, offer_call.argument_digest, caller.trigger
        )
        return (
            None
            if earlier_run is None or self._delivered_outcomes.has_delivered(earlier_run.id)
            else earlier_run
        )

    async def _is_worth_attaching(self, earlier_run: UnansweredRun) -> bool:
        """Return whether the caller is served by this earlier run, and needs no new one.

        False where its wait ended without a grant or an answer, where Temporal no longer keeps it, or where it never
        waited and closed so long ago that no caller can still be retrying for its outcome.
        """
        description = await self.describe_workflow(earlier_run.id)
        if description is None:
            return False
        if description.close_time is None:
            return True
        if not earlier_run.has_waited and description.close_time < datetime.now(UTC) - _RETRY_WINDOW:
            return False
        outcome = await self.wait_for_result(earlier_run.id)
        return not (isinstance(outcome, Failed) and outcome.code in _ENDED_WAIT_CODES)

    async def wait_for_result(self, run_id: str) -> Finished | Failed:
        """Wait until a run ends, and return how it ended. Raises TemporalUnreachable."""
        try:
            return Finished(await self._temporal_client.get_workflow_handle(run_id).result())
        except WorkflowFailureError as error:
            return _to_failed_outcome(error)
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return Failed(RunUnknown.code, f"Run '{run_id}' is not kept any more.")
            raise TemporalUnreachable(
                "The workflow engine does not answer; the run goes on. Ask for its outcome again in a moment."
            ) from error


def _to_failed_outcome(workflow_error: WorkflowFailureError) -> Failed:
    """Convert the outermost cause that says what happened, with the message of whoever raised it."""
    failure_cause: BaseException | None = workflow_error
    while failure_cause is not None:
        match failure_cause:
            case ApplicationError():
                return Failed(failure_cause.type or "run_failed", failure_cause.message)
            case CancelledError():
                return Failed(RUN_CANCELLED, "The run was cancelled.")
            case TerminatedError():
                return Failed("run_terminated", "The run was terminated by an operator.")
            case WorkflowTimedOut():
                return Failed("run_timed_out", "A step of the run did not end in time.")
            case _:
                failure_cause = failure_cause.__cause__
    return Failed("run_failed", "The run failed.")
