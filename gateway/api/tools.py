"""REST routes for tools: those that the caller may call, and one documented operation a tool, which starts a run."""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel, Field

from engine.errors import ArgumentsInvalid, ToolUnknown
from engine.registry import Registry, Tool
from gateway.api.callers import Calling
from gateway.api.problems import Refused, problems
from gateway.protected_resource import API_PATH
from gateway.runs.runs import Caller, Runs, Serving
from gateway.runs.states import GOES_ON, RunState, RunStates

LONGEST_WAIT_SECONDS: Final = 60
_WAIT: Final = re.compile(r"(?:^|,)\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?:[;,]|$)", re.IGNORECASE)
_STRUCTURED: Final = re.compile(r'"([^"\\]*)"')

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x20-\x7e]+$",
        description="With the same key, the same call is made once, however often it is sent.",
    ),
]
Prefer = Annotated[
    str | None,
    Header(
        description=f"`wait=N`: wait up to N seconds ({LONGEST_WAIT_SECONDS} at most) for the run to end (RFC 7240)."
    ),
]


class ConnectionUsed(BaseModel):
    """A connection that some step of a tool may use."""

    name: str
    scopes: list[str] = Field(description="The scopes that its actions declare besides the connection's own.")


class ToolDescription(BaseModel):
    """A tool as builders declared it, and as its code shows."""

    name: str
    title: str
    description: str
    input_schema: dict[str, Any] = Field(description="JSON Schema of its arguments.")
    output_schema: dict[str, Any] | None = Field(description="JSON Schema of its result.")
    read_only: bool
    destructive: bool
    idempotent: bool
    connections: list[ConnectionUsed] = Field(description="What it may ask you to sign in to.")


class ToolList(BaseModel):
    """Every tool that the caller may call."""

    items: list[ToolDescription]


def routes(registry: Registry, runs: Runs, states: RunStates) -> APIRouter:
    """Build the router of `/tools`, `/tools/{tool}` and `/tools/{tool}/runs`."""
    router = APIRouter(tags=["tools"])
    starting = Starting(runs, states)

    @router.get("/tools", summary="List the tools that you may call")
    async def list_tools(caller: Calling) -> ToolList:
        return ToolList(items=[_described(tool, registry) for tool in await runs.allowed(caller)])

    @router.get("/tools/{tool}", summary="Get one tool", responses=problems(403, 404, 422))
    async def get_tool(caller: Calling, tool: Annotated[str, Path(max_length=200)]) -> ToolDescription:
        found = registry.tool(tool)
        await runs.allow(tool, caller)
        return _described(found, registry)

    for tool in registry.tools.values():
        _add_start(router, tool, runs, starting)

    @router.post("/tools/{tool}/runs", include_in_schema=False)
    async def start_unknown(caller: Calling, tool: str) -> None:
        del caller
        raise ToolUnknown(f"There is no tool '{tool}'. List the tools to see which there are.")

    return router


class Starting:
    """Answers a request that started a run, or attached to one that an earlier request started."""

    def __init__(self, runs: Runs, states: RunStates) -> None:
        self._runs = runs
        self._states = states

    async def answer(
        self, serving: Serving, caller: Caller, prefer: str | None, response: Response
    ) -> RunState:
        """Wait as the client prefers, and return the run's state: 200 where it ended, 202 where it goes on."""
        seconds = wanted_wait(prefer)
        if seconds is not None:
            response.headers["Preference-Applied"] = f"wait={seconds}"
            await self._runs.outcome(serving.run_id, within=seconds)
        run = await self._runs.owned(serving.run_id, caller)
        state = await self._states.of(run, caller.principal)
        response.headers["Location"] = f"{API_PATH}/runs/{run.id}"
        if state.status in GOES_ON:
            response.status_code = HTTPStatus.ACCEPTED
        else:
            self._runs.answered(run.id)
        return state


def wanted_wait(prefer: str | None) -> int | None:
    """Read how many seconds the client prefers to wait, up to the limit. None where it does not say."""
    found = None if prefer is None else _WAIT.search(prefer)
    return None if found is None else min(int(found[1]), LONGEST_WAIT_SECONDS)


def namespaced(key: str | None, purpose: str = "") -> str | None:
    """Prefix an idempotency key, which keeps it apart from those of other triggers, and remove quotes around it."""
    if key is None:
        return None
    structured = _STRUCTURED.fullmatch(key.strip())
    return f"rest:{purpose}{structured[1] if structured else key.strip()}"


STARTED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The run ended within the time that the client preferred to wait.",
        "headers": {
            "Location": {"description": "The run.", "schema": {"type": "string"}},
            "Preference-Applied": {"schema": {"type": "string"}},
        },
    },
    202: {
        "description": "The run goes on, or waits for somebody.",
        "model": RunState,
        "headers": {
            "Location": {"description": "The run.", "schema": {"type": "string"}},
            "Preference-Applied": {"schema": {"type": "string"}},
        },
    },
}


def schemas(registry: Registry) -> dict[str, Any]:
    """Return the schemas that the operations of the tools refer to, each under its tool's name."""
    return {
        f"{tool.name}.{part}.{name}": _moved(schema, tool.name, part)
        for tool in registry.tools.values()
        for part, whole in _parts(tool)
        for name, schema in whole.get("$defs", {}).items()
    }


def _add_start(router: APIRouter, tool: Tool, runs: Runs, starting: Starting) -> None:
    async def start(
        request: Request,
        response: Response,
        caller: Calling,
        idempotency_key: IdempotencyKey = None,
        prefer: Prefer = None,
    ) -> RunState:
        arguments = await _arguments(request)
        serving = await runs.call(tool.name, arguments, caller, key=namespaced(idempotency_key))
        return await starting.answer(serving, caller, prefer, response)

    result = {} if tool.output_schema is None else _whole(tool.output_schema, tool.name, "output")
    answered = {
        "allOf": [
            {"$ref": "#/components/schemas/RunState"},
            {"type": "object", "properties": {"result": {"anyOf": [result, {"type": "null"}]}}},
        ]
    }
    responses = {status: dict(answer) for status, answer in STARTED.items()}
    responses[200]["content"] = {"application/json": {"schema": answered}}
    body = {
        "required": tool.input_type is not None,
        "content": {"application/json": {"schema": _whole(tool.input_schema, tool.name, "input")}},
    }
    router.add_api_route(
        f"/tools/{tool.name}/runs",
        start,
        methods=["POST"],
        operation_id=f"run_{tool.name}",
        summary=tool.declaration.title,
        description=tool.description,
        response_model=RunState,
        responses={**responses, **problems(403, 404, 422)},
        openapi_extra={"requestBody": body},
    )


async def _arguments(request: Request) -> dict[str, Any]:
    body = await request.body()
    try:
        arguments = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        detail = "The body cannot be read: send a JSON object in UTF-8."
        raise Refused(HTTPStatus.BAD_REQUEST, "request_unreadable", detail) from error
    if not isinstance(arguments, dict):
        raise ArgumentsInvalid("The arguments of a tool are one JSON object.")
    return arguments


def _described(tool: Tool, registry: Registry) -> ToolDescription:
    declared = tool.declaration
    return ToolDescription(
        name=tool.name,
        title=declared.title,
        description=tool.description,
        input_schema=tool.input_schema,
        output_schema=tool.output_schema,
        read_only=declared.read_only,
        destructive=declared.destructive,
        idempotent=declared.idempotent,
        connections=[
            ConnectionUsed(name=need.connection, scopes=list(need.scopes))
            for need in registry.needs[tool.name]
        ],
    )


def _parts(tool: Tool) -> list[tuple[str, dict[str, Any]]]:
    output = [] if tool.output_schema is None else [("output", tool.output_schema)]
    return [("input", tool.input_schema), *output]


def _whole(schema: Mapping[str, Any], tool: str, part: str) -> Any:
    return _moved({key: value for key, value in schema.items() if key != "$defs"}, tool, part)


def _moved(schema: Any, tool: str, part: str) -> Any:
    """Rewrite the references of a schema to the document's components instead of definitions of its own."""
    match schema:
        case dict():
            return {key: _moved(value, tool, part) for key, value in schema.items()}
        case list():
            return [_moved(value, tool, part) for value in schema]
        case str() if schema.startswith("#/$defs/"):
            return f"#/components/schemas/{tool}.{part}.{schema.removeprefix('#/$defs/')}"
        case _:
            return schema
