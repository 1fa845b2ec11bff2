"""Open the exchange of a request: start a run for it, or attach it to one that an earlier request started."""

from collections.abc import Mapping
from typing import Any

from mcp_types import InputResponseRequestParams
from temporalio.client import Client

from engine.runs.runs import Runs
from engine.settings import GatewaySettings
from engine.tools.registry import OfferedWorkflow
from engine.waiting.waiters import Waiters
from gateway.mcp.exchange.call_exchange import CallExchange, HoldTime
from gateway.mcp.exchange.client_abilities import is_modern_client, list_client_abilities
from gateway.mcp.exchange.elicitation import ElicitationBuilder
from gateway.mcp.exchange.legacy_exchange import LegacyExchange
from gateway.mcp.exchange.modern_exchange import ModernExchange
from gateway.mcp.exchange.request_state import RequestState
from gateway.mcp.mcp_request import McpRequest


class ExchangeOpener:
    """Opens exchanges, for requests of each protocol version in their own way."""

    def __init__(
        self,
        runs: Runs,
        waiters: Waiters,
        elicitation_builder: ElicitationBuilder,
        temporal_client: Client,
        gateway_settings: GatewaySettings,
    ) -> None:
        self._runs = runs
        self._waiters = waiters
        self._elicitation_builder = elicitation_builder
        self._temporal_client = temporal_client
        self._modern_hold_time = HoldTime(gateway_settings.answer_within.total_seconds())
        self._legacy_hold_time = HoldTime(gateway_settings.hold_within.total_seconds())

    async def start_or_attach(
        self,
        request: McpRequest[InputResponseRequestParams],
        offer: OfferedWorkflow,
        arguments: Mapping[str, Any],
    ) -> CallExchange:
        """Open the exchange of a call: with the run of its request state, or one that is started or rejoined for it.

        Raises what the start of a run raises, and RunUnknown for a request state of another caller's run.
        """
        request_state = await self._resume_state(request)
        if request_state is None:
            started_run = await self._runs.starter.start_or_attach(offer.name, arguments, request.caller)
            request_state = (
                await self._create_announced_state(started_run.run_id)
                if started_run.is_attached and not list_client_abilities(request.context)
                else RequestState(run_id=started_run.run_id)
            )
        return self._open_exchange(request, request_state, request.params.input_responses)

    async def attach(self, request: McpRequest[InputResponseRequestParams], run_id: str) -> CallExchange:
        """Open the exchange of a request for the outcome of the caller's own run; raises as `start_or_attach` does."""
        request_state = await self._resume_state(request) or await self._create_announced_state(run_id)
        return self._open_exchange(request, request_state, request.params.input_responses)

    def open_for_task(self, request: McpRequest[Any], run_id: str) -> CallExchange:
        """Open the exchange of a request about the caller's own task, whose client is asked whatever it waits for."""
        return self._open_exchange(request, RequestState(run_id=run_id), None)

    def _open_exchange(
        self, request: McpRequest[Any], request_state: RequestState, input_responses: Mapping[str, Any] | None
    ) -> CallExchange:
        is_modern = is_modern_client(request.context)
        exchange_type = ModernExchange if is_modern else LegacyExchange
        return exchange_type(
            context=request.context,
            caller=request.caller,
            state=request_state,
            input_responses=dict(input_responses or {}),
            default_hold_time=self._modern_hold_time if is_modern else self._legacy_hold_time,
            runs=self._runs,
            elicitation_builder=self._elicitation_builder,
            temporal_client=self._temporal_client,
        )

    async def _resume_state(self, request: McpRequest[InputResponseRequestParams]) -> RequestState | None:
        """Return the state that the client carries, or None; raises RunUnknown for another caller's run."""
        if request.params.request_state is None:
            return None
        request_state = RequestState.model_validate_json(request.params.request_state)
        await self._runs.permissions.require_own_run(request_state.run_id, request.caller)
        return request_state

    async def _create_announced_state(self, run_id: str) -> RequestState:
        """Return a state in which all waits of this run are announced.

        A repeated call is then held to give the person time, instead of being answered with the same links at once.
        """
        waiters = await self._waiters.list_waiters(run_id)
        return RequestState(
            run_id=run_id, announced_waits={waiter.awaited_id: waiter.awaited_id for waiter in waiters}
        )
