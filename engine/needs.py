"""Finds the actions that an offer may start, and so its connections, by reading its byte code without running it."""

import dis
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import CodeType, ModuleType
from typing import Any

from temporalio import activity, workflow

from engine.actions import ActionDefinition, definition_of


@dataclass(frozen=True)
class Need:
    """One connection that an offer uses, with all scopes that its actions on this connection declare."""

    connection: str
    scopes: tuple[str, ...]


def needs_of(
    workflow_class: type, workflows: Mapping[str, type], activities: Mapping[str, Callable[..., Any]]
) -> tuple[Need, ...]:
    """Return the connections that a workflow and its children may use, by name, even in branches that never run."""
    scopes: dict[str, set[str]] = {}
    for action in actions_of(workflow_class, workflows, activities):
        scopes.setdefault(action.connection, set()).update(action.scopes)
    return tuple(Need(connection, tuple(sorted(scopes[connection]))) for connection in sorted(scopes))


def actions_of(
    workflow_class: type, workflows: Mapping[str, type], activities: Mapping[str, Callable[..., Any]]
) -> list[ActionDefinition]:
    """Return every action that the workflow and its children may start.

    A child workflow or an action that is started by name is found only if its name is a literal in the code.
    """
    named: dict[str, object] = {**activities, **workflows}
    actions: list[ActionDefinition] = []
    seen: set[int] = set()
    waiting: list[object] = [workflow_class]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        action = definition_of(found)
        if action is not None:
            actions.append(action)
        elif _is_orchestration(found, workflow_class):
            waiting.extend(_referred(found, named))
    return actions


def _is_orchestration(found: object, of: type) -> bool:
    """Return whether to read this code: any workflow, and helpers of the same package. An activity has no children."""
    if inspect.isclass(found):
        defined = workflow._Definition.from_class(found)  # noqa: SLF001 -- the SDK has no public reader
        return defined is not None or _package(found) == _package(of)
    if not inspect.isfunction(found):
        return False
    is_activity = activity._Definition.from_callable(found) is not None  # noqa: SLF001
    return not is_activity and _package(found) == _package(of)


def _package(found: object) -> str:
    return str(getattr(found, "__module__", "")).partition(".")[0]


def _referred(found: Any, named: Mapping[str, object]) -> Iterator[object]:
    if inspect.isclass(found):
        for member in (value for base in found.__mro__[:-1] for value in vars(base).values()):
            for function in (member, getattr(member, "__func__", None), getattr(member, "fget", None)):
                if inspect.isfunction(function):
                    yield from _read(function, named)
        return
    yield from _read(found, named)


def _read(function: Any, named: Mapping[str, object]) -> Iterator[object]:
    function = inspect.unwrap(function)
    known = {**function.__globals__, **_closed_over(function)}
    for code in _codes(function.__code__):
        yield from (named[value] for value in code.co_consts if isinstance(value, str) and value in named)
        for name, *attributes in _names(code):
            value = known.get(name)
            yield from _within(value)
            for attribute in attributes:
                if not isinstance(value, ModuleType):
                    break
                value = vars(value).get(attribute)
                yield from _within(value)


@cache
def _names(code: CodeType) -> tuple[tuple[str, ...], ...]:
    """Return each name that the code loads, with the attributes that follow it. Cached, as offers share code."""
    found: list[tuple[str, ...]] = []
    goes_on = False
    for step in dis.get_instructions(code):
        if step.opname in {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"}:
            found.append((str(step.argval),))
        elif step.opname in {"LOAD_ATTR", "LOAD_METHOD"} and goes_on:
            found[-1] += (str(step.argval),)
        else:
            goes_on = False
            continue
        goes_on = True
    return tuple(found)


def _closed_over(function: Any) -> dict[str, object]:
    return dict(inspect.getclosurevars(function).nonlocals)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _within(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif inspect.isfunction(value) or inspect.isclass(value):
        yield value
