"""Start or resume the run of a request, and follow it while the client waits, asking the client for input."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    CreateMessageResult,
    ElicitCompleteNotification,
    ElicitCompleteNotificationParams,
    ElicitResult,
    InputRequiredResult,
    InputResponseRequestParams,
    ListRootsResult,
)
from pydantic import BaseModel, ValidationError

from engine.runs.runs import Caller, Outcome, PendingWaits, Running, Runs
from engine.services import Services
from engine.tools.registry import OfferedWorkflow
from gateway.mcp.exchange.client_abilities import (
    ClientAbility,
    RequestContext,
    has_client_left,
    is_modern_client,
    list_client_abilities,
)
from gateway.mcp.exchange.elicitation import AcceptedAnswers, ClientInputRequest, ElicitationBuilder
from gateway.mcp.exchange.progress import ProgressReporters
from gateway.mcp.exchange.request_state import RequestState

# Clients end a call after ten rounds of input. Before that, the call ends and its outcome can be collected.
_LAST_ROUND: Final = 8
_RESULT_TYPES: Final[Mapping[ClientAbility, type[BaseModel]]] = {
    "url": ElicitResult,
    "form": ElicitResult,
    "sampling": CreateMessageResult,
    "roots": ListRootsResult,
}


@dataclass(frozen=True, slots=True)
class HoldTime:
    """How long one request is held, in seconds, and whether a modern client may be asked to repeat it after that."""

    seconds: float
    may_ask_again: bool = True


class CallExchange:
    """Takes a call through one request of its client: one round of a modern call, or the whole of a legacy call."""

    def __init__(self, services: Services, runs: Runs, progress_reporters: ProgressReporters) -> None:
        self._runs = runs
        self._progress_reporters = progress_reporters
        self._services = services
        self._elicitation_builder = ElicitationBuilder(services)
        self._round_seconds = services.settings.gateway.answer_within
        self._hold_seconds = services.settings.gateway.hold_within

    def choose_hold_time(self, context: RequestContext) -> HoldTime:
        """Return how long a request of this client is held by default, from the settings."""
        return HoldTime(self._round_seconds if is_modern_client(context) else self._hold_seconds)

    async def enter_run(
        self,
        context: RequestContext,
        request_params: InputResponseRequestParams,
        caller: Caller,
        offer: OfferedWorkflow,
        arguments: Mapping[str, Any],
    ) -> RequestState:
        """Return the state that the client carries, or that of the run that is started or rejoined for its request.

        Raises as the start of a run and `resume_state` do.
        """
        request_state = await self.resume_state(request_params, caller)
        if request_state is not None:
            return request_state
        started_run = await self._runs.start_or_attach(offer.name, arguments, caller)
        if started_run.is_rejoined and not list_client_abilities(context):
            return await self.create_announced_state(started_run.run_id)
        return RequestState(run_id=started_run.run_id)

    async def resume_state(
        self, request_params: InputResponseRequestParams, caller: Caller
    ) -> RequestState | None:
        """Return the state that the client carries, or None; raises RunUnknown for another caller's run."""
        if request_params.request_state is None:
            return None
        request_state = RequestState.model_validate_json(request_params.request_state)
        await self._runs.require_own_run(request_state.run_id, caller)
        return request_state

    async def create_announced_state(self, run_id: str) -> RequestState:
        """Return a state in which all waits of this run are announced.

        A repeated call is then held to give the person time, instead of being answered with the same links at once.
        """
        waiters = await self._services.waiters.list_waiters(run_id)
        return RequestState(
            run_id=run_id, announced_waits={waiter.awaited_id: waiter.awaited_id for waiter in waiters}
        )

    async def follow_run(
        self,
        context: RequestContext,
        caller: Caller,
        request_state: RequestState,
        input_responses: Mapping[str, Any] | None,
        hold_time: HoldTime,
    ) -> Outcome | InputRequiredResult:
        """Return the run's outcome when the request has to be answered, or the input requests for the client."""
        async with self._progress_reporters.report_progress(
            context, caller, request_state.run_id, request_state.progress_cursor
        ) as progress_reporter:
            if is_modern_client(context):
                outcome = await self._follow_modern(
                    context, caller, request_state, dict(input_responses or {}), hold_time
                )
            else:
                outcome = await self._follow_legacy(context, caller, request_state, hold_time)
            if isinstance(outcome, InputRequiredResult):
                outcome.request_state = request_state.to_text()
            elif not isinstance(outcome, PendingWaits | Running):
                await progress_reporter.wait_until_reported()
        return outcome

    async def note_outcome_delivered(self, context: RequestContext, run_id: str) -> None:
        """Note that the client gets the outcome, so that the same request starts a new run from now on.

        If the client of a legacy request has left, nothing is noted, and the next same request gets the outcome.
        """
        if not await has_client_left(context):
            self._runs.mark_outcome_delivered(run_id)

    async def _follow_modern(
        self,
        context: RequestContext,
        caller: Caller,
        request_state: RequestState,
        input_responses: dict[str, Any],
        hold_time: HoldTime,
    ) -> Outcome | InputRequiredResult:
        may_continue = await self._record_answers(
            context, caller, request_state, request_state.announced_waits, input_responses
        )
        while True:
            wait_seconds = hold_time.seconds if may_continue else 0.0
            outcome = await self._runs.wait_for_outcome(
                request_state.run_id,
                timeout_seconds=wait_seconds,
                announced_waits=request_state.announced_waits.values(),
            )
            input_requests = await self._build_input_requests(context, outcome)
            new_requests = {
                request_key: client_request
                for request_key, client_request in input_requests.items()
                if client_request.wait_id not in request_state.announced_waits.values()
            }
            # A client may send answers to input requests that it expects.
            early_waits = {
                request_key: client_request.wait_id
                for request_key, client_request in new_requests.items()
                if request_key in input_responses
            }
            if not early_waits:
                break
            may_continue = (
                await self._record_answers(context, caller, request_state, early_waits, input_responses)
                and may_continue
            )
            input_responses = {
                request_key: input_response
                for request_key, input_response in input_responses.items()
                if request_key not in early_waits
            }
        if not may_continue or request_state.round_number >= _LAST_ROUND:
            return outcome
        if new_requests or (hold_time.may_ask_again and (input_requests or isinstance(outcome, Running))):
            _note_announced_waits(request_state, new_requests, outcome)
            request_state.round_number += 1
            mcp_input_requests = {
                request_key: client_request.input_request
                for request_key, client_request in new_requests.items()
            }
            return InputRequiredResult(input_requests=mcp_input_requests or None, request_state="")
        return outcome

    async def _follow_legacy(
        self, context: RequestContext, caller: Caller, request_state: RequestState, hold_time: HoldTime
    ) -> Outcome:
        """Send requests to the client while the call is held, as in protocols up to 2025-11-25."""
        event_loop = asyncio.get_running_loop()
        deadline, may_continue = event_loop.time() + hold_time.seconds, True
        asking_tasks: dict[asyncio.Task[AcceptedAnswers], str] = {}
        link_wait_ids = set[str]()
        try:
            while True:
                remaining_seconds = max(0.0, deadline - event_loop.time()) if may_continue else 0.0
                outcome = await self._wait_for_outcome_or_answer(
                    request_state, remaining_seconds, asking_tasks
                )
                for answered_task in [asking_task for asking_task in asking_tasks if asking_task.done()]:
                    request_state.announced_waits.pop(asking_tasks.pop(answered_task))
                    request_state.announced_waits |= answered_task.result().announced_waits
                    may_continue = may_continue and answered_task.result().may_continue
                if outcome is None:
                    continue
                await self._complete_elicitations(context, link_wait_ids, outcome)
                input_requests = await self._build_input_requests(context, outcome)
                new_requests = {
                    request_key: client_request
                    for request_key, client_request in input_requests.items()
                    if client_request.wait_id not in request_state.announced_waits.values()
                }
                if remaining_seconds == 0.0 or not (new_requests or asking_tasks):
                    return outcome
                _note_announced_waits(request_state, new_requests, outcome)
                link_wait_ids |= {
                    client_request.wait_id
                    for client_request in new_requests.values()
                    if client_request.ability == "url"
                }
                asking_tasks |= {
                    asyncio.create_task(
                        self._send_input_request(context, caller, request_key, client_request)
                    ): request_key
                    for request_key, client_request in new_requests.items()
                }
        finally:
            for asking_task in asking_tasks:
                asking_task.cancel()

    async def _wait_for_outcome_or_answer(
        self,
        request_state: RequestState,
        wait_seconds: float,
        asking_tasks: Collection[asyncio.Task[AcceptedAnswers]],
    ) -> Outcome | None:
        """Return the run's outcome, or None where the client answered an input request first."""
        outcome_task = asyncio.create_task(
            self._runs.wait_for_outcome(
                request_state.run_id,
                timeout_seconds=wait_seconds,
                announced_waits=list(request_state.announced_waits.values()),
            )
        )
        try:
            await asyncio.wait({outcome_task, *asking_tasks}, return_when=asyncio.FIRST_COMPLETED)
            return outcome_task.result() if outcome_task.done() else None
        finally:
            outcome_task.cancel()

    async def _send_input_request(
        self, context: RequestContext, caller: Caller, request_key: str, client_request: ClientInputRequest
    ) -> AcceptedAnswers:
        announced_waits = {request_key: client_request.wait_id}
        try:
            input_response = await context.session.send_request(
                client_request.input_request,
                _RESULT_TYPES[client_request.ability],
                metadata=ServerMessageMetadata(context.request_id),
            )
        except (MCPError, ValidationError):
            # The client could not ask, or has left. The answer to the call describes what to do instead.
            return AcceptedAnswers(announced_waits, may_continue=False)
        return await self._elicitation_builder.record_answers(
            announced_waits, {request_key: input_response}, caller.principal, context
        )

    async def _complete_elicitations(
        self, context: RequestContext, link_wait_ids: set[str], outcome: Outcome
    ) -> None:
        """Notify a client of URL elicitations that it showed and that are complete."""
        open_wait_ids = set(outcome.ids) if isinstance(outcome, PendingWaits) else set[str]()
        for wait_id in [wait_id for wait_id in link_wait_ids if wait_id not in open_wait_ids]:
            link_wait_ids.discard(wait_id)
            notification_params = ElicitCompleteNotificationParams(elicitation_id=wait_id)
            await context.session.send_notification(
                ElicitCompleteNotification(params=notification_params), context.request_id
            )

    async def _build_input_requests(
        self, context: RequestContext, outcome: Outcome
    ) -> dict[str, ClientInputRequest]:
        return (
            await self._elicitation_builder.build_input_requests(outcome, context)
            if isinstance(outcome, PendingWaits)
            else {}
        )

    async def _record_answers(
        self,
        context: RequestContext,
        caller: Caller,
        request_state: RequestState,
        announced_waits: Mapping[str, str],
        input_responses: Mapping[str, Any],
    ) -> bool:
        """Record the client's answers, and return whether its person wants to continue."""
        accepted_answers = await self._elicitation_builder.record_answers(
            announced_waits, input_responses, caller.principal, context
        )
        request_state.announced_waits = {
            request_key: wait_id
            for request_key, wait_id in request_state.announced_waits.items()
            if request_key not in announced_waits
        } | accepted_answers.announced_waits
        return accepted_answers.may_continue


def _note_announced_waits(
    request_state: RequestState, new_requests: Mapping[str, ClientInputRequest], outcome: Outcome
) -> None:
    """Note all waits of a run as announced: those that the client is asked under their keys, others under their ids."""
    request_state.announced_waits |= {
        request_key: client_request.wait_id for request_key, client_request in new_requests.items()
    }
    if isinstance(outcome, PendingWaits):
        request_state.announced_waits |= {
            wait_id: wait_id
            for wait_id in outcome.ids
            if wait_id not in request_state.announced_waits.values()
        }
