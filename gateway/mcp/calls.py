"""Handle tools/call: start or rejoin a run, and answer with its value, an input request, a task or how to go on."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import anyio
from mcp.server.context import HandlerResult
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, CallToolResult, InputRequiredResult

from engine.errors import ArgumentsInvalid, BylineError
from engine.registry import Registry, Tool
from engine.services import Services
from gateway.errors import mcp_code, protocol_code
from gateway.mcp.checking import CHECK, Checking
from gateway.mcp.clients import (
    Context,
    has_left,
    is_modern,
    knows_tasks,
    require,
    require_tasks,
)
from gateway.mcp.endpoints import Endpoint
from gateway.mcp.listing import Listing
from gateway.mcp.results import COLLECT, Pending, as_json, failure, still_running, success
from gateway.mcp.rounds import Patience, RequestState, Rounds
from gateway.mcp.search import SEARCH, found
from gateway.mcp.tasks import Tasks
from gateway.runs.control import RunControl
from gateway.runs.runs import Awaiting, Caller, Failed, Finished, Outcome, Running, Runs

# A client with the tasks extension gets a task as soon as a call takes longer than this.
_TASK_AFTER: Final = Patience(2.0, asks_again=False)


class Calls:
    """The handler of tools/call at every endpoint."""

    def __init__(
        self,
        services: Services,
        registry: Registry,
        runs: Runs,
        control: RunControl,
        rounds: Rounds,
        tasks: Tasks,
        listing: Listing,
    ) -> None:
        self._registry = registry
        self._runs = runs
        self._control = control
        self._rounds = rounds
        self._tasks = tasks
        self._listing = listing
        self._pending = Pending(services)
        self._checking = Checking(services, registry, runs)

    async def call(self, context: Context, params: CallToolRequestParams, at: Endpoint) -> HandlerResult:
        """Answer one request. A failure of the tool itself is a result with `isError`, which the model reads."""
        try:
            caller = at.caller()
            name, arguments = at.meant(params.name, params.arguments or {})
            if at.searches and name == SEARCH:
                return await self._search(caller, arguments)
            if name == CHECK:
                return await self._checking.check(caller, arguments)
            if name == COLLECT:
                return await self._collect(context, params, caller, arguments)
            return await self._call(context, params, caller, self._registry.tool(name), arguments)
        except BylineError as error:
            code = mcp_code(error)
            if code is not None:
                raise MCPError(code, str(error)) from error
            return failure(error.code, str(error))

    async def _call(
        self,
        context: Context,
        params: CallToolRequestParams,
        caller: Caller,
        tool: Tool,
        arguments: Mapping[str, Any],
    ) -> HandlerResult:
        declared = tool.declaration
        for capability in declared.requires:
            require(context, capability)
        if declared.task == "required":
            require_tasks(context)
        state = await self._rounds.entered(context, params, caller, tool, arguments)
        with_task = knows_tasks(context) and declared.task != "forbidden"
        patience = self._rounds.patience(context)
        if with_task:
            if declared.long:
                return await self._tasks.created(state.run)
            patience = _TASK_AFTER
        outcome = await self._followed(context, params, caller, state, patience, tool)
        has_to_be_one = declared.task == "required" and not isinstance(outcome, InputRequiredResult)
        if with_task and (has_to_be_one or isinstance(outcome, Awaiting | Running)):
            return await self._tasks.created(state.run, state.told.values())
        return await self._answer(context, outcome, state.run, tool)

    async def _search(self, caller: Caller, arguments: Mapping[str, Any]) -> CallToolResult:
        tools = found(arguments, await self._listing.tools(caller))
        return as_json([tool.model_dump(by_alias=True, mode="json", exclude_none=True) for tool in tools])

    async def _collect(
        self,
        context: Context,
        params: CallToolRequestParams,
        caller: Caller,
        arguments: Mapping[str, Any],
    ) -> HandlerResult:
        run_id = arguments.get("run_id")
        if not isinstance(run_id, str) or not run_id.isprintable() or len(arguments) != 1:
            raise ArgumentsInvalid(f"{COLLECT} takes one argument, run_id: the id that an earlier call gave.")
        run = await self._runs.owned(run_id, caller)
        state = await self._rounds.resumed(params, caller) or await self._rounds.knowing(run_id)
        patience = self._rounds.patience(context)
        tool = self._registry.tool(run.tool)
        outcome = await self._followed(context, params, caller, state, patience, tool)
        return await self._answer(context, outcome, run_id, tool)

    async def _followed(
        self,
        context: Context,
        params: CallToolRequestParams,
        caller: Caller,
        state: RequestState,
        patience: Patience,
        tool: Tool,
    ) -> Outcome | InputRequiredResult:
        try:
            return await self._rounds.follow(context, caller, state, params.input_responses, patience)
        except asyncio.CancelledError:
            if tool.declaration.on_cancel == "cancel":
                with anyio.CancelScope(shield=True):
                    if await _client_cancelled(context):
                        run = await self._runs.owned(state.run, caller)
                        await self._control.cancel(run, caller, "The client cancelled the call.")
            raise

    async def _answer(
        self, context: Context, outcome: Outcome | InputRequiredResult, run_id: str, tool: Tool
    ) -> CallToolResult | InputRequiredResult:
        match outcome:
            case Finished(value):
                await self._rounds.end(context, run_id)
                return success(tool, value)
            case Failed(code, message):
                await self._rounds.end(context, run_id)
                if (protocol := protocol_code(code)) is not None:
                    raise MCPError(protocol, message)
                return failure(code, message)
            case Awaiting():
                return await self._pending.result(run_id, outcome, tool.name)
            case Running():
                return still_running(run_id)
            case _:
                return outcome


async def _client_cancelled(context: Context) -> bool:
    """Return whether the client ended the request, and not the gateway by stopping, which leaves runs alone."""
    if is_modern(context):
        # A modern client cancels by closing the stream of the response.
        return await has_left(context)
    # The SDK has no public way for a handler to see that the client cancelled its request.
    return bool(context.session._request_outbound.cancel_requested.is_set())  # noqa: SLF001
