"""Follow the run behind a prompt or a resource as a call's run is followed; without a value, raise an MCPError."""

from collections.abc import Mapping
from typing import Any

from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, InputRequiredResult, InputResponseRequestParams

from engine.errors import BylineError
from engine.runs.runs import Failed, Finished, PendingWaits, Running
from engine.tools.registry import OfferedWorkflow
from gateway.error_codes import find_mcp_code, to_mcp_code
from gateway.mcp.exchange.exchange_opener import ExchangeOpener
from gateway.mcp.exchange.results import PendingResults
from gateway.mcp.mcp_request import McpRequest


class OfferFetcher:
    """Fetches the value of a prompt or a resource, in as many requests as its client supports."""

    def __init__(self, exchange_opener: ExchangeOpener, pending_results: PendingResults) -> None:
        self._exchange_opener = exchange_opener
        self._pending_results = pending_results

    async def fetch_value(
        self,
        request: McpRequest[InputResponseRequestParams],
        offer: OfferedWorkflow,
        arguments: Mapping[str, Any],
    ) -> Any | InputRequiredResult:
        """Return the value of this request's run, or the input requests for the client; raises MCPError."""
        exchange = await self._exchange_opener.start_or_attach(request, offer, arguments)
        outcome = await exchange.follow_run()
        await exchange.note_delivery(outcome)
        match outcome:
            case Finished(offer_value):
                return offer_value
            case Failed(error_code, error_message):
                raise MCPError(
                    find_mcp_code(error_code) or INTERNAL_ERROR, error_message, {"error": error_code}
                )
            case PendingWaits():
                wait_lines = await self._pending_results.describe_waits(outcome)
                raise _build_unfinished_error(
                    exchange.run_id, "\n".join([*wait_lines, "Then ask for the same again."])
                )
            case Running():
                raise _build_unfinished_error(
                    exchange.run_id, "The run goes on. Ask for the same again in a while."
                )
            case InputRequiredResult():
                return outcome


def to_mcp_error(error: BylineError, **error_data: str) -> MCPError:
    """Translate a domain error for methods whose results cannot carry an error."""
    json_rpc_code = to_mcp_code(error) or (INTERNAL_ERROR if error.is_retryable else INVALID_PARAMS)
    return MCPError(json_rpc_code, str(error), {"error": error.code, **error_data})


def _build_unfinished_error(run_id: str, explanation: str) -> MCPError:
    return MCPError(
        INTERNAL_ERROR, f"NOT FINISHED: {explanation}", {"error": "not_finished", "run_id": run_id}
    )
