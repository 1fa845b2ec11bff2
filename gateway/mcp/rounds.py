"""Start or resume the run of a request, and follow it while the client waits, asking the client for input."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
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
from pydantic import BaseModel, Field, ValidationError

from engine.registry import Offer
from engine.services import Services
from engine.settings import LONGEST_WAIT
from gateway.mcp.asking import Asked, Asking, Taken
from gateway.mcp.clients import Ability, Context, abilities, has_left, is_modern
from gateway.mcp.steps import Heard, Steps
from gateway.runs.runs import Awaiting, Caller, Outcome, Running, Runs

# Clients end a call after ten rounds of input. Before that, the call ends and its outcome can be collected.
_LAST_ROUND: Final = 8
_ANSWERS: Final[Mapping[Ability, type[BaseModel]]] = {
    "url": ElicitResult,
    "form": ElicitResult,
    "sampling": CreateMessageResult,
    "roots": ListRootsResult,
}


class RequestState(BaseModel):
    """The request state that a client carries between the rounds of one call, sealed and bound to its principal.

    `told` holds the announced waits: the id of each authorization request and question that the client knows of, by
    the key of its input request. `heard` is how far its progress has been reported.
    """

    run: str
    told: dict[str, str] = {}
    round: int = 0
    heard: Heard = Field(default_factory=Heard)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long one request is held, in seconds, and whether a modern client may be asked to repeat it after that."""

    seconds: float
    asks_again: bool = True


class Rounds:
    """Takes a call through one request of its client: one round of a modern call, or the whole of a legacy call."""

    def __init__(self, services: Services, runs: Runs, steps: Steps) -> None:
        self._runs = runs
        self._steps = steps
        self._services = services
        self._asking = Asking(services)
        self._round = services.settings.gateway.answer_within
        self._hold = services.settings.gateway.hold_within

    def patience(self, context: Context) -> Patience:
        """Return how long a request of this client is held by default, from the settings."""
        return Patience(self._round if is_modern(context) else self._hold)

    async def entered(
        self,
        context: Context,
        params: InputResponseRequestParams,
        caller: Caller,
        offer: Offer,
        arguments: Mapping[str, Any],
    ) -> RequestState:
        """Return the state that the client carries, or that of the run that is started or rejoined for its request.

        Raises as the start of a run and `resume_state` do.
        """
        state = await self.resumed(params, caller)
        if state is not None:
            return state
        serving = await self._runs.call(offer.name, arguments, caller)
        if serving.rejoined and not abilities(context):
            return await self.knowing(serving.run_id)
        return RequestState(run=serving.run_id)

    async def resumed(self, params: InputResponseRequestParams, caller: Caller) -> RequestState | None:
        """Return the state that the client carries, or None; raises RunUnknown for another caller's run."""
        if params.request_state is None:
            return None
        state = RequestState.model_validate_json(params.request_state)
        await self._runs.owned(state.run, caller)
        return state

    async def knowing(self, run_id: str) -> RequestState:
        """Return a state in which all waits of this run are announced.

        A repeated call is then held to give the person time, instead of being answered with the same links at once.
        """
        waiting = await self._services.waiters.waiting(run_id)
        return RequestState(run=run_id, told={waiter.awaits: waiter.awaits for waiter in waiting})

    async def follow(
        self,
        context: Context,
        caller: Caller,
        state: RequestState,
        responses: Mapping[str, Any] | None,
        patience: Patience,
    ) -> Outcome | InputRequiredResult:
        """Return the run's outcome when the request has to be answered, or the input requests for the client."""
        async with self._steps.told(context, caller, state.run, state.heard) as telling:
            if is_modern(context):
                outcome = await self._modern(context, caller, state, dict(responses or {}), patience)
            else:
                outcome = await self._legacy(context, caller, state, patience)
            if isinstance(outcome, InputRequiredResult):
                outcome.request_state = state.model_dump_json()
            elif not isinstance(outcome, Awaiting | Running):
                await telling.all()
        return outcome

    async def end(self, context: Context, run_id: str) -> None:
        """Note that the client gets the outcome, so that the same request starts a new run from now on.

        If the client of a legacy request has left, nothing is noted, and the next same request gets the outcome.
        """
        if not await has_left(context):
            self._runs.answered(run_id)

    async def _modern(
        self,
        context: Context,
        caller: Caller,
        state: RequestState,
        responses: dict[str, Any],
        patience: Patience,
    ) -> Outcome | InputRequiredResult:
        willing = await self._take(context, caller, state, state.told, responses)
        while True:
            within = patience.seconds if willing else 0.0
            outcome = await self._runs.outcome(state.run, within=within, told=state.told.values())
            asked = await self._asked(context, outcome)
            new = {key: each for key, each in asked.items() if each.id not in state.told.values()}
            # A client may send answers to input requests that it expects.
            early = {key: each.id for key, each in new.items() if key in responses}
            if not early:
                break
            willing = await self._take(context, caller, state, early, responses) and willing
            responses = {key: response for key, response in responses.items() if key not in early}
        if not willing or state.round >= _LAST_ROUND:
            return outcome
        if new or (patience.asks_again and (asked or isinstance(outcome, Running))):
            _note(state, new, outcome)
            state.round += 1
            requests = {key: each.request for key, each in new.items()}
            return InputRequiredResult(input_requests=requests or None, request_state="")
        return outcome

    async def _legacy(
        self, context: Context, caller: Caller, state: RequestState, patience: Patience
    ) -> Outcome:
        """Send requests to the client while the call is held, as in protocols up to 2025-11-25."""
        loop = asyncio.get_running_loop()
        deadline, willing = loop.time() + patience.seconds, True
        asking: dict[asyncio.Task[Taken], str] = {}
        links = set[str]()
        try:
            while True:
                left = max(0.0, deadline - loop.time()) if willing else 0.0
                outcome = await self._outcome_or_answer(state, left, asking)
                for answer in [task for task in asking if task.done()]:
                    state.told.pop(asking.pop(answer))
                    state.told |= answer.result().told
                    willing = willing and answer.result().willing
                if outcome is None:
                    continue
                await self._complete(context, links, outcome)
                asked = await self._asked(context, outcome)
                new = {key: each for key, each in asked.items() if each.id not in state.told.values()}
                if left == 0.0 or not (new or asking):
                    return outcome
                _note(state, new, outcome)
                links |= {each.id for each in new.values() if each.by == "url"}
                asking |= {
                    asyncio.create_task(self._put(context, caller, key, each)): key
                    for key, each in new.items()
                }
        finally:
            for task in asking:
                task.cancel()

    async def _outcome_or_answer(
        self, state: RequestState, within: float, asking: Collection[asyncio.Task[Taken]]
    ) -> Outcome | None:
        """Return the run's outcome, or None where the client answered an input request first."""
        following = asyncio.create_task(
            self._runs.outcome(state.run, within=within, told=list(state.told.values()))
        )
        try:
            await asyncio.wait({following, *asking}, return_when=asyncio.FIRST_COMPLETED)
            return following.result() if following.done() else None
        finally:
            following.cancel()

    async def _put(self, context: Context, caller: Caller, key: str, asked: Asked) -> Taken:
        told = {key: asked.id}
        try:
            response = await context.session.send_request(
                asked.request, _ANSWERS[asked.by], metadata=ServerMessageMetadata(context.request_id)
            )
        except (MCPError, ValidationError):
            # The client could not ask, or has left. The answer to the call describes what to do instead.
            return Taken(told, willing=False)
        return await self._asking.take(told, {key: response}, caller.principal, context)

    async def _complete(self, context: Context, links: set[str], outcome: Outcome) -> None:
        """Notify a client of URL elicitations that it showed and that are complete."""
        waits = set(outcome.ids) if isinstance(outcome, Awaiting) else set[str]()
        for link in [each for each in links if each not in waits]:
            links.discard(link)
            params = ElicitCompleteNotificationParams(elicitation_id=link)
            await context.session.send_notification(
                ElicitCompleteNotification(params=params), context.request_id
            )

    async def _asked(self, context: Context, outcome: Outcome) -> dict[str, Asked]:
        return await self._asking.requests(outcome, context) if isinstance(outcome, Awaiting) else {}

    async def _take(
        self,
        context: Context,
        caller: Caller,
        state: RequestState,
        told: Mapping[str, str],
        responses: Mapping[str, Any],
    ) -> bool:
        """Record the client's answers, and return whether its person wants to continue."""
        taken = await self._asking.take(told, responses, caller.principal, context)
        state.told = {key: id_ for key, id_ in state.told.items() if key not in told} | taken.told
        return taken.willing


def _note(state: RequestState, new: Mapping[str, Asked], outcome: Outcome) -> None:
    """Note all waits of a run as announced: those that the client is asked under their keys, others under their ids."""
    state.told |= {key: each.id for key, each in new.items()}
    if isinstance(outcome, Awaiting):
        state.told |= {id_: id_ for id_ in outcome.ids if id_ not in state.told.values()}


def request_states(services: Services) -> RequestStateBoundary:
    """Create the SDK's boundary that seals request states.

    All gateways derive the same keys from the master key. A sealed state is valid for as long as a run may wait.
    """
    security = RequestStateSecurity(
        keys=services.vault.derived("mcp request state"), ttl=LONGEST_WAIT.total_seconds()
    )
    return RequestStateBoundary(security, default_audience=services.settings.public_url)
