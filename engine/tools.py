"""What a composite tool declares of itself; safe to import from workflow code."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

C = TypeVar("C", bound=type)

_ATTRIBUTE = "__byline_tool__"


@dataclass(frozen=True, slots=True)
class ToolDeclaration:
    """How a tool presents itself to people and models; the hints are those of MCP's tool annotations."""

    title: str
    read_only: bool
    destructive: bool
    idempotent: bool


def tool(
    *, title: str, read_only: bool = False, destructive: bool = True, idempotent: bool = False
) -> Callable[[C], C]:
    """Offer a workflow as a composite tool; goes above `@workflow.defn(name=…)`, whose name is the tool's.

    The class's docstring is the description that models read. The run method takes one pydantic model or dataclass,
    or nothing, and returns one: they become the tool's input and output schemas.
    """

    def declare(workflow_class: C) -> C:
        setattr(workflow_class, _ATTRIBUTE, ToolDeclaration(title, read_only, destructive, idempotent))
        return workflow_class

    return declare


def declaration_of(workflow_class: type) -> ToolDeclaration | None:
    """The declaration of a tool, or None for a workflow that only other workflows start."""
    found = vars(workflow_class).get(_ATTRIBUTE)
    return found if isinstance(found, ToolDeclaration) else None
