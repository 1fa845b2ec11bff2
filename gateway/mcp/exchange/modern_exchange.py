"""One round of a call of protocol 2026-07-28, in which a client answers by repeating its request."""

from collections.abc import Mapping
from typing import Final

from mcp_types import InputRequiredResult
from typing_extensions import override

from engine.runs.runs import Outcome, Running
from gateway.mcp.exchange.call_exchange import CallExchange, HoldTime
from gateway.mcp.exchange.client_abilities import has_client_left
from gateway.mcp.exchange.elicitation import ClientInputRequest

# Clients end a call after ten rounds of input. Before that, the call ends and its outcome can be collected.
_LAST_ROUND: Final = 8


class ModernExchange(CallExchange):
    """A round: it records the answers that the request brings, and ends with the outcome or with what to ask next."""

    @override
    async def has_client_cancelled(self) -> bool:
        # A modern client cancels by closing the stream of the response.
        return await has_client_left(self.context)

    @override
    async def _follow(self, hold_time: HoldTime) -> Outcome | InputRequiredResult:
        may_continue = await self._take_answers(self.state.announced_waits)
        while True:
            outcome = await self.runs.wait_for_outcome(
                self.run_id,
                timeout_seconds=hold_time.seconds if may_continue else 0.0,
                announced_waits=self.announced_ids,
            )
            input_requests = await self.build_input_requests(outcome)
            new_requests = self._select_new_requests(input_requests)
            # A client may send answers to input requests that it expects.
            early_waits = {
                request_key: client_request.wait_id
                for request_key, client_request in new_requests.items()
                if request_key in self.input_responses
            }
            if not early_waits:
                break
            may_continue = await self._take_answers(early_waits) and may_continue
            for request_key in early_waits:
                del self.input_responses[request_key]
        if not may_continue or self.state.round_number >= _LAST_ROUND:
            return outcome
        if new_requests or (hold_time.may_ask_again and (input_requests or isinstance(outcome, Running))):
            return self._ask_client(new_requests, outcome)
        return outcome

    async def _take_answers(self, waits: Mapping[str, str]) -> bool:
        """Record the answers to these waits, and return whether the client's person wants to continue."""
        accepted_answers = await self.record_answers(waits, self.input_responses)
        other_waits = {
            request_key: wait_id
            for request_key, wait_id in self.state.announced_waits.items()
            if request_key not in waits
        }
        self.state.announced_waits = other_waits | accepted_answers.announced_waits
        return accepted_answers.may_continue

    def _ask_client(
        self, new_requests: Mapping[str, ClientInputRequest], outcome: Outcome
    ) -> InputRequiredResult:
        """Build the result that asks for new input, or without any for the same request once more."""
        self._announce_waits(new_requests, outcome)
        self.state.round_number += 1
        input_requests = {
            request_key: client_request.input_request for request_key, client_request in new_requests.items()
        }
        return InputRequiredResult(input_requests=input_requests or None, request_state=self.state.to_text())
