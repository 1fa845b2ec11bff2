"""The tool `byline_check`, which lists the sign-ins that a call of another tool would wait for. It starts no run."""

from collections.abc import Mapping
from typing import Any

from mcp_types import CallToolResult, TextContent

from engine.errors import ArgumentsInvalid
from engine.runs.readiness import report_readiness
from engine.runs.runs import Caller, Runs
from engine.services import Services
from engine.tools.registry import Registry
from gateway.mcp.own_tools import CHECK_TOOL_NAME


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
