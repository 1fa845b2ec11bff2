"""The tools `byline_search` and `byline_call` of the endpoint where tools are searched for instead of listed."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mcp_types import Tool as ListedTool
from mcp_types import ToolAnnotations

from engine.errors import ArgumentsInvalid

SEARCH: Final = "byline_search"
CALL: Final = "byline_call"
_MOST: Final = 10
_WORD: Final = re.compile(r"[^\W_]+")

SEARCH_TOOL: Final = ListedTool(
    name=SEARCH,
    title="Search for tools",
    description=f"Finds up to {_MOST} tools that do what the query says, with their input schemas.",
    input_schema={
        "type": "object",
        "properties": {"query": {"type": "string", "description": "What you want to do, in a few words."}},
        "required": ["query"],
        "additionalProperties": False,
    },
    annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
)
CALL_TOOL: Final = ListedTool(
    name=CALL,
    title="Call a tool",
    description=f"Calls a tool that {SEARCH} found.",
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


def found(arguments: Mapping[str, Any], tools: Sequence[ListedTool]) -> list[ListedTool]:
    """Return the tools that match a query best; raises ArgumentsInvalid.

    A word counts most in a tool's name, less in its title and least in its description.
    """
    query = arguments.get("query")
    if not isinstance(query, str) or len(arguments) != 1:
        raise ArgumentsInvalid(f"{SEARCH} takes one argument, query: what you want to do, in a few words.")
    words = _words(query)
    scored = [(_score(tool, words), tool) for tool in tools]
    best = sorted((each for each in scored if each[0]), key=lambda each: (-each[0], each[1].name))
    return [tool for _, tool in best[:_MOST]]


def _score(tool: ListedTool, words: Counter[str]) -> int:
    weights = ((tool.name, 4), (tool.title or "", 3), (tool.description or "", 1))
    return sum(
        weight * min(times, 2)
        for text, weight in weights
        for word, times in _words(text).items()
        if any(word.startswith(wanted) or wanted.startswith(word) for wanted in words)
    )


def _words(text: str) -> Counter[str]:
    return Counter(word for word in _WORD.findall(text.lower().replace("_", " ")) if len(word) > 2)
