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
from engine.tools.registry import CompositeTool, Registry
from gateway.error_codes import find_mcp_code, to_mcp_code
from gateway.mcp import own_tools
from gateway.mcp.exchange.call_exchange import CallExchange, HoldTime
from gateway.mcp.exchange.client_abilities import (
    has_tasks_extension,
    require_capability,
    require_tasks_extension,
)
from gateway.mcp.exchange.exchange_opener import ExchangeOpener
from gateway.mcp.exchange.results import (
    PendingResults,
    to_failure_result,
    to_json_result,
    to_running_result,
    to_success_result,
)
from gateway.mcp.mcp_request import McpRequest, RequestContext
from gateway.mcp.methods.search import search_tools
from gateway.mcp.methods.tasks import TaskHandler
from gateway.mcp.methods.tool_check import ToolCheckHandler
from gateway.mcp.methods.tool_list import ToolListHandler

# A client with the tasks extension gets a task as soon as a call takes longer than this.
_TASK_HOLD_TIME: Final = HoldTime(2.0, may_ask_again=False)


class ToolCallHandler:
    """The handler of tools/call at every endpoint."""

    def __init__(
        self,
        registry: Registry,
        runs: Runs,
        run_control: RunControl,
        exchange_opener: ExchangeOpener,
        pending_results: PendingResults,
        task_handler: TaskHandler,
        tool_list_handler: ToolListHandler,
        tool_check_handler: ToolCheckHandler,
    ) -> None:
        self._registry = registry
        self._runs = runs
        self._run_control = run_control
        self._exchange_opener = exchange_opener
        self._pending_results = pending_results
        self._task_handler = task_handler
        self._tool_list_handler = tool_list_handler
        self._tool_check_handler = tool_check_handler

    async def handle_call(self, request: McpRequest[CallToolRequestParams]) -> HandlerResult:
        """Answer one request. A failure of the tool itself is a result with `isError`, which the model reads."""
        try:
            return await self._dispatch_call(request)
        except BylineError as error:
            error_code = to_mcp_code(error)
            if error_code is not None:
                raise MCPError(error_code, str(error)) from error
            return to_failure_result(error.code, str(error))

    async def _dispatch_call(self, request: McpRequest[CallToolRequestParams]) -> HandlerResult:
        """Call one of the gateway's own tools, or the composite tool of the name."""
        caller, endpoint = request.caller, request.endpoint
        tool_name, arguments = endpoint.resolve_call(request.params.name, request.params.arguments or {})
        match tool_name:
            case own_tools.SEARCH_TOOL_NAME if endpoint.has_search:
                return await self._search_tools(caller, arguments)
            case own_tools.CHECK_TOOL_NAME:
                return await self._tool_check_handler.check_tool(caller, arguments)
            case own_tools.COLLECT_TOOL_NAME:
                return await self._collect_outcome(request, arguments)
            case _:
                return await self._call_tool(request, self._registry.find_tool(tool_name), arguments)

    async def _call_tool(
        self, request: McpRequest[CallToolRequestParams], tool: CompositeTool, arguments: Mapping[str, Any]
    ) -> HandlerResult:
        _require_client_features(request.context, tool)
        exchange = await self._exchange_opener.start_or_attach(request, tool, arguments)
        if not has_tasks_extension(request.context) or tool.declaration.task_support == "forbidden":
            return await self._build_answer(exchange, await self._follow_run(exchange, tool), tool)
        if tool.declaration.is_long:
            return await self._task_handler.create_task(exchange.run_id)
        outcome = await self._follow_run(exchange, tool, _TASK_HOLD_TIME)
        if _becomes_task(outcome, tool):
            return await self._task_handler.create_task(exchange.run_id, exchange.announced_ids)
        return await self._build_answer(exchange, outcome, tool)

    async def _collect_outcome(
        self, request: McpRequest[CallToolRequestParams], arguments: Mapping[str, Any]
    ) -> HandlerResult:
        run_id = arguments.get("run_id")
        if not isinstance(run_id, str) or not run_id.isprintable() or len(arguments) != 1:
            raise ArgumentsInvalid(
                f"{own_tools.COLLECT_TOOL_NAME} takes one argument, run_id: the id that an earlier call gave."
            )
        run = await self._runs.require_own_run(run_id, request.caller)
        exchange = await self._exchange_opener.attach(request, run_id)
        tool = self._registry.find_tool(run.tool_name)
        return await self._build_answer(exchange, await self._follow_run(exchange, tool), tool)

    async def _search_tools(self, caller: Caller, arguments: Mapping[str, Any]) -> CallToolResult:
        matching_tools = search_tools(arguments, await self._tool_list_handler.list_callable_tools(caller))
        return to_json_result(
            [
                listed_tool.model_dump(by_alias=True, mode="json", exclude_none=True)
                for listed_tool in matching_tools
            ]
        )

    async def _follow_run(
        self, exchange: CallExchange, tool: CompositeTool, hold_time: HoldTime | None = None
    ) -> Outcome | InputRequiredResult:
        try:
            return await exchange.follow_run(hold_time)
        except asyncio.CancelledError:
            if tool.declaration.on_cancel == "cancel":
                with anyio.CancelScope(shield=True):
                    await self._cancel_with_client(exchange)
            raise

    async def _cancel_with_client(self, exchange: CallExchange) -> None:
        """Cancel the run where its client has cancelled the call."""
        if await exchange.has_client_cancelled():
            run = await self._runs.require_own_run(exchange.run_id, exchange.caller)
            await self._run_control.cancel_run(run, exchange.caller, "The client cancelled the call.")

    async def _build_answer(
        self, exchange: CallExchange, outcome: Outcome | InputRequiredResult, tool: CompositeTool
    ) -> CallToolResult | InputRequiredResult:
        await exchange.note_delivery(outcome)
        match outcome:
            case Finished(result_value):
                return to_success_result(tool, result_value)
            case Failed(error_code, error_message):
                if (json_rpc_code := find_mcp_code(error_code)) is not None:
                    raise MCPError(json_rpc_code, error_message)
                return to_failure_result(error_code, error_message)
            case PendingWaits():
                return await self._pending_results.build_result(exchange.run_id, outcome, tool.name)
            case Running():
                return to_running_result(exchange.run_id)
            case InputRequiredResult():
                return outcome


def _require_client_features(context: RequestContext, tool: CompositeTool) -> None:
    """Require the capabilities and the extension without which the tool cannot be called; raises MCPError."""
    for capability in tool.declaration.required_capabilities:
        require_capability(context, capability)
    if tool.declaration.task_support == "required":
        require_tasks_extension(context)


def _becomes_task(outcome: Outcome | InputRequiredResult, tool: CompositeTool) -> bool:
    """Return whether a call is answered with a task: where it has to, or its run has not ended and asks nothing."""
    if isinstance(outcome, InputRequiredResult):
        return False
    return tool.declaration.task_support == "required" or isinstance(outcome, PendingWaits | Running)
