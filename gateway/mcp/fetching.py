"""Follow the run behind a prompt or a resource as a call's run is followed; without a value, raise an MCPError."""

from collections.abc import Mapping
from typing import Any

from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, InputRequiredResult, InputResponseRequestParams

from engine.errors import BylineError
from engine.registry import Offer
from engine.services import Services
from gateway.errors import mcp_code, protocol_code
from gateway.mcp.clients import Context
from gateway.mcp.results import Pending
from gateway.mcp.rounds import Rounds
from gateway.runs.runs import Awaiting, Caller, Failed, Finished, Running


class Fetching:
    """Fetches the value of a prompt or a resource, in as many requests as its client supports."""

    def __init__(self, services: Services, rounds: Rounds) -> None:
        self._rounds = rounds
        self._pending = Pending(services)

    async def value(
        self,
        context: Context,
        params: InputResponseRequestParams,
        caller: Caller,
        offer: Offer,
        arguments: Mapping[str, Any],
    ) -> Any | InputRequiredResult:
        """Return the value of this request's run, or the input requests for the client; raises MCPError."""
        state = await self._rounds.entered(context, params, caller, offer, arguments)
        patience = self._rounds.patience(context)
        outcome = await self._rounds.follow(context, caller, state, params.input_responses, patience)
        match outcome:
            case Finished(value):
                await self._rounds.end(context, state.run)
                return value
            case Failed(code, message):
                await self._rounds.end(context, state.run)
                raise MCPError(protocol_code(code) or INTERNAL_ERROR, message, {"error": code})
            case Awaiting():
                lines = await self._pending.lines(outcome)
                raise _unfinished(state.run, "\n".join([*lines, "Then ask for the same again."]))
            case Running():
                raise _unfinished(state.run, "The run goes on. Ask for the same again in a while.")
            case _:
                return outcome


def refused(error: BylineError, **data: str) -> MCPError:
    """Translate a domain error for methods whose results cannot carry an error."""
    code = mcp_code(error) or (INTERNAL_ERROR if error.retryable else INVALID_PARAMS)
    return MCPError(code, str(error), {"error": error.code, **data})


def _unfinished(run_id: str, text: str) -> MCPError:
    return MCPError(INTERNAL_ERROR, f"NOT FINISHED: {text}", {"error": "not_finished", "run_id": run_id})
