"""What a workflow declares to be offered as a tool, a prompt or a resource; safe to import from workflow code.

Each of them is a run in the name of whoever asks for it, with the same waits and the same trail.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

C = TypeVar("C", bound=type)

_ATTRIBUTE = "__byline_offer__"

ClientCapability = Literal["sampling", "roots", "elicitation"]
TaskSupport = Literal["optional", "required", "forbidden"]


@dataclass(frozen=True, slots=True)
class Icon:
    """An image that a client may show: its address, and where they are known its type and sizes, such as `48x48`."""

    src: str
    mime_type: str | None = None
    sizes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolDeclaration:
    """How a tool presents itself, and how it wants to be called."""

    title: str
    read_only: bool
    destructive: bool
    idempotent: bool
    open_world: bool
    icons: tuple[Icon, ...]
    long: bool
    task: TaskSupport
    on_cancel: Literal["go_on", "cancel"]
    requires: tuple[ClientCapability, ...]


@dataclass(frozen=True, slots=True)
class PromptDeclaration:
    """How a prompt presents itself."""

    title: str


@dataclass(frozen=True, slots=True)
class ResourceDeclaration:
    """How a resource presents itself, and its URI, which is a template where it has variables."""

    title: str
    uri: str
    mime_type: str | None


Declaration = ToolDeclaration | PromptDeclaration | ResourceDeclaration


def tool(
    *,
    title: str,
    read_only: bool = False,
    destructive: bool = True,
    idempotent: bool = False,
    open_world: bool = True,
    icons: tuple[Icon, ...] = (),
    long: bool = False,
    task: TaskSupport = "optional",
    on_cancel: Literal["go_on", "cancel"] = "go_on",
    requires: tuple[ClientCapability, ...] = (),
) -> Callable[[C], C]:
    """Offer a workflow as a composite tool; goes above `@workflow.defn(name=…)`, whose name is the tool's.

    The class's docstring is the description that models read. The run method takes one pydantic model or dataclass,
    or nothing, and returns one, or nothing: they become the tool's schemas. One that returns `Content` has no output
    schema. The first four hints are those of MCP's tool annotations; with `read_only`, each action has to be one that
    only reads.

    `long`: a client that knows tasks is given one at once. `task`: whether a client may, must or cannot be given one.
    `on_cancel`: what becomes of a run whose caller cancels the call. `requires`: what a client has to be capable of.
    """
    return _declared(
        ToolDeclaration(
            title, read_only, destructive, idempotent, open_world, icons, long, task, on_cancel, requires
        )
    )


def prompt(*, title: str) -> Callable[[C], C]:
    """Offer a workflow as a prompt; goes above `@workflow.defn(name=…)`, whose name is the prompt's.

    The run method takes one pydantic model or dataclass whose fields are all text, or choices among texts, or nothing,
    and returns `Messages`.
    """
    return _declared(PromptDeclaration(title))


def resource(*, uri: str, title: str, mime_type: str | None = None) -> Callable[[C], C]:
    """Offer a workflow as a resource; goes above `@workflow.defn(name=…)`, whose name is the resource's.

    `uri` is fixed, or a template with variables in braces, such as `crm://accounts/{account_id}` (RFC 6570, level 1).
    The run method takes one pydantic model or dataclass with exactly these variables as text, or nothing, and returns
    a `Document`.
    """
    return _declared(ResourceDeclaration(title, uri, mime_type))


def declaration_of(workflow_class: type) -> Declaration | None:
    """What a workflow is offered as, or None for one that only other workflows start."""
    found = vars(workflow_class).get(_ATTRIBUTE)
    return found if isinstance(found, Declaration) else None


def _declared(declaration: Declaration) -> Callable[[C], C]:
    def declare(workflow_class: C) -> C:
        setattr(workflow_class, _ATTRIBUTE, declaration)
        return workflow_class

    return declare
