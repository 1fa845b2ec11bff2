"""Declares actions. Workflow code may import this module."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from temporalio import activity

P = ParamSpec("P")
R = TypeVar("R")

_DEFINITION_ATTRIBUTE = "__byline_action__"


@dataclass(frozen=True, slots=True)
class ActionDefinition:
    """The declaration of an action: wire name, its one connection, required scopes, and whether it only reads."""

    name: str
    connection_name: str
    scopes: tuple[str, ...]
    reads_only: bool


def action(
    name: str, *, connection: str, scopes: tuple[str, ...] = (), reads_only: bool = False
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """Make an activity that acts on the upstream of one connection.

    `name` is the activity's wire name and must never change while runs that use it are open. `scopes` are the scopes
    that the action requires. A grant that lacks one of them is widened before the action starts. `reads_only` says that
    the action changes nothing upstream: its requests that may change something are refused. Tools with `read_only`,
    prompts and resources may only use actions with `reads_only`.
    """

    def declare_action(activity_function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        declared_activity = activity.defn(name=name)(activity_function)
        setattr(
            declared_activity, _DEFINITION_ATTRIBUTE, ActionDefinition(name, connection, scopes, reads_only)
        )
        return declared_activity

    return declare_action


def find_action_definition(activity_function: object) -> ActionDefinition | None:
    """Return the declaration of an action, or None for an activity that uses no upstream."""
    action_definition = getattr(activity_function, _DEFINITION_ATTRIBUTE, None)
    return action_definition if isinstance(action_definition, ActionDefinition) else None
