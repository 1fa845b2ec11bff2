"""The search of `byline_search`, at the endpoint where tools are searched for instead of listed."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mcp_types import Tool as ListedTool

from engine.errors import ArgumentsInvalid
from gateway.mcp.own_tools import MAX_FOUND_TOOLS, SEARCH_TOOL_NAME

_WORD_PATTERN: Final = re.compile(r"[^\W_]+")


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
    return [tool for _, tool in best_matches[:MAX_FOUND_TOOLS]]


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
