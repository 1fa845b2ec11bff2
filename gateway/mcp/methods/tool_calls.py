"""Handle tools/call: start or rejoin a run, and answer with its value, an input request, a task or how to go on."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import anyio
from mcp.server.context import HandlerResult
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, CallToolResult, InputRequiredResult

from engine.errors import ArgumentsInvalid, BylineError
from engine.runs.control import RunControl
from engine.runs.runs import Caller, Failed, Finished, Outcome, PendingWaits, Running, Runs
from engine.services import Services
from engine.tools.registry import CompositeTool, Registry
from gateway.error_codes import find_mcp_code, to_mcp_code
from gateway.mcp.endpoints import McpEndpoint
from gateway.mcp.exchange.call_exchange import CallExchange, HoldTime
from gateway.mcp.exchange.client_abilities import (
    RequestContext,
    has_client_left,
    has_tasks_extension,
    is_modern_client,
    require_capability,
    require_tasks_extension,
)
from gateway.mcp.exchange.request_state import RequestState
from gateway.mcp.exchange.results import (
    PendingResults,
    to_failure_result,
    to_json_result,
    to_running_result,
    to_success_result,
)
from gateway.mcp.methods.search import search_tools
from gateway.mcp.methods.tasks import TaskHandler
from gateway.mcp.methods.tool_check import ToolCheckHandler
from gateway.mcp.methods.tool_list import ToolListHandler
from gateway.mcp.own_tools import CHECK_TOOL_NAME, COLLECT_TOOL_NAME, SEARCH_TOOL_NAME

# A client with the tasks extension gets a task as soon as a call takes longer than this.
_TASK_HOLD_TIME: Final = HoldTime(2.0, may_ask_again=False)


class ToolCallHandler:
    """The handler of tools/call at every endpoint."""

    def __init__(
        self,
        services: Services,
        registry: Registry,
        runs: Runs,
        run_control: RunControl,
        call_exchange: CallExchange,
        task_handler: TaskHandler,
        tool_list_handler: ToolListHandler,
    ) -> None:
        self._registry = registry
        self._runs = runs
        self._run_control = run_control
        self._call_exchange = call_exchange
        self._task_handler = task_handler
        self._tool_list_handler = tool_list_handler
        self._pending_results = PendingResults(services)
        self._tool_check_handler = ToolCheckHandler(services, registry, runs)

    async def handle_call(
        self, context: RequestContext, request_params: CallToolRequestParams, endpoint: McpEndpoint
    ) -> HandlerResult:
        """Answer one request. A failure of the tool itself is a result with `isError`, which the model reads."""
        try:
            caller = endpoint.identify_caller()
            tool_name, arguments = endpoint.resolve_call(request_params.name, request_params.arguments or {})
            if endpoint.has_search and tool_name == SEARCH_TOOL_NAME:
                return await self._search_tools(caller, arguments)
            if tool_name == CHECK_TOOL_NAME:
                return await self._tool_check_handler.check_tool(caller, arguments)
            if tool_name == COLLECT_TOOL_NAME:
                return await self._collect_outcome(context, request_params, caller, arguments)
            return await self._call_tool(
                context, request_params, caller, self._registry.find_tool(tool_name), arguments
            )
        except BylineError as error:
            error_code = to_mcp_code(error)
            if error_code is not None:
                raise MCPError(error_code, str(error)) from error
            return to_failure_result(error.code, str(error))

    async def _call_tool(
        self,
        context: RequestContext,
        request_params: CallToolRequestParams,
        caller: Caller,
        tool: CompositeTool,
        arguments: Mapping[str, Any],
    ) -> HandlerResult:
        declaration = tool.declaration
        for capability in declaration.required_capabilities:
            require_capability(context, capability)
        if declaration.task_support == "required":
            require_tasks_extension(context)
        request_state = await self._call_exchange.enter_run(context, request_params, caller, tool, arguments)
        may_become_task = has_tasks_extension(context) and declaration.task_support != "forbidden"
        hold_time = self._call_exchange.choose_hold_time(context)
        if may_become_task:
            if declaration.is_long:
                return await self._task_handler.create_task(request_state.run_id)
            hold_time = _TASK_HOLD_TIME
        outcome = await self._follow_run(context, request_params, caller, request_state, hold_time, tool)
        is_task_required = declaration.task_support == "required" and not isinstance(
            outcome, InputRequiredResult
        )
        if may_become_task and (is_task_required or isinstance(outcome, PendingWaits | Running)):
            return await self._task_handler.create_task(
                request_state.run_id, request_state.announced_waits.values()
            )
        return await self._build_answer(context, outcome, request_state.run_id, tool)

    async def _search_tools(self, caller: Caller, arguments: Mapping[str, Any]) -> CallToolResult:
        matching_tools = search_tools(arguments, await self._tool_list_handler.list_callable_tools(caller))
        return to_json_result(
            [
                listed_tool.model_dump(by_alias=True, mode="json", exclude_none=True)
                for listed_tool in matching_tools
            ]
        )

    async def _collect_outcome(
        self,
        context: RequestContext,
        request_params: CallToolRequestParams,
        caller: Caller,
        arguments: Mapping[str, Any],
    ) -> HandlerResult:
        run_id = arguments.get("run_id")
        if not isinstance(run_id, str) or not run_id.isprintable() or len(arguments) != 1:
            raise ArgumentsInvalid(
                f"{COLLECT_TOOL_NAME} takes one argument, run_id: the id that an earlier call gave."
            )
        run = await self._runs.require_own_run(run_id, caller)
        request_state = await self._call_exchange.resume_state(
            request_params, caller
        ) or await self._call_exchange.create_announced_state(run_id)
        hold_time = self._call_exchange.choose_hold_time(context)
        tool = self._registry.find_tool(run.tool_name)
        outcome = await self._follow_run(context, request_params, caller, request_state, hold_time, tool)
        return await self._build_answer(context, outcome, run_id, tool)

    async def _follow_run(
        self,
        context: RequestContext,
        request_params: CallToolRequestParams,
        caller: Caller,
        request_state: RequestState,
        hold_time: HoldTime,
        tool: CompositeTool,
    ) -> Outcome | InputRequiredResult:
        try:
            return await self._call_exchange.follow_run(
                context, caller, request_state, request_params.input_responses, hold_time
            )
        except asyncio.CancelledError:
            if tool.declaration.on_cancel == "cancel":
                with anyio.CancelScope(shield=True):
                    if await _has_client_cancelled(context):
                        run = await self._runs.require_own_run(request_state.run_id, caller)
                        await self._run_control.cancel_run(run, caller, "The client cancelled the call.")
            raise

    async def _build_answer(
        self,
        context: RequestContext,
        outcome: Outcome | InputRequiredResult,
        run_id: str,
        tool: CompositeTool,
    ) -> CallToolResult | InputRequiredResult:
        match outcome:
            case Finished(result_value):
                await self._call_exchange.note_outcome_delivered(context, run_id)
                return to_success_result(tool, result_value)
            case Failed(error_code, error_message):
                await self._call_exchange.note_outcome_delivered(context, run_id)
                if (json_rpc_code := find_mcp_code(error_code)) is not None:
                    raise MCPError(json_rpc_code, error_message)
                return to_failure_result(error_code, error_message)
            case PendingWaits():
                return await self._pending_results.build_result(run_id, outcome, tool.name)
            case Running():
                return to_running_result(run_id)
            case _:
                return outcome


async def _has_client_cancelled(context: RequestContext) -> bool:
    """Return whether the client ended the request, and not the gateway by stopping, which leaves runs alone."""
    if is_modern_client(context):
        # A modern client cancels by closing the stream of the response.
        return await has_client_left(context)
    # The SDK has no public way for a handler to see that the client cancelled its request.
    return bool(context.session._request_outbound.cancel_requested.is_set())  # noqa: SLF001
