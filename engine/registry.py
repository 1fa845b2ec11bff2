"""Collects the workflows, activities and offers of the modules that settings and entry points name. It runs none."""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
from temporalio import activity, workflow

from engine.content import Content, Document, Messages
from engine.errors import ArgumentsInvalid, PromptUnknown, ResourceUnknown, SettingsInvalid, ToolUnknown
from engine.modules import imported
from engine.needs import Need, actions_of, needs_of
from engine.offers import (
    Declaration,
    PromptDeclaration,
    ResourceDeclaration,
    ToolDeclaration,
    declaration_of,
)
from engine.uri_template import UriTemplate, uri_template

# Temporal refuses payloads above 2 MB, and children and actions copy parts of these arguments into theirs.
_LARGEST_ARGUMENTS: Final = 1_000_000
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class Offer:
    """A tool, prompt or resource. Each call by its name is a run of its workflow."""

    name: str
    description: str
    declaration: Declaration
    input_type: TypeAdapter[Any] | None
    input_schema: dict[str, Any]

    def arguments(self, given: Mapping[str, Any]) -> list[Any]:
        """Convert a call's arguments to the workflow's; raises ArgumentsInvalid, which names each invalid field."""
        if self.input_type is None:
            if given:
                raise ArgumentsInvalid(f"{self.name} takes no arguments.")
            return []
        try:
            text = json.dumps(given)
        except RecursionError as error:
            raise ArgumentsInvalid(f"The arguments of {self.name} are nested beyond reason.") from error
        if len(text) > _LARGEST_ARGUMENTS:
            raise ArgumentsInvalid(
                f"The arguments of {self.name} are too large: {_LARGEST_ARGUMENTS:,} characters of JSON are the most."
            )
        try:
            return [self.input_type.validate_json(text, strict=True)]
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, problem['loc'])) or 'arguments'}: {problem['msg']}"
                for problem in error.errors(include_url=False, include_input=False)
            )
            raise ArgumentsInvalid(f"The arguments do not fit {self.name}: {problems}.") from None

    def completions(self, argument: str, typed: str) -> list[str]:
        """Return the choices of an argument that start with the typed text; an empty list if it is free text.

        Raises ArgumentsInvalid if there is no argument of this name.
        """
        described = self.input_schema["properties"].get(argument)
        if described is None:
            raise ArgumentsInvalid(f"{self.name} has no argument '{argument[:100]}'.")
        values = _choices(described, self.input_schema.get("$defs", {})) or []
        return [value for value in values if value.casefold().startswith(typed.casefold())]


@dataclass(frozen=True)
class Tool(Offer):
    """A composite tool as clients list and call it."""

    declaration: ToolDeclaration
    output_type: TypeAdapter[Any] | None
    output_schema: dict[str, Any] | None
    returns_content: bool
    """Whether the tool returns content blocks instead of an object of the output schema."""


@dataclass(frozen=True)
class Prompt(Offer):
    """A prompt as clients list and get it."""

    declaration: PromptDeclaration


@dataclass(frozen=True)
class Resource(Offer):
    """A resource, or a resource template, as clients list and read it."""

    declaration: ResourceDeclaration
    template: UriTemplate


class Registry:
    """All that the modules define, by wire name. Raises SettingsInvalid if two definitions have the same name."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self.workflows: dict[str, type] = {}
        self.activities: dict[str, Callable[..., Any]] = {}
        self.tools: dict[str, Tool] = {}
        self.prompts: dict[str, Prompt] = {}
        self.resources: dict[str, Resource] = {}
        for module in imported(modules):
            for _, found in inspect.getmembers(module):
                self._add(found)
        self.needs: dict[str, tuple[Need, ...]] = {
            name: needs_of(self.workflows[name], self.workflows, self.activities)
            for name in (*self.tools, *self.prompts, *self.resources)
        }
        self._by_address = _by_precedence(self.resources)
        for tool in self.tools.values():
            self._check_annotations(tool)

    def tool(self, name: str) -> Tool:
        """Return the tool of this name; raises ToolUnknown."""
        if name not in self.tools:
            raise ToolUnknown(f"There is no tool '{name}'. List the tools to see which there are.")
        return self.tools[name]

    def uses(self, name: str, connection: str) -> bool:
        """Return whether the offer of this name may use the connection; False for a name that is not offered."""
        return any(need.connection == connection for need in self.needs.get(name, ()))

    def prompt(self, name: str) -> Prompt:
        """Return the prompt of this name; raises PromptUnknown."""
        if name not in self.prompts:
            raise PromptUnknown(f"There is no prompt '{name}'. List the prompts to see which there are.")
        return self.prompts[name]

    def offer(self, name: str) -> Offer:
        """Return the tool, prompt or resource of this name; raises ToolUnknown."""
        return self.prompts.get(name) or self.resources.get(name) or self.tool(name)

    def title(self, name: str) -> str:
        """Return the title of an offer, or the name itself if nothing of this name is offered any more."""
        for offers in (self.tools, self.prompts, self.resources):
            if name in offers:
                return offers[name].declaration.title
        return name

    def resource_at(self, uri: str) -> tuple[Resource, dict[str, str]]:
        """Return the resource at this URI and the values of its template's variables; raises ResourceUnknown.

        A fixed URI takes precedence over a template that matches it as well.
        """
        for resource in self._by_address:
            values = resource.template.values(uri)
            if values is not None:
                return resource, values
        raise ResourceUnknown("There is no such resource. List the resources to see which there are.")

    def _add(self, found: object) -> None:
        if inspect.isclass(found):
            workflow_definition = workflow._Definition.from_class(found)  # noqa: SLF001 -- the SDK has no public reader
            if workflow_definition is not None and workflow_definition.name is not None:
                _put(self.workflows, workflow_definition.name, found)
                self._offer(workflow_definition.name, workflow_definition)
        elif inspect.isfunction(found):
            activity_definition = activity._Definition.from_callable(found)  # noqa: SLF001
            if activity_definition is not None and activity_definition.name is not None:
                _put(self.activities, activity_definition.name, found)

    def _offer(self, name: str, definition: "workflow._Definition") -> None:
        match declaration_of(definition.cls):
            case ToolDeclaration() as declaration:
                self.tools[name] = _tool(name, definition, declaration)
            case PromptDeclaration() as declaration:
                self.prompts[name] = _prompt(name, definition, declaration)
            case ResourceDeclaration() as declaration:
                self.resources[name] = _resource(name, definition, declaration)
            case None:
                pass

    def _check_annotations(self, tool: Tool) -> None:
        if not tool.declaration.read_only:
            return
        for action in actions_of(self.workflows[tool.name], self.workflows, self.activities):
            if not action.reads_only:
                raise SettingsInvalid(
                    f"Tool '{tool.name}' says read_only=True and uses the action '{action.name}', which may write: "
                    "say reads_only=True of the action where it only reads, or leave read_only out."
                )


def _by_precedence(resources: Mapping[str, Resource]) -> list[Resource]:
    known: dict[str, Resource] = {}
    for resource in resources.values():
        other = known.setdefault(resource.declaration.uri, resource)
        if other is not resource:
            raise SettingsInvalid(
                f"Resources '{other.name}' and '{resource.name}' are both at {resource.declaration.uri}."
            )
    return sorted(resources.values(), key=lambda each: (len(each.template.variables), each.name))


def _put(known: dict[str, Any], name: str, found: object) -> None:
    if known.setdefault(name, found) is not found:
        raise SettingsInvalid(
            f"Two definitions are named '{name}': {known[name].__module__} and {getattr(found, '__module__', '?')}."
        )


def _tool(name: str, definition: "workflow._Definition", declaration: ToolDeclaration) -> Tool:
    returns = definition.ret_type
    returns_content = returns is Content
    output_type = None if returns in {None, type(None)} or returns_content else _adapter(returns, name)
    return Tool(
        **_offered("tool", name, definition, declaration),
        output_type=output_type,
        output_schema=None
        if output_type is None
        else _object_schema(output_type, name, mode="serialization"),
        returns_content=returns_content,
    )


def _prompt(name: str, definition: "workflow._Definition", declaration: PromptDeclaration) -> Prompt:
    offered = _offered("prompt", name, definition, declaration)
    _require_texts("prompt", name, offered["input_schema"])
    if definition.ret_type is not Messages:
        raise SettingsInvalid(f"The run method of prompt '{name}' should be annotated to return Messages.")
    return Prompt(**offered)


def _resource(name: str, definition: "workflow._Definition", declaration: ResourceDeclaration) -> Resource:
    offered = _offered("resource", name, definition, declaration)
    _require_texts("resource", name, offered["input_schema"])
    if definition.ret_type is not Document:
        raise SettingsInvalid(
            f"The run method of resource '{name}' should be annotated to return a Document."
        )
    try:
        template = uri_template(declaration.uri)
    except ValueError as error:
        raise SettingsInvalid(f"The uri of resource '{name}' cannot be used: {error}.") from error
    fields = set(offered["input_schema"]["properties"])
    if fields != set(template.variables):
        raise SettingsInvalid(
            f"Resource '{name}' takes {', '.join(sorted(fields)) or 'nothing'}, and its uri has "
            f"{', '.join(template.variables) or 'no variables'}: they should be the same."
        )
    return Resource(**offered, template=template)


def _offered(
    kind: str, name: str, definition: "workflow._Definition", declaration: Declaration
) -> dict[str, Any]:
    if not _NAME.fullmatch(name):
        raise SettingsInvalid(
            f"'{name}' is no name for a {kind}: write @workflow.defn(name='lower_case_words')."
        )
    if definition.arg_types is None or len(definition.arg_types) > 1:
        raise SettingsInvalid(
            f"The run method of {kind} '{name}' should take one annotated argument, or none."
        )
    input_type = _adapter(definition.arg_types[0], name) if definition.arg_types else None
    return {
        "name": name,
        "description": inspect.getdoc(definition.cls) or declaration.title,
        "declaration": declaration,
        "input_type": input_type,
        "input_schema": {"type": "object", "properties": {}}
        if input_type is None
        else _object_schema(input_type, name),
    }


def _adapter(annotation: Any, name: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except PydanticSchemaGenerationError as error:
        raise SettingsInvalid(
            f"'{name}': {annotation!r} has no JSON schema. Use a pydantic model or a dataclass."
        ) from error


def _object_schema(adapter: TypeAdapter[Any], name: str, *, mode: Any = "validation") -> dict[str, Any]:
    schema = adapter.json_schema(mode=mode)
    if schema.get("type") != "object":
        raise SettingsInvalid(
            f"The input and output of '{name}' should be objects: use a pydantic model or a dataclass."
        )
    return {"properties": {}, **schema}


def _require_texts(kind: str, name: str, schema: Mapping[str, Any]) -> None:
    for argument, described in schema["properties"].items():
        if _choices(described, schema.get("$defs", {})) is None:
            raise SettingsInvalid(
                f"The argument '{argument}' of {kind} '{name}' should be a str, or a Literal or Enum of strings."
            )


def _choices(described: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[str] | None:
    """Return the strings that a property allows, an empty list if it allows any, or None if it is not a string."""
    if "$ref" in described:
        return _choices(definitions[described["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in described:
        given = [each for each in described["anyOf"] if each.get("type") != "null"]
        return _choices(given[0], definitions) if len(given) == 1 else None
    if described.get("type") != "string":
        return None
    return list(described.get("enum", [described["const"]] if "const" in described else []))
