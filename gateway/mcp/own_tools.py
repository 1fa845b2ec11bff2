"""The gateway's own tools, as they are listed beside the composite tools: their names, texts and input schemas."""

from collections.abc import Mapping
from typing import Any, Final

from mcp_types import Tool as ListedTool
from mcp_types import ToolAnnotations

COLLECT_TOOL_NAME: Final = "byline_collect"
CHECK_TOOL_NAME: Final = "byline_check"
SEARCH_TOOL_NAME: Final = "byline_search"
CALL_TOOL_NAME: Final = "byline_call"

MAX_FOUND_TOOLS: Final = 10
"""The maximum number of tools that one search finds."""


def _describe_argument(description: str, *, value_type: str = "string") -> dict[str, str]:
    return {"type": value_type, "description": description}


def _build_input_schema(*required_names: str, **properties: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required_names),
        "additionalProperties": False,
    }


_READ_ONLY: Final = ToolAnnotations(read_only_hint=True, open_world_hint=False)

COLLECT_TOOL: Final = ListedTool(
    name=COLLECT_TOOL_NAME,
    title="Collect the outcome of a run",
    description="Tells what became of a run that an earlier call started and that was not finished then.",
    input_schema=_build_input_schema(
        "run_id", run_id=_describe_argument("The run id that an earlier call gave.")
    ),
    annotations=_READ_ONLY,
)
CHECK_TOOL: Final = ListedTool(
    name=CHECK_TOOL_NAME,
    title="Check what a tool waits for",
    description="Says, before you call a tool, whether the user has to sign in first, and where. It starts nothing.",
    input_schema=_build_input_schema("tool", tool=_describe_argument("The name of the tool.")),
    annotations=_READ_ONLY,
)
SEARCH_TOOL: Final = ListedTool(
    name=SEARCH_TOOL_NAME,
    title="Search for tools",
    description=f"Finds up to {MAX_FOUND_TOOLS} tools that do what the query says, with their input schemas.",
    input_schema=_build_input_schema(
        "query", query=_describe_argument("What you want to do, in a few words.")
    ),
    annotations=_READ_ONLY,
)
CALL_TOOL: Final = ListedTool(
    name=CALL_TOOL_NAME,
    title="Call a tool",
    description=f"Calls a tool that {SEARCH_TOOL_NAME} found.",
    input_schema=_build_input_schema(
        "name",
        name=_describe_argument("The name of the tool."),
        arguments=_describe_argument(
            "Its arguments, as its input schema asks for them.", value_type="object"
        ),
    ),
    annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True),
)

_INPUT_SCHEMAS: Final[Mapping[str, dict[str, Any]]] = {
    tool.name: tool.input_schema for tool in (COLLECT_TOOL, CHECK_TOOL, SEARCH_TOOL, CALL_TOOL)
}


def find_own_input_schema(tool_name: str) -> Mapping[str, Any] | None:
    """Return the input schema of one of the gateway's own tools, or None for another name."""
    return _INPUT_SCHEMAS.get(tool_name)
