"""Handle tools/list: the tools that policy and token allow a principal to call, sorted, with their metadata."""

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, Icon, ListToolsResult, PaginatedRequestParams, ToolAnnotations
from mcp_types import Tool as ListedTool

from engine.runs.runs import Caller, Runs
from engine.tools.registry import CompositeTool
from gateway.mcp.mcp_request import McpRequest
from gateway.mcp.own_tools import CALL_TOOL, CHECK_TOOL, COLLECT_TOOL, SEARCH_TOOL


class ToolListHandler:
    """The handler of tools/list at every endpoint."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    async def list_tools(self, request: McpRequest[PaginatedRequestParams | None]) -> ListToolsResult:
        """List the tools that the caller may call at this endpoint, sorted by name, and the gateway's own tools."""
        refuse_cursor(request.params)
        listed_tools = (
            [SEARCH_TOOL, CALL_TOOL]
            if request.endpoint.has_search
            else await self.list_callable_tools(request.caller)
        )
        return ListToolsResult(tools=[*listed_tools, CHECK_TOOL, COLLECT_TOOL])

    async def list_callable_tools(self, caller: Caller) -> list[ListedTool]:
        """List the composite tools that the caller may call."""
        return [_to_listed_tool(tool) for tool in await self._runs.list_allowed_tools(caller)]


def refuse_cursor(request_params: PaginatedRequestParams | None) -> None:
    """Refuse a cursor, since each list has one page only; raises MCPError."""
    if request_params is not None and request_params.cursor is not None:
        raise MCPError(INVALID_PARAMS, "There is no such page: leave the cursor out.")


def _to_listed_tool(tool: CompositeTool) -> ListedTool:
    declaration = tool.declaration
    return ListedTool(
        name=tool.name,
        title=declaration.title,
        description=tool.description,
        input_schema=tool.input_schema,
        output_schema=tool.output_schema,
        icons=[
            Icon(src=icon.src, mime_type=icon.mime_type, sizes=list(icon.sizes)) for icon in declaration.icons
        ]
        or None,
        annotations=ToolAnnotations(
            title=declaration.title,
            read_only_hint=declaration.is_read_only,
            destructive_hint=declaration.is_destructive,
            idempotent_hint=declaration.is_idempotent,
            open_world_hint=declaration.is_open_world,
        ),
    )
