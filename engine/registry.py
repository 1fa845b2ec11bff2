"""Which tools exist: workflows and activities found in the modules that settings and entry points name."""

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
from temporalio import activity, workflow

from engine.errors import ArgumentsInvalid, SettingsInvalid, ToolUnknown
from engine.needs import Need, needs_of
from engine.tools import ToolDeclaration, declaration_of
from engine.wire import ENTRY_POINT_GROUP

# Temporal refuses payloads beyond 2 MB, and every child and action takes its part of these into its own.
_LARGEST_ARGUMENTS = 1_000_000
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class Tool:
    """A composite tool, ready to be listed and called."""

    name: str
    description: str
    declaration: ToolDeclaration
    input_type: TypeAdapter[Any] | None
    output_type: TypeAdapter[Any] | None
    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None

    def arguments(self, given: Mapping[str, Any]) -> list[Any]:
        """The workflow's arguments from a call's; raises ArgumentsInvalid that names each field that does not fit."""
        if self.input_type is None:
            if given:
                msg = f"{self.name} takes no arguments."
                raise ArgumentsInvalid(msg)
            return []
        try:
            text = json.dumps(given)
        except RecursionError as error:
            raise ArgumentsInvalid(f"The arguments of {self.name} are nested beyond reason.") from error
        if len(text) > _LARGEST_ARGUMENTS:
            msg = f"The arguments of {self.name} are too large: {_LARGEST_ARGUMENTS:,} characters of JSON are the most."
            raise ArgumentsInvalid(msg)
        try:
            return [self.input_type.validate_json(text, strict=True)]
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, problem['loc'])) or 'arguments'}: {problem['msg']}"
                for problem in error.errors(include_url=False, include_input=False)
            )
            msg = f"The arguments do not fit {self.name}: {problems}."
            raise ArgumentsInvalid(msg) from None


class Registry:
    """Everything that the modules define, by wire name; two things of one name are refused."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self.workflows: dict[str, type] = {}
        self.activities: dict[str, Callable[..., Any]] = {}
        self.tools: dict[str, Tool] = {}
        for module in _modules(modules):
            for _, found in inspect.getmembers(module):
                self._add(found)
        self.needs: dict[str, tuple[Need, ...]] = {
            name: needs_of(self.workflows[name], self.workflows, self.activities) for name in self.tools
        }

    def tool(self, name: str) -> Tool:
        """The tool of this name; raises ToolUnknown."""
        if name not in self.tools:
            msg = f"There is no tool '{name}'. List the tools to see which there are."
            raise ToolUnknown(msg)
        return self.tools[name]

    def _add(self, found: object) -> None:
        if inspect.isclass(found):
            workflow_definition = workflow._Definition.from_class(found)  # noqa: SLF001 -- the SDK has no public reader
            if workflow_definition is not None and workflow_definition.name is not None:
                _put(self.workflows, workflow_definition.name, found)
                declaration = declaration_of(found)
                if declaration is not None:
                    self.tools[workflow_definition.name] = _tool(workflow_definition, declaration)
        elif inspect.isfunction(found):
            activity_definition = activity._Definition.from_callable(found)  # noqa: SLF001
            if activity_definition is not None and activity_definition.name is not None:
                _put(self.activities, activity_definition.name, found)


def _put(known: dict[str, Any], name: str, found: object) -> None:
    if known.setdefault(name, found) is not found:
        msg = f"Two definitions are named '{name}': {known[name].__module__} and {getattr(found, '__module__', '?')}."
        raise SettingsInvalid(msg)


def _modules(names: tuple[str, ...]) -> Iterator[ModuleType]:
    """Each named module, and where it is a package, all within it."""
    for name in (*names, *(point.value for point in entry_points(group=ENTRY_POINT_GROUP))):
        module = _imported(name)
        yield module
        for within in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
            yield _imported(within.name)


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if name == error.name or name.startswith(f"{error.name}."):
            msg = f"There is no module '{name}': install it where Byline runs, or correct BYLINE_MODULES."
        else:
            msg = (
                f"Module '{name}' imports '{error.name}', which is not there: install that where Byline runs."
            )
        raise SettingsInvalid(msg) from error


def _tool(definition: "workflow._Definition", declaration: ToolDeclaration) -> Tool:
    name = definition.name or ""
    if not _NAME.fullmatch(name):
        msg = f"'{name}' is no name for a tool: write @workflow.defn(name='lower_case_words')."
        raise SettingsInvalid(msg)
    if definition.arg_types is None or len(definition.arg_types) > 1:
        msg = f"The run method of tool '{name}' should take one annotated argument, or none."
        raise SettingsInvalid(msg)
    takes = definition.arg_types[0] if definition.arg_types else None
    returns = definition.ret_type
    input_type = None if takes is None else _adapter(takes, name)
    output_type = None if returns in {None, type(None)} else _adapter(returns, name)
    return Tool(
        name=name,
        description=inspect.getdoc(definition.cls) or declaration.title,
        declaration=declaration,
        input_type=input_type,
        output_type=output_type,
        input_schema={"type": "object", "properties": {}}
        if input_type is None
        else _object_schema(input_type, name),
        output_schema=None
        if output_type is None
        else _object_schema(output_type, name, mode="serialization"),
    )


def _adapter(annotation: Any, name: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except PydanticSchemaGenerationError as error:
        msg = f"Tool '{name}': {annotation!r} has no JSON schema. Use a pydantic model or a dataclass."
        raise SettingsInvalid(msg) from error


def _object_schema(adapter: TypeAdapter[Any], name: str, *, mode: Any = "validation") -> dict[str, Any]:
    schema = adapter.json_schema(mode=mode)
    if schema.get("type") != "object":
        msg = f"The input and output of tool '{name}' should be objects: use a pydantic model or a dataclass."
        raise SettingsInvalid(msg)
    return schema
