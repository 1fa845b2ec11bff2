"""Finds the actions that an offer may start, and so its connections, by reading its byte code without running it.

What it finds is a hint for pages and for errors at the start of a process: it reads the code of one package alone. What
an action may do is decided where it runs (`engine/interceptors/activity.py`).
"""

import dis
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import CodeType, ModuleType
from typing import Any

from temporalio import activity, workflow

from engine.actions.definition import ActionDefinition, find_action_definition


@dataclass(frozen=True)
class ConnectionNeed:
    """One connection that an offer uses, with all scopes that its actions on this connection declare."""

    connection_name: str
    scopes: tuple[str, ...]


def find_connection_needs(
    workflow_class: type,
    workflows: Mapping[str, type],
    activities: Mapping[str, Callable[..., Any]],
    *,
    declared_names: Iterable[str] = (),
) -> tuple[ConnectionNeed, ...]:
    """Return the connections that a workflow and its children may use, by name, even in branches that never run.

    `declared_names` are those that its declaration names; the others are found in its code.
    """
    scopes_by_connection: dict[str, set[str]] = {connection_name: set() for connection_name in declared_names}
    for action_definition in find_actions(workflow_class, workflows, activities):
        scopes_by_connection.setdefault(action_definition.connection_name, set()).update(
            action_definition.scopes
        )
    return tuple(
        ConnectionNeed(connection_name, tuple(sorted(scopes_by_connection[connection_name])))
        for connection_name in sorted(scopes_by_connection)
    )


def find_actions(
    workflow_class: type, workflows: Mapping[str, type], activities: Mapping[str, Callable[..., Any]]
) -> list[ActionDefinition]:
    """Return every action that the workflow and its children may start.

    A child workflow or an action that is started by name is found only if its name is a literal in the code.
    """
    definitions_by_name: dict[str, object] = {**activities, **workflows}
    action_definitions: list[ActionDefinition] = []
    visited_ids: set[int] = set()
    pending_objects: list[object] = [workflow_class]
    while pending_objects:
        code_owner = pending_objects.pop()
        if id(code_owner) in visited_ids:
            continue
        visited_ids.add(id(code_owner))
        action_definition = find_action_definition(code_owner)
        if action_definition is not None:
            action_definitions.append(action_definition)
        elif _is_orchestration(code_owner, workflow_class):
            pending_objects.extend(_iterate_references(code_owner, definitions_by_name))
    return action_definitions


def _is_orchestration(code_owner: object, workflow_class: type) -> bool:
    """Return whether to read this code: any workflow, and helpers of the same package. An activity has no children."""
    if inspect.isclass(code_owner):
        workflow_definition = workflow._Definition.from_class(code_owner)  # noqa: SLF001 -- the SDK has no public reader
        return workflow_definition is not None or _find_package(code_owner) == _find_package(workflow_class)
    if not inspect.isfunction(code_owner):
        return False
    is_activity = activity._Definition.from_callable(code_owner) is not None  # noqa: SLF001
    return not is_activity and _find_package(code_owner) == _find_package(workflow_class)


def _find_package(code_owner: object) -> str:
    return str(getattr(code_owner, "__module__", "")).partition(".")[0]


def _iterate_references(code_owner: Any, definitions_by_name: Mapping[str, object]) -> Iterator[object]:
    if inspect.isclass(code_owner):
        for class_member in (
            class_attribute
            for base_class in code_owner.__mro__[:-1]
            for class_attribute in vars(base_class).values()
        ):
            for function in (
                class_member,
                getattr(class_member, "__func__", None),
                getattr(class_member, "fget", None),
            ):
                if inspect.isfunction(function):
                    yield from _iterate_function_references(function, definitions_by_name)
        return
    yield from _iterate_function_references(code_owner, definitions_by_name)


def _iterate_function_references(
    function: Any, definitions_by_name: Mapping[str, object]
) -> Iterator[object]:
    function = inspect.unwrap(function)
    visible_names = {**function.__globals__, **_read_closure(function)}
    for code_object in _iterate_code_objects(function.__code__):
        yield from (
            definitions_by_name[code_constant]
            for code_constant in code_object.co_consts
            if isinstance(code_constant, str) and code_constant in definitions_by_name
        )
        for global_name, *attribute_names in _list_loaded_names(code_object):
            referenced_value = visible_names.get(global_name)
            yield from _iterate_candidates(referenced_value)
            for attribute_name in attribute_names:
                if not isinstance(referenced_value, ModuleType):
                    break
                referenced_value = vars(referenced_value).get(attribute_name)
                yield from _iterate_candidates(referenced_value)


@cache
def _list_loaded_names(code_object: CodeType) -> tuple[tuple[str, ...], ...]:
    """Return each name that the code loads, with the attributes that follow it. Cached, as offers share code."""
    loaded_names: list[tuple[str, ...]] = []
    is_attribute_chain = False
    for instruction in dis.get_instructions(code_object):
        if instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"}:
            loaded_names.append((str(instruction.argval),))
        elif instruction.opname in {"LOAD_ATTR", "LOAD_METHOD"} and is_attribute_chain:
            loaded_names[-1] += (str(instruction.argval),)
        else:
            is_attribute_chain = False
            continue
        is_attribute_chain = True
    return tuple(loaded_names)


def _read_closure(function: Any) -> dict[str, object]:
    return dict(inspect.getclosurevars(function).nonlocals)


def _iterate_code_objects(code_object: CodeType) -> Iterator[CodeType]:
    yield code_object
    for constant in code_object.co_consts:
        if isinstance(constant, CodeType):
            yield from _iterate_code_objects(constant)


def _iterate_candidates(container_value: object) -> Iterator[object]:
    if isinstance(container_value, dict):
        yield from container_value.values()
    elif isinstance(container_value, list | tuple | set | frozenset):
        yield from container_value
    elif inspect.isfunction(container_value) or inspect.isclass(container_value):
        yield container_value
