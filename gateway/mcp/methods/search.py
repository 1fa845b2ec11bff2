"""The tools `byline_search` and `byline_call` of the endpoint where tools are searched for instead of listed."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mcp_types import Tool as ListedTool
from mcp_types import ToolAnnotations

from engine.errors import ArgumentsInvalid

SEARCH_TOOL_NAME: Final = "byline_search"
CALL_TOOL_NAME: Final = "byline_call"
_MAX_FOUND_TOOLS: Final = 10
_WORD_PATTERN: Final = re.compile(r"[^\W_]+")

SEARCH_TOOL: Final = ListedTool(
    name=SEARCH_TOOL_NAME,
    title="Search for tools",
    description=f"Finds up to {_MAX_FOUND_TOOLS} tools that do what the query says, with their input schemas.",
    input_schema={
        "type": "object",
        "properties": {"query": {"type": "string", "description": "What you want to do, in a few words."}},
        "required": ["query"],
        "additionalProperties": False,
    },
    annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
)
CALL_TOOL: Final = ListedTool(
    name=CALL_TOOL_NAME,
    title="Call a tool",
    description=f"Calls a tool that {SEARCH_TOOL_NAME} found.",
    input_schema={
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "The name of the tool."},
            "arguments": {
                "type": "object",
                "description": "Its arguments, as its input schema asks for them.",
            },
        },
        "required": ["name"],
        "additionalProperties": False,
    },
    annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True),
)


def search_tools(arguments: Mapping[str, Any], tools: Sequence[ListedTool]) -> list[ListedTool]:
    """Return the tools that match a query best; raises ArgumentsInvalid.

    A word counts most in a tool's name, less in its title and least in its description.
    """
    search_query = arguments.get("query")
    if not isinstance(search_query, str) or len(arguments) != 1:
        raise ArgumentsInvalid(
            f"{SEARCH_TOOL_NAME} takes one argument, query: what you want to do, in a few words."
        )
    query_words = _count_words(search_query)
    scored_tools = [(_score_tool(tool, query_words), tool) for tool in tools]
    best_matches = sorted(
        (scored_tool for scored_tool in scored_tools if scored_tool[0]),
        key=lambda scored_tool: (-scored_tool[0], scored_tool[1].name),
    )
    return [tool for _, tool in best_matches[:_MAX_FOUND_TOOLS]]


def _score_tool(tool: ListedTool, query_words: Counter[str]) -> int:
    weighted_texts = ((tool.name, 4), (tool.title or "", 3), (tool.description or "", 1))
    return sum(
        weight * min(occurrences, 2)
        for text, weight in weighted_texts
        for word, occurrences in _count_words(text).items()
        if any(word.startswith(query_word) or query_word.startswith(word) for query_word in query_words)
    )


def _count_words(text: str) -> Counter[str]:
    return Counter(word for word in _WORD_PATTERN.findall(text.lower().replace("_", " ")) if len(word) > 2)
