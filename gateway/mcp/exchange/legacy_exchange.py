"""The whole of a call in protocols up to 2025-11-25, in which the server sends requests while it holds the call."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    CreateMessageResult,
    ElicitCompleteNotification,
    ElicitCompleteNotificationParams,
    ElicitResult,
    ListRootsResult,
)
from pydantic import BaseModel, ValidationError
from typing_extensions import override

from engine.runs.runs import Outcome, PendingWaits
from gateway.mcp.exchange.call_exchange import CallExchange, HoldTime
from gateway.mcp.exchange.client_abilities import ClientAbility
from gateway.mcp.exchange.elicitation import AcceptedAnswers, ClientInputRequest

_RESULT_TYPES: Final[Mapping[ClientAbility, type[BaseModel]]] = {
    "url": ElicitResult,
    "form": ElicitResult,
    "sampling": CreateMessageResult,
    "roots": ListRootsResult,
}


@dataclass(eq=False)
class LegacyExchange(CallExchange):
    """A call from its beginning to its end: it sends each input request as soon as the run waits for it."""

    _asking_tasks: dict[asyncio.Task[AcceptedAnswers], str] = field(default_factory=dict, init=False)
    """The input requests that the client has not answered yet, with their keys."""
    _shown_link_ids: set[str] = field(default_factory=set, init=False)

    @override
    async def has_client_cancelled(self) -> bool:
        # The SDK has no public way for a handler to see that the client cancelled its request.
        return bool(self.context.session._request_outbound.cancel_requested.is_set())  # noqa: SLF001

    @override
    async def _follow(self, hold_time: HoldTime) -> Outcome:
        event_loop = asyncio.get_running_loop()
        deadline, may_continue = event_loop.time() + hold_time.seconds, True
        try:
            while True:
                remaining_seconds = max(0.0, deadline - event_loop.time()) if may_continue else 0.0
                outcome = await self._wait_for_outcome_or_answer(remaining_seconds)
                may_continue = self._take_answers() and may_continue
                if outcome is None:
                    continue
                await self._complete_elicitations(outcome)
                new_requests = self._select_new_requests(await self.build_input_requests(outcome))
                if remaining_seconds == 0.0 or not (new_requests or self._asking_tasks):
                    return outcome
                self._announce_waits(new_requests, outcome)
                self._ask_client(new_requests)
        finally:
            for asking_task in self._asking_tasks:
                asking_task.cancel()

    async def _wait_for_outcome_or_answer(self, wait_seconds: float) -> Outcome | None:
        """Return the run's outcome, or None where the client answered an input request first."""
        outcome_task = asyncio.create_task(
            self.runs.wait_for_outcome(
                self.run_id, timeout_seconds=wait_seconds, announced_waits=self.announced_ids
            )
        )
        try:
            await asyncio.wait({outcome_task, *self._asking_tasks}, return_when=asyncio.FIRST_COMPLETED)
            return outcome_task.result() if outcome_task.done() else None
        finally:
            outcome_task.cancel()

    def _take_answers(self) -> bool:
        """Note what the client has answered, and return whether its person wants to continue."""
        may_continue = True
        for asking_task in [asking_task for asking_task in self._asking_tasks if asking_task.done()]:
            self.state.announced_waits.pop(self._asking_tasks.pop(asking_task))
            accepted_answers = asking_task.result()
            self.state.announced_waits |= accepted_answers.announced_waits
            may_continue = may_continue and accepted_answers.may_continue
        return may_continue

    def _ask_client(self, new_requests: Mapping[str, ClientInputRequest]) -> None:
        for request_key, client_request in new_requests.items():
            asking_task = asyncio.create_task(self._send_input_request(request_key, client_request))
            self._asking_tasks[asking_task] = request_key
            if client_request.ability == "url":
                self._shown_link_ids.add(client_request.wait_id)

    async def _send_input_request(
        self, request_key: str, client_request: ClientInputRequest
    ) -> AcceptedAnswers:
        announced_waits = {request_key: client_request.wait_id}
        try:
            input_response = await self.context.session.send_request(
                client_request.input_request,
                _RESULT_TYPES[client_request.ability],
                metadata=ServerMessageMetadata(self.context.request_id),
            )
        except (MCPError, ValidationError):
            # The client could not ask, or has left. The answer to the call describes what to do instead.
            return AcceptedAnswers(announced_waits, may_continue=False)
        return await self.record_answers(announced_waits, {request_key: input_response})

    async def _complete_elicitations(self, outcome: Outcome) -> None:
        """Notify the client of URL elicitations that it showed and that are complete."""
        open_ids = set(outcome.ids) if isinstance(outcome, PendingWaits) else set[str]()
        for wait_id in self._shown_link_ids - open_ids:
            self._shown_link_ids.discard(wait_id)
            notification_params = ElicitCompleteNotificationParams(elicitation_id=wait_id)
            await self.context.session.send_notification(
                ElicitCompleteNotification(params=notification_params), self.context.request_id
            )
