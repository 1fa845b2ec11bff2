"""The tool `byline_check`, which lists the sign-ins that a call of another tool would wait for. It starts no run."""

from collections.abc import Mapping
from typing import Any, Final

from mcp_types import CallToolResult, TextContent, ToolAnnotations
from mcp_types import Tool as ListedTool

from engine.errors import ArgumentsInvalid
from engine.runs.readiness import report_readiness
from engine.runs.runs import Caller, Runs
from engine.services import Services
from engine.tools.registry import Registry

CHECK_TOOL_NAME: Final = "byline_check"

CHECK_TOOL: Final = ListedTool(
    name=CHECK_TOOL_NAME,
    title="Check what a tool waits for",
    description="Says, before you call a tool, whether the user has to sign in first, and where. It starts nothing.",
    input_schema={
        "type": "object",
        "properties": {"tool": {"type": "string", "description": "The name of the tool."}},
        "required": ["tool"],
        "additionalProperties": False,
    },
    annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
)


class ToolCheckHandler:
    """Handles calls of `byline_check`."""

    def __init__(self, services: Services, registry: Registry, runs: Runs) -> None:
        self._services = services
        self._registry = registry
        self._runs = runs

    async def check_tool(self, caller: Caller, arguments: Mapping[str, Any]) -> CallToolResult:
        """Describe what the caller's call would wait for; raises ArgumentsInvalid, ToolUnknown or NotAllowed."""
        tool_name = arguments.get("tool")
        if not isinstance(tool_name, str) or len(arguments) != 1:
            raise ArgumentsInvalid(
                f"{CHECK_TOOL_NAME} takes one argument, tool: the name of the tool that you would call."
            )
        readiness = await report_readiness(
            self._services.readiness_checker,
            self._services.page_links,
            self._registry,
            self._runs,
            caller,
            tool_name,
        )
        text_lines = [connection_readiness.detail for connection_readiness in readiness.connections]
        if readiness.url is None:
            text_lines.append(f"A call of {readiness.tool} would wait for no sign-in.")
        else:
            text_lines.append(
                f"Show the user this link, where they connect all of it before you call: {readiness.url}"
            )
        text_content = TextContent(text="\n".join(text_lines))
        return CallToolResult(content=[text_content], structured_content=readiness.model_dump(mode="json"))
