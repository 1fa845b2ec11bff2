"""All names that a tool imports from Byline. Everything else in a tool is ordinary Temporal code.

Workflow code may import this package: it loads no I/O. Tests of tools import `byline.testing`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from byline.http import HttpAnswer, HttpRequest, http_action
from byline.mcp import ToolAnswer, ToolCall, mcp_action
from engine.sdk import (
    Audio,
    Content,
    Document,
    Embedded,
    Icon,
    Image,
    Link,
    Message,
    Messages,
    Person,
    Root,
    Text,
    action,
    approval,
    ask,
    changed,
    progress,
    prompt,
    resource,
    roots,
    sample,
    tool,
    upstream,
)

if TYPE_CHECKING:
    from engine.actions.upstream import Upstream

__all__ = [
    "Audio",
    "Content",
    "Document",
    "Embedded",
    "HttpAnswer",
    "HttpRequest",
    "Icon",
    "Image",
    "Link",
    "Message",
    "Messages",
    "Person",
    "Root",
    "Text",
    "ToolAnswer",
    "ToolCall",
    "Upstream",
    "action",
    "approval",
    "ask",
    "changed",
    "http_action",
    "mcp_action",
    "progress",
    "prompt",
    "resource",
    "roots",
    "sample",
    "tool",
    "upstream",
]


def __getattr__(name: str) -> Any:
    """Return `Upstream`, which is the class of what `upstream()` returns.

    It is loaded when its name is used, as its module performs I/O and workflow code may not load that.
    """
    if name == "Upstream":
        return import_module("engine.actions.upstream").Upstream
    raise AttributeError(f"module 'byline' has no attribute '{name}'")
