"""The tool `byline_check`, which lists the sign-ins that a call of another tool would wait for. It starts no run."""

from collections.abc import Mapping
from typing import Any, Final

from mcp_types import CallToolResult, TextContent, ToolAnnotations
from mcp_types import Tool as ListedTool

from engine.errors import ArgumentsInvalid
from engine.registry import Registry
from engine.services import Services
from gateway.runs.readiness import readiness_of
from gateway.runs.runs import Caller, Runs

CHECK: Final = "byline_check"

CHECK_TOOL: Final = ListedTool(
    name=CHECK,
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


class Checking:
    """Handles calls of `byline_check`."""

    def __init__(self, services: Services, registry: Registry, runs: Runs) -> None:
        self._services = services
        self._registry = registry
        self._runs = runs

    async def check(self, caller: Caller, arguments: Mapping[str, Any]) -> CallToolResult:
        """Describe what the caller's call would wait for; raises ArgumentsInvalid, ToolUnknown or NotAllowed."""
        tool = arguments.get("tool")
        if not isinstance(tool, str) or len(arguments) != 1:
            raise ArgumentsInvalid(
                f"{CHECK} takes one argument, tool: the name of the tool that you would call."
            )
        found = await readiness_of(self._services, self._registry, self._runs, caller, tool)
        lines = [each.detail for each in found.connections]
        if found.url is None:
            lines.append(f"A call of {found.tool} would wait for no sign-in.")
        else:
            lines.append(
                f"Show the user this link, where they connect all of it before you call: {found.url}"
            )
        text = TextContent(text="\n".join(lines))
        return CallToolResult(content=[text], structured_content=found.model_dump(mode="json"))
