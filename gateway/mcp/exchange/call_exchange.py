"""One request of a client about a run: it follows the run while the client waits, and asks the client for input."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcp_types import InputRequiredResult
from temporalio.client import Client

from engine.runs.caller import Caller
from engine.runs.outcome import Failed, Finished, Outcome, PendingWaits
from engine.runs.runs import Runs
from gateway.mcp.exchange.client_abilities import has_client_left
from gateway.mcp.exchange.elicitation import AcceptedAnswers, ClientInputRequest, ElicitationBuilder
from gateway.mcp.exchange.progress import report_progress
from gateway.mcp.exchange.request_state import RequestState
from gateway.mcp.mcp_request import RequestContext


@dataclass(frozen=True, slots=True)
class HoldTime:
    """How long one request is held, in seconds, and whether a modern client may be asked to repeat it after that."""

    seconds: float
    may_ask_again: bool = True


@dataclass(eq=False)
class CallExchange(ABC):
    """A request whose run is known. It exists as long as the request: each round of a call has its own."""

    context: RequestContext
    caller: Caller
    state: RequestState
    input_responses: dict[str, Any]
    """The client's answers that came with the request, by the keys of their input requests."""
    default_hold_time: HoldTime
    runs: Runs
    elicitation_builder: ElicitationBuilder
    temporal_client: Client

    @property
    def run_id(self) -> str:
        """The id of the run that serves the request."""
        return self.state.run_id

    @property
    def announced_ids(self) -> list[str]:
        """The ids of the authorization requests and questions that the client knows of."""
        return list(self.state.announced_waits.values())

    async def follow_run(self, hold_time: HoldTime | None = None) -> Outcome | InputRequiredResult:
        """Return the run's outcome when the request has to be answered, or the input requests for the client.

        Without a hold time, the request is held as long as the settings say for its protocol version.
        """
        async with report_progress(
            self.temporal_client,
            self.context,
            self.caller.principal,
            self.run_id,
            self.state.progress_cursor,
        ) as progress_reporter:
            outcome = await self._follow(hold_time or self.default_hold_time)
            if isinstance(outcome, Finished | Failed):
                await progress_reporter.wait_until_reported()
        return outcome

    async def note_delivery(self, outcome: Outcome | InputRequiredResult) -> None:
        """Note that the client gets the outcome of an ended run. The same request starts a new run from now on.

        If the client of a legacy request has left, nothing is noted, and the next same request gets the outcome.
        """
        if isinstance(outcome, Finished | Failed) and not await has_client_left(self.context):
            self.runs.delivered_outcomes.mark_delivered(self.run_id)

    async def build_input_requests(self, outcome: Outcome) -> dict[str, ClientInputRequest]:
        """Build the input requests for what the run waits for and the client is able to show, by their keys."""
        if not isinstance(outcome, PendingWaits):
            return {}
        return await self.elicitation_builder.build_input_requests(outcome, self.context)

    async def record_answers(
        self, announced_waits: Mapping[str, str], input_responses: Mapping[str, Any]
    ) -> AcceptedAnswers:
        """Record the client's answers to these waits, whose ids are given by the keys of their input requests."""
        return await self.elicitation_builder.record_answers(
            announced_waits, input_responses, self.caller.principal, self.context
        )

    @abstractmethod
    async def has_client_cancelled(self) -> bool:
        """Return whether the client ended the request. False if the gateway is stopping, which cancels no run."""

    @abstractmethod
    async def _follow(self, hold_time: HoldTime) -> Outcome | InputRequiredResult:
        """Follow the run as the protocol version of the client allows."""

    def _select_new_requests(
        self, input_requests: Mapping[str, ClientInputRequest]
    ) -> dict[str, ClientInputRequest]:
        """Return the input requests that the client does not know of yet."""
        return {
            request_key: client_request
            for request_key, client_request in input_requests.items()
            if client_request.wait_id not in self.state.announced_waits.values()
        }

    def _announce_waits(self, new_requests: Mapping[str, ClientInputRequest], outcome: Outcome) -> None:
        """Note all waits as announced: what the client is asked under the keys, and other waits under their ids."""
        announced_waits = self.state.announced_waits
        announced_waits |= {
            request_key: client_request.wait_id for request_key, client_request in new_requests.items()
        }
        if isinstance(outcome, PendingWaits):
            announced_waits |= {
                wait_id: wait_id for wait_id in outcome.ids if wait_id not in announced_waits.values()
            }
