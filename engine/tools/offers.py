"""The decorators that offer a workflow as a tool, a prompt or a resource. Workflow code may import this module.

Each call of an offer is a run in the caller's name, with the same waits and the same audit trail.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

C = TypeVar("C", bound=type)

_DECLARATION_ATTRIBUTE = "__byline_offer__"

ClientCapability = Literal["sampling", "roots", "elicitation"]
TaskSupport = Literal["optional", "required", "forbidden"]


@dataclass(frozen=True, slots=True)
class Icon:
    """An image that a client may show: its URL and, if known, its MIME type and its sizes, such as `48x48`."""

    src: str
    mime_type: str | None = None
    sizes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolDeclaration:
    """The declaration of a tool: title, MCP annotations, icons, how clients may call it, and connections by name."""

    title: str
    is_read_only: bool
    is_destructive: bool
    is_idempotent: bool
    is_open_world: bool
    icons: tuple[Icon, ...]
    is_long: bool
    task_support: TaskSupport
    on_cancel: Literal["go_on", "cancel"]
    required_capabilities: tuple[ClientCapability, ...]
    connection_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PromptDeclaration:
    """The declaration of a prompt, which only reads."""

    is_read_only: ClassVar[bool] = True

    title: str
    connection_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ResourceDeclaration:
    """The declaration of a resource, which only reads; `uri` is a template if it contains variables."""

    is_read_only: ClassVar[bool] = True

    title: str
    uri: str
    mime_type: str | None
    connection_names: tuple[str, ...]


OfferDeclaration = ToolDeclaration | PromptDeclaration | ResourceDeclaration


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
    uses: tuple[str, ...] = (),
) -> Callable[[C], C]:
    """Offer a workflow as a composite tool; place it above `@workflow.defn(name=…)`, whose name is the tool's name.

    The class's docstring is the description that models read. The run method takes one pydantic model or dataclass, or
    nothing, and returns one, or nothing. Their JSON schemas become the tool's schemas. A tool that returns `Content`
    has no output schema. The first four hints are MCP's tool annotations. With `read_only`, an action that does
    not declare `reads_only` is refused in each run of the tool.

    `long`: a client that supports MCP tasks gets a task at once. `task`: whether a client may, must or cannot get one.
    `on_cancel`: whether a run goes on or is cancelled when its caller cancels the call. `requires`: the capabilities
    that a client needs. `uses`: the names of connections that Byline cannot find in the code of the workflow and its
    package, such as those of actions that another package starts.
    """
    return _attach_declaration(
        ToolDeclaration(
            title,
            read_only,
            destructive,
            idempotent,
            open_world,
            icons,
            long,
            task,
            on_cancel,
            requires,
            uses,
        )
    )


def prompt(*, title: str, uses: tuple[str, ...] = ()) -> Callable[[C], C]:
    """Offer a workflow as a prompt; place it above `@workflow.defn(name=…)`, whose name is the prompt's name.

    The run method takes nothing, or one pydantic model or dataclass whose fields are all strings or choices among
    strings. It returns `Messages`. A prompt only reads, as a tool with `read_only` does. `uses` is as for `tool`.
    """
    return _attach_declaration(PromptDeclaration(title, uses))


def resource(
    *, uri: str, title: str, mime_type: str | None = None, uses: tuple[str, ...] = ()
) -> Callable[[C], C]:
    """Offer a workflow as a resource; place it above `@workflow.defn(name=…)`, whose name is the resource's name.

    `uri` is fixed, or a template with variables in braces, such as `crm://accounts/{account_id}` (RFC 6570, level 1).
    The run method takes nothing, or one pydantic model or dataclass with exactly these variables as string fields. It
    returns a `Document`. A resource only reads, as a tool with `read_only` does. `uses` is as for `tool`.
    """
    return _attach_declaration(ResourceDeclaration(title, uri, mime_type, uses))


def find_offer_declaration(workflow_class: type) -> OfferDeclaration | None:
    """Return the declaration of an offered workflow, or None for a workflow that only other workflows start."""
    offer_declaration = vars(workflow_class).get(_DECLARATION_ATTRIBUTE)
    return offer_declaration if isinstance(offer_declaration, OfferDeclaration) else None


def _attach_declaration(declaration: OfferDeclaration) -> Callable[[C], C]:
    def attach_to_class(workflow_class: C) -> C:
        setattr(workflow_class, _DECLARATION_ATTRIBUTE, declaration)
        return workflow_class

    return attach_to_class
