"""Byline as an MCP server: tools from the registry, each call a run, each wait told in the way the client can show."""

import json
from collections.abc import Mapping
from typing import Any

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    InputRequiredResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    ToolAnnotations,
)
from mcp_types import Tool as ListedTool
from pydantic import BaseModel

from engine.errors import ArgumentsInvalid, BylineError, IdentityMissing
from engine.registry import Registry, Tool
from engine.services import Services
from engine.settings import LONGEST_WAIT
from gateway.bearer import PersonalToken
from gateway.elicitation import Elicitation, is_modern, modes
from gateway.errors import mcp_code
from gateway.runs import Awaiting, Caller, Failed, Finished, Outcome, Running, Runs

COLLECT = "byline_collect"
_COLLECT_SCHEMA = {
    "type": "object",
    "properties": {"run_id": {"type": "string", "description": "The run id that an earlier call gave."}},
    "required": ["run_id"],
    "additionalProperties": False,
}
# Clients end a call after ten rounds of input: before that, the outcome is left to be collected.
_LAST_ROUND = 8

_Context = ServerRequestContext[Any, Any]
_Answer = CallToolResult | InputRequiredResult


class RequestState(BaseModel):
    """What a client carries between the rounds of one call; sealed and bound to its principal by the boundary."""

    run: str
    told: list[str]
    round: int


class Tools:
    """The handlers of tools/list and tools/call."""

    def __init__(self, services: Services, runs: Runs) -> None:
        self._services = services
        self._runs = runs
        self._elicitation = Elicitation(services)
        self._patience = services.settings.gateway.answer_within

    async def listed(self, context: _Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        """Every tool that policy and token allow, by name, and the one that collects outcomes."""
        del context, params
        listed = [_listed(tool) for tool in await self._runs.allowed(_caller())]
        return ListToolsResult(tools=[*listed, _COLLECT_TOOL])

    async def call(self, context: _Context, params: CallToolRequestParams) -> _Answer:
        """Start or rejoin the run of this call and tell what becomes of it."""
        try:
            return await self._call(context, params)
        except BylineError as error:
            code = mcp_code(error)
            if code is not None:
                raise MCPError(code, str(error)) from error
            return _failure(error.code, str(error))

    async def _call(self, context: _Context, params: CallToolRequestParams) -> _Answer:
        caller = _caller()
        arguments = params.arguments or {}
        if params.request_state is not None:
            state = RequestState.model_validate_json(params.request_state)
            await self._runs.owned(state.run, caller)
            responses, can = params.input_responses or {}, modes(context)
            if not await self._elicitation.take(state.told, responses, caller.principal, can):
                state.round = _LAST_ROUND
        elif params.name == COLLECT:
            state = RequestState(run=await self._collected(arguments, caller), told=[], round=0)
            state.told = await self._told(state.run)
        else:
            serving = await self._runs.call(params.name, arguments, caller)
            state = RequestState(run=serving.run_id, told=[], round=0)
            if serving.rejoined and not modes(context):
                state.told = await self._told(state.run)
        outcome = await self._runs.outcome(state.run, within=self._patience, told=state.told)
        return await self._answer(context, outcome, state)

    async def _answer(self, context: _Context, outcome: Outcome, state: RequestState) -> _Answer:
        match outcome:
            case Finished(value):
                await self._runs.answered(state.run)
                return _success(value)
            case Failed(code, message):
                await self._runs.answered(state.run)
                return _failure(code, message)
            case Running() if is_modern(context) and state.round < _LAST_ROUND:
                return InputRequiredResult(request_state=_next(state, state.told))
            case Awaiting():
                return await self._ask(context, outcome, state)
            case Running():
                return _still_running(state.run)

    async def _ask(self, context: _Context, awaiting: Awaiting, state: RequestState) -> _Answer:
        asked = await self._elicitation.requests(awaiting, modes(context))
        if not asked or state.round >= _LAST_ROUND:
            return await self._elicitation.pending(state.run, awaiting, COLLECT)
        new = {awaited: request for awaited, request in asked.items() if awaited not in state.told}
        told = [*state.told, *(awaited for awaited in awaiting.ids if awaited not in state.told)]
        return InputRequiredResult(input_requests=new or None, request_state=_next(state, told))

    async def _collected(self, arguments: Mapping[str, Any], caller: Caller) -> str:
        run_id = arguments.get("run_id")
        if not isinstance(run_id, str) or not run_id.isprintable() or len(arguments) != 1:
            msg = f"{COLLECT} takes one argument, run_id: the id that an earlier call gave."
            raise ArgumentsInvalid(msg)
        await self._runs.owned(run_id, caller)
        return run_id

    async def _told(self, run_id: str) -> list[str]:
        """What the caller heard of already: a repeated call gives the person time instead of the same links at once."""
        return [waiter.awaits for waiter in await self._services.waiters.waiting(run_id)]


def mcp_server(services: Services, registry: Registry, runs: Runs) -> Server[Any]:
    """The low-level server, its request state sealed with keys that every gateway derives alike."""
    tools = Tools(services, runs)
    schemas = {name: tool.input_schema for name, tool in registry.tools.items()} | {COLLECT: _COLLECT_SCHEMA}
    server: Server[Any] = Server(
        "byline",
        title="Byline",
        on_list_tools=tools.listed,
        on_call_tool=tools.call,
        get_tool_input_schema=schemas.get,
    )
    security = RequestStateSecurity(
        keys=services.vault.derived("mcp request state"), ttl=LONGEST_WAIT.total_seconds()
    )
    server.middleware.append(RequestStateBoundary(security, default_audience=services.settings.public_url))
    return server


_COLLECT_TOOL = ListedTool(
    name=COLLECT,
    title="Collect the outcome of a run",
    description="Tells what became of a run that an earlier call started and that was not finished then.",
    input_schema=_COLLECT_SCHEMA,
    annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
)


def _listed(tool: Tool) -> ListedTool:
    declared = tool.declaration
    return ListedTool(
        name=tool.name,
        title=declared.title,
        description=tool.description,
        input_schema=tool.input_schema,
        output_schema=tool.output_schema,
        annotations=ToolAnnotations(
            title=declared.title,
            read_only_hint=declared.read_only,
            destructive_hint=declared.destructive,
            idempotent_hint=declared.idempotent,
            open_world_hint=True,
        ),
    )


def _caller() -> Caller:
    token = get_access_token()
    if not isinstance(token, PersonalToken):
        msg = "The call carries no bearer token of a person known here."
        raise IdentityMissing(msg)
    return Caller(token.principal, token.actor, "mcp", token.tools, token.in_person)


def _next(state: RequestState, told: list[str]) -> str:
    return RequestState(run=state.run, told=told, round=state.round + 1).model_dump_json()


def _success(value: Any) -> CallToolResult:
    text = json.dumps(value, ensure_ascii=False, indent=1)
    return CallToolResult(
        content=[TextContent(text=text)], structured_content=value if isinstance(value, dict) else None
    )


def _failure(code: str, message: str) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(text=f"{code}: {message}")],
        structured_content={"error": code, "message": message},
        is_error=True,
    )


def _still_running(run_id: str) -> CallToolResult:
    text = (
        f'NOT FINISHED: the run goes on. Call `{COLLECT}` with run_id "{run_id}" in a while for the outcome.'
    )
    return CallToolResult(
        content=[TextContent(text=text)],
        structured_content={"status": "running", "run_id": run_id},
        is_error=True,
    )
