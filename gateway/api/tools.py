"""REST routes for tools: those that the caller may call, and one documented operation a tool, which starts a run."""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel, Field

from engine.errors import ArgumentsInvalid, ToolUnknown
from engine.runs.caller import Caller
from engine.runs.runs import Runs
from engine.runs.starting import StartedRun
from engine.runs.state import ONGOING_STATUSES, RunState
from engine.tools.registry import CompositeTool, Registry
from gateway.api.authentication import ApiCaller
from gateway.api.problems import RequestRefused, describe_problems
from gateway.protected_resource import API_PATH

MAX_WAIT_SECONDS: Final = 60
_WAIT_PATTERN: Final = re.compile(r"(?:^|,)\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?:[;,]|$)", re.IGNORECASE)
_QUOTED_KEY_PATTERN: Final = re.compile(r'"([^"\\]*)"')

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="Calls with the same key and the same arguments start one run, even if they are repeated.",
    ),
]
Prefer = Annotated[
    str | None,
    Header(
        description=f"`wait=N`: wait up to N seconds ({MAX_WAIT_SECONDS} at most) for the run to end (RFC 7240)."
    ),
]


class ConnectionUsed(BaseModel):
    """A connection that a step of the tool may use."""

    name: str
    scopes: list[str] = Field(
        description="The scopes that its actions declare in addition to the connection's own."
    )


class ToolDescription(BaseModel):
    """A tool, as its declaration and its code describe it."""

    name: str
    title: str
    description: str
    input_schema: dict[str, Any] = Field(description="The JSON Schema of its arguments.")
    output_schema: dict[str, Any] | None = Field(description="The JSON Schema of its result.")
    read_only: bool
    destructive: bool
    idempotent: bool
    connections: list[ConnectionUsed] = Field(
        description="The connections that it may ask you to sign in to."
    )


class ToolList(BaseModel):
    """Every tool that the caller may call."""

    items: list[ToolDescription]


def build_routes(registry: Registry, runs: Runs) -> APIRouter:
    """Build the router of `/tools`, `/tools/{tool}` and `/tools/{tool}/runs`."""
    router = APIRouter(tags=["tools"])
    run_responder = RunResponder(runs)

    @router.get("/tools", summary="List the tools that you may call")
    async def list_tools(caller: ApiCaller) -> ToolList:
        return ToolList(
            items=[
                _to_tool_description(tool, registry)
                for tool in await runs.permissions.list_allowed_tools(caller)
            ]
        )

    @router.get("/tools/{tool}", summary="Get one tool", responses=describe_problems(403, 404, 422))
    async def get_tool(caller: ApiCaller, tool: Annotated[str, Path(max_length=200)]) -> ToolDescription:
        found_tool = registry.find_tool(tool)
        await runs.permissions.require_allowed(tool, caller)
        return _to_tool_description(found_tool, registry)

    for tool in registry.tools.values():
        _add_start_route(router, tool, runs, run_responder)

    @router.post("/tools/{tool}/runs", include_in_schema=False)
    async def start_unknown(caller: ApiCaller, tool: str) -> None:
        del caller
        raise ToolUnknown(f"There is no tool '{tool}'. List the tools to see which there are.")

    return router


class RunResponder:
    """Answers a request that started a run, or attached to one that an earlier request started."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    async def answer_started_run(
        self, started_run: StartedRun, caller: Caller, wait_preference: str | None, response: Response
    ) -> RunState:
        """Wait as the client prefers, and return the run's state: 200 if it ended, 202 if it continues."""
        wait_seconds = read_wait_seconds(wait_preference)
        if wait_seconds is not None:
            response.headers["Preference-Applied"] = f"wait={wait_seconds}"
            await self._runs.outcomes.wait_for_outcome(started_run.run_id, timeout_seconds=wait_seconds)
        run = await self._runs.permissions.require_own_run(started_run.run_id, caller)
        run_state = await self._runs.states.read_state(run, caller.principal)
        response.headers["Location"] = f"{API_PATH}/runs/{run.id}"
        if run_state.status in ONGOING_STATUSES:
            response.status_code = HTTPStatus.ACCEPTED
        else:
            self._runs.delivered_outcomes.mark_delivered(run.id)
        return run_state


def read_wait_seconds(wait_preference: str | None) -> int | None:
    """Read how many seconds the client prefers to wait, up to the limit. None where it does not say."""
    wait_match = None if wait_preference is None else _WAIT_PATTERN.search(wait_preference)
    return None if wait_match is None else min(int(wait_match[1]), MAX_WAIT_SECONDS)


def namespace_key(idempotency_key: str | None, key_purpose: str = "") -> str | None:
    """Prefix an idempotency key, which keeps it apart from those of other triggers, and remove quotes around it."""
    if idempotency_key is None:
        return None
    quoted_match = _QUOTED_KEY_PATTERN.fullmatch(idempotency_key.strip())
    return f"rest:{key_purpose}{quoted_match[1] if quoted_match else idempotency_key.strip()}"


STARTED_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The run ended within the time that the client preferred to wait.",
        "headers": {
            "Location": {"description": "The address of the run.", "schema": {"type": "string"}},
            "Preference-Applied": {"schema": {"type": "string"}},
        },
    },
    202: {
        "description": "The run continues, or waits for somebody.",
        "model": RunState,
        "headers": {
            "Location": {"description": "The address of the run.", "schema": {"type": "string"}},
            "Preference-Applied": {"schema": {"type": "string"}},
        },
    },
}


def build_tool_schemas(registry: Registry) -> dict[str, Any]:
    """Return the schemas that the operations of the tools refer to, each under its tool's name."""
    return {
        f"{tool.name}.{schema_part}.{definition_name}": _move_references(
            definition_schema, tool.name, schema_part
        )
        for tool in registry.tools.values()
        for schema_part, full_schema in _list_schema_parts(tool)
        for definition_name, definition_schema in full_schema.get("$defs", {}).items()
    }


def _add_start_route(router: APIRouter, tool: CompositeTool, runs: Runs, run_responder: RunResponder) -> None:
    async def start_run(
        request: Request,
        response: Response,
        caller: ApiCaller,
        idempotency_key: IdempotencyKey = None,
        prefer: Prefer = None,
    ) -> RunState:
        arguments = await _read_arguments(request)
        started_run = await runs.starter.start_or_attach(
            tool.name, arguments, caller, idempotency_key=namespace_key(idempotency_key)
        )
        return await run_responder.answer_started_run(started_run, caller, prefer, response)

    result_schema = (
        {} if tool.output_schema is None else _drop_definitions(tool.output_schema, tool.name, "output")
    )
    response_schema = {
        "allOf": [
            {"$ref": "#/components/schemas/RunState"},
            {"type": "object", "properties": {"result": {"anyOf": [result_schema, {"type": "null"}]}}},
        ]
    }
    responses = {
        status_code: dict(response_object) for status_code, response_object in STARTED_RESPONSES.items()
    }
    responses[200]["content"] = {"application/json": {"schema": response_schema}}
    request_body = {
        "required": tool.input_type is not None,
        "content": {"application/json": {"schema": _drop_definitions(tool.input_schema, tool.name, "input")}},
    }
    router.add_api_route(
        f"/tools/{tool.name}/runs",
        start_run,
        methods=["POST"],
        operation_id=f"run_{tool.name}",
        summary=tool.declaration.title,
        description=tool.description,
        response_model=RunState,
        responses={**responses, **describe_problems(403, 404, 422)},
        openapi_extra={"requestBody": request_body},
    )


async def _read_arguments(request: Request) -> dict[str, Any]:
    request_body = await request.body()
    try:
        arguments = json.loads(request_body or b"{}")
    except (ValueError, RecursionError) as error:
        detail = "The body cannot be read: send a JSON object in UTF-8."
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "request_unreadable", detail) from error
    if not isinstance(arguments, dict):
        raise ArgumentsInvalid("The arguments of a tool are one JSON object.")
    return arguments


def _to_tool_description(tool: CompositeTool, registry: Registry) -> ToolDescription:
    declaration = tool.declaration
    return ToolDescription(
        name=tool.name,
        title=declaration.title,
        description=tool.description,
        input_schema=tool.input_schema,
        output_schema=tool.output_schema,
        read_only=declaration.is_read_only,
        destructive=declaration.is_destructive,
        idempotent=declaration.is_idempotent,
        connections=[
            ConnectionUsed(name=connection_need.connection_name, scopes=list(connection_need.scopes))
            for connection_need in registry.needs[tool.name]
        ],
    )


def _list_schema_parts(tool: CompositeTool) -> list[tuple[str, dict[str, Any]]]:
    output_part = [] if tool.output_schema is None else [("output", tool.output_schema)]
    return [("input", tool.input_schema), *output_part]


def _drop_definitions(schema: Mapping[str, Any], tool_name: str, schema_part: str) -> Any:
    return _move_references(
        {
            schema_keyword: keyword_value
            for schema_keyword, keyword_value in schema.items()
            if schema_keyword != "$defs"
        },
        tool_name,
        schema_part,
    )


def _move_references(schema: Any, tool_name: str, schema_part: str) -> Any:
    """Rewrite the references of a schema to the document's components instead of definitions of its own."""
    match schema:
        case dict():
            return {
                schema_keyword: _move_references(keyword_value, tool_name, schema_part)
                for schema_keyword, keyword_value in schema.items()
            }
        case list():
            return [_move_references(schema_item, tool_name, schema_part) for schema_item in schema]
        case str() if schema.startswith("#/$defs/"):
            return f"#/components/schemas/{tool_name}.{schema_part}.{schema.removeprefix('#/$defs/')}"
        case _:
            return schema
