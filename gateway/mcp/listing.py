"""Handle tools/list: the tools that policy and token allow a principal to call, sorted, with their metadata."""

from typing import Final

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, Icon, ListToolsResult, PaginatedRequestParams, ToolAnnotations
from mcp_types import Tool as ListedTool

from engine.registry import Tool
from gateway.mcp.checking import CHECK_TOOL
from gateway.mcp.clients import Context
from gateway.mcp.endpoints import Endpoint
from gateway.mcp.results import COLLECT
from gateway.mcp.search import CALL_TOOL, SEARCH_TOOL
from gateway.runs.runs import Caller, Runs

COLLECT_TOOL: Final = ListedTool(
    name=COLLECT,
    title="Collect the outcome of a run",
    description="Tells what became of a run that an earlier call started and that was not finished then.",
    input_schema={
        "type": "object",
        "properties": {"run_id": {"type": "string", "description": "The run id that an earlier call gave."}},
        "required": ["run_id"],
        "additionalProperties": False,
    },
    annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
)
_OWN: Final = {tool.name: tool.input_schema for tool in (COLLECT_TOOL, CHECK_TOOL, SEARCH_TOOL, CALL_TOOL)}


class Listing:
    """The handler of tools/list at every endpoint."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    async def listed(
        self, context: Context, params: PaginatedRequestParams | None, at: Endpoint
    ) -> ListToolsResult:
        """List the tools that the caller may call at this endpoint, sorted by name, and the gateway's own tools."""
        del context
        refuse_pages(params)
        caller = at.caller()
        tools = [SEARCH_TOOL, CALL_TOOL] if at.searches else await self.tools(caller)
        return ListToolsResult(tools=[*tools, CHECK_TOOL, COLLECT_TOOL])

    async def tools(self, caller: Caller) -> list[ListedTool]:
        """List the composite tools that the caller may call."""
        return [_listed(tool) for tool in await self._runs.allowed(caller)]


def refuse_pages(params: PaginatedRequestParams | None) -> None:
    """Refuse a cursor, since each list has one page only; raises MCPError."""
    if params is not None and params.cursor is not None:
        raise MCPError(INVALID_PARAMS, "There is no such page: leave the cursor out.")


def own_schema(name: str) -> dict[str, object] | None:
    """Return the input schema of one of the gateway's own tools, or None for another name."""
    return _OWN.get(name)


def _listed(tool: Tool) -> ListedTool:
    declared = tool.declaration
    return ListedTool(
        name=tool.name,
        title=declared.title,
        description=tool.description,
        input_schema=tool.input_schema,
        output_schema=tool.output_schema,
        icons=[
            Icon(src=icon.src, mime_type=icon.mime_type, sizes=list(icon.sizes)) for icon in declared.icons
        ]
        or None,
        annotations=ToolAnnotations(
            title=declared.title,
            read_only_hint=declared.read_only,
            destructive_hint=declared.destructive,
            idempotent_hint=declared.idempotent,
            open_world_hint=declared.open_world,
        ),
    )
