"""Follow the run behind a prompt or a resource as a call's run is followed; without a value, raise an MCPError."""

from collections.abc import Mapping
from typing import Any

from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, InputRequiredResult, InputResponseRequestParams

from engine.errors import BylineError
from engine.runs.runs import Caller, Failed, Finished, PendingWaits, Running
from engine.services import Services
from engine.tools.registry import OfferedWorkflow
from gateway.error_codes import find_mcp_code, to_mcp_code
from gateway.mcp.exchange.call_exchange import CallExchange
from gateway.mcp.exchange.client_abilities import RequestContext
from gateway.mcp.exchange.results import PendingResults


class OfferFetcher:
    """Fetches the value of a prompt or a resource, in as many requests as its client supports."""

    def __init__(self, services: Services, call_exchange: CallExchange) -> None:
        self._call_exchange = call_exchange
        self._pending_results = PendingResults(services)

    async def fetch_value(
        self,
        context: RequestContext,
        request_params: InputResponseRequestParams,
        caller: Caller,
        offer: OfferedWorkflow,
        arguments: Mapping[str, Any],
    ) -> Any | InputRequiredResult:
        """Return the value of this request's run, or the input requests for the client; raises MCPError."""
        request_state = await self._call_exchange.enter_run(context, request_params, caller, offer, arguments)
        hold_time = self._call_exchange.choose_hold_time(context)
        outcome = await self._call_exchange.follow_run(
            context, caller, request_state, request_params.input_responses, hold_time
        )
        match outcome:
            case Finished(offer_value):
                await self._call_exchange.note_outcome_delivered(context, request_state.run_id)
                return offer_value
            case Failed(error_code, error_message):
                await self._call_exchange.note_outcome_delivered(context, request_state.run_id)
                raise MCPError(
                    find_mcp_code(error_code) or INTERNAL_ERROR, error_message, {"error": error_code}
                )
            case PendingWaits():
                wait_lines = await self._pending_results.describe_waits(outcome)
                raise _build_unfinished_error(
                    request_state.run_id, "\n".join([*wait_lines, "Then ask for the same again."])
                )
            case Running():
                raise _build_unfinished_error(
                    request_state.run_id, "The run goes on. Ask for the same again in a while."
                )
            case _:
                return outcome


def to_mcp_error(error: BylineError, **error_data: str) -> MCPError:
    """Translate a domain error for methods whose results cannot carry an error."""
    json_rpc_code = to_mcp_code(error) or (INTERNAL_ERROR if error.is_retryable else INVALID_PARAMS)
    return MCPError(json_rpc_code, str(error), {"error": error.code, **error_data})


def _build_unfinished_error(run_id: str, explanation: str) -> MCPError:
    return MCPError(
        INTERNAL_ERROR, f"NOT FINISHED: {explanation}", {"error": "not_finished", "run_id": run_id}
    )
