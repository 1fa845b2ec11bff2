"""Collects the workflows, activities and offers of the modules that settings and entry points name. It runs none."""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
from temporalio import activity, workflow

from engine.errors import ArgumentsInvalid, PromptUnknown, ResourceUnknown, SettingsInvalid, ToolUnknown
from engine.tools.content import Content, Document, Messages
from engine.tools.modules import import_modules
from engine.tools.needs import ConnectionNeed, find_actions, find_connection_needs
from engine.tools.offers import (
    OfferDeclaration,
    PromptDeclaration,
    ResourceDeclaration,
    ToolDeclaration,
    find_offer_declaration,
)
from engine.tools.uri_template import UriTemplate, parse_uri_template
from engine.validation_errors import describe_validation_error

# Temporal refuses payloads above 2 MB, and children and actions copy parts of these arguments into theirs.
_MAX_ARGUMENTS_CHARS: Final = 1_000_000
_OFFER_NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class OfferedWorkflow:
    """A tool, prompt or resource. Each call by its name is a run of its workflow."""

    name: str
    description: str
    declaration: OfferDeclaration
    input_type: TypeAdapter[Any] | None
    input_schema: dict[str, Any]

    def validate_arguments(self, raw_arguments: Mapping[str, Any]) -> list[Any]:
        """Convert a call's arguments to the workflow's; raises ArgumentsInvalid, which names each invalid field."""
        if self.input_type is None:
            if raw_arguments:
                raise ArgumentsInvalid(f"{self.name} takes no arguments.")
            return []
        try:
            arguments_json = json.dumps(raw_arguments)
        except RecursionError as error:
            raise ArgumentsInvalid(f"The arguments of {self.name} are nested beyond reason.") from error
        if len(arguments_json) > _MAX_ARGUMENTS_CHARS:
            raise ArgumentsInvalid(
                f"The arguments of {self.name} are too large: {_MAX_ARGUMENTS_CHARS:,} characters of JSON are the most."
            )
        try:
            return [self.input_type.validate_json(arguments_json, strict=True)]
        except ValidationError as error:
            problems = describe_validation_error(error, root_name="arguments")
            raise ArgumentsInvalid(f"The arguments do not fit {self.name}: {problems}.") from None

    def list_completions(self, argument_name: str, typed_text: str) -> list[str]:
        """Return the choices of an argument that start with the typed text; an empty list if it is free text.

        Raises ArgumentsInvalid if there is no argument of this name.
        """
        property_schema = self.input_schema["properties"].get(argument_name)
        if property_schema is None:
            raise ArgumentsInvalid(f"{self.name} has no argument '{argument_name[:100]}'.")
        string_choices = _list_choices(property_schema, self.input_schema.get("$defs", {})) or []
        return [
            string_choice
            for string_choice in string_choices
            if string_choice.casefold().startswith(typed_text.casefold())
        ]


@dataclass(frozen=True)
class CompositeTool(OfferedWorkflow):
    """A composite tool as clients list and call it."""

    declaration: ToolDeclaration
    output_type: TypeAdapter[Any] | None
    output_schema: dict[str, Any] | None
    returns_content: bool
    """Whether the tool returns content blocks instead of an object of the output schema."""


@dataclass(frozen=True)
class OfferedPrompt(OfferedWorkflow):
    """A prompt as clients list and get it."""

    declaration: PromptDeclaration


@dataclass(frozen=True)
class OfferedResource(OfferedWorkflow):
    """A resource, or a resource template, as clients list and read it."""

    declaration: ResourceDeclaration
    template: UriTemplate


class Registry:
    """All that the modules define, by wire name. Raises SettingsInvalid if two definitions have the same name."""

    def __init__(self, module_names: tuple[str, ...]) -> None:
        self.workflows: dict[str, type] = {}
        self.activities: dict[str, Callable[..., Any]] = {}
        self.tools: dict[str, CompositeTool] = {}
        self.prompts: dict[str, OfferedPrompt] = {}
        self.resources: dict[str, OfferedResource] = {}
        for module in import_modules(module_names):
            for _, module_member in inspect.getmembers(module):
                self._add_definition(module_member)
        self.needs: dict[str, tuple[ConnectionNeed, ...]] = {
            offer.name: find_connection_needs(
                self.workflows[offer.name],
                self.workflows,
                self.activities,
                declared_names=offer.declaration.connection_names,
            )
            for offer in self._iterate_offers()
        }
        self._resources_by_precedence = _sort_by_precedence(self.resources)
        for offer in self._iterate_offers():
            self._check_reads_only(offer)

    def find_tool(self, tool_name: str) -> CompositeTool:
        """Return the tool of this name; raises ToolUnknown."""
        if tool_name not in self.tools:
            raise ToolUnknown(f"There is no tool '{tool_name}'. List the tools to see which there are.")
        return self.tools[tool_name]

    def may_use_connection(self, offer_name: str, connection_name: str) -> bool:
        """Return whether the offer of this name may use the connection; False for a name that is not offered."""
        return any(
            connection_need.connection_name == connection_name
            for connection_need in self.needs.get(offer_name, ())
        )

    def is_read_only(self, offer_name: str) -> bool:
        """Return whether runs of this offer may change nothing upstream; False for a name that is not offered here."""
        return any(
            offer.declaration.is_read_only for offer in self._iterate_offers() if offer.name == offer_name
        )

    def find_prompt(self, prompt_name: str) -> OfferedPrompt:
        """Return the prompt of this name; raises PromptUnknown."""
        if prompt_name not in self.prompts:
            raise PromptUnknown(
                f"There is no prompt '{prompt_name}'. List the prompts to see which there are."
            )
        return self.prompts[prompt_name]

    def find_offer(self, offer_name: str) -> OfferedWorkflow:
        """Return the tool, prompt or resource of this name; raises ToolUnknown."""
        return self.prompts.get(offer_name) or self.resources.get(offer_name) or self.find_tool(offer_name)

    def find_title(self, offer_name: str) -> str:
        """Return the title of an offer, or the name itself if nothing of this name is offered any more."""
        for offers in (self.tools, self.prompts, self.resources):
            if offer_name in offers:
                return offers[offer_name].declaration.title
        return offer_name

    def find_resource(self, resource_uri: str) -> tuple[OfferedResource, dict[str, str]]:
        """Return the resource at this URI and the values of its template's variables; raises ResourceUnknown.

        A fixed URI takes precedence over a template that matches it as well.
        """
        for resource in self._resources_by_precedence:
            variable_values = resource.template.match_uri(resource_uri)
            if variable_values is not None:
                return resource, variable_values
        raise ResourceUnknown("There is no such resource. List the resources to see which there are.")

    def _add_definition(self, module_member: object) -> None:
        if inspect.isclass(module_member):
            workflow_definition = workflow._Definition.from_class(module_member)  # noqa: SLF001 -- the SDK has no public reader
            if workflow_definition is not None and workflow_definition.name is not None:
                _add_unique(self.workflows, workflow_definition.name, module_member)
                self._add_offer(workflow_definition.name, workflow_definition)
        elif inspect.isfunction(module_member):
            activity_definition = activity._Definition.from_callable(module_member)  # noqa: SLF001
            if activity_definition is not None and activity_definition.name is not None:
                _add_unique(self.activities, activity_definition.name, module_member)

    def _add_offer(self, offer_name: str, definition: "workflow._Definition") -> None:
        match find_offer_declaration(definition.cls):
            case ToolDeclaration() as declaration:
                self.tools[offer_name] = _build_tool(offer_name, definition, declaration)
            case PromptDeclaration() as declaration:
                self.prompts[offer_name] = _build_prompt(offer_name, definition, declaration)
            case ResourceDeclaration() as declaration:
                self.resources[offer_name] = _build_resource(offer_name, definition, declaration)
            case None:
                pass

    def _iterate_offers(self) -> Iterator[OfferedWorkflow]:
        yield from self.tools.values()
        yield from self.prompts.values()
        yield from self.resources.values()

    def _check_reads_only(self, offer: OfferedWorkflow) -> None:
        if not offer.declaration.is_read_only:
            return
        for action_definition in find_actions(self.workflows[offer.name], self.workflows, self.activities):
            if action_definition.reads_only:
                continue
            if offer.name in self.tools:
                raise SettingsInvalid(
                    f"Tool '{offer.name}' says read_only=True and uses the action "
                    f"'{action_definition.name}', which may write: "
                    "say reads_only=True of the action where it only reads, or leave read_only out."
                )
            raise SettingsInvalid(
                f"'{offer.name}' is a prompt or a resource, which only read, and uses the action "
                f"'{action_definition.name}', which may write: "
                "say reads_only=True of the action where it only reads, or offer a tool instead."
            )


def _sort_by_precedence(resources: Mapping[str, OfferedResource]) -> list[OfferedResource]:
    resources_by_uri: dict[str, OfferedResource] = {}
    for resource in resources.values():
        first_resource = resources_by_uri.setdefault(resource.declaration.uri, resource)
        if first_resource is not resource:
            raise SettingsInvalid(
                f"Resources '{first_resource.name}' and '{resource.name}' are both at {resource.declaration.uri}."
            )
    return sorted(
        resources.values(),
        key=lambda listed_resource: (len(listed_resource.template.variables), listed_resource.name),
    )


def _add_unique(definitions: dict[str, Any], offer_name: str, definition: object) -> None:
    if definitions.setdefault(offer_name, definition) is not definition:
        raise SettingsInvalid(
            f"Two definitions are named '{offer_name}': {definitions[offer_name].__module__} "
            f"and {getattr(definition, '__module__', '?')}."
        )


def _build_tool(
    offer_name: str, definition: "workflow._Definition", declaration: ToolDeclaration
) -> CompositeTool:
    return_type = definition.ret_type
    returns_content = return_type is Content
    output_type = (
        None
        if return_type in {None, type(None)} or returns_content
        else _build_type_adapter(return_type, offer_name)
    )
    return CompositeTool(
        **_build_offer_fields("tool", offer_name, definition, declaration),
        output_type=output_type,
        output_schema=None
        if output_type is None
        else _build_object_schema(output_type, offer_name, schema_mode="serialization"),
        returns_content=returns_content,
    )


def _build_prompt(
    offer_name: str, definition: "workflow._Definition", declaration: PromptDeclaration
) -> OfferedPrompt:
    offer_fields = _build_offer_fields("prompt", offer_name, definition, declaration)
    _require_text_arguments("prompt", offer_name, offer_fields["input_schema"])
    if definition.ret_type is not Messages:
        raise SettingsInvalid(
            f"The run method of prompt '{offer_name}' should be annotated to return Messages."
        )
    return OfferedPrompt(**offer_fields)


def _build_resource(
    offer_name: str, definition: "workflow._Definition", declaration: ResourceDeclaration
) -> OfferedResource:
    offer_fields = _build_offer_fields("resource", offer_name, definition, declaration)
    _require_text_arguments("resource", offer_name, offer_fields["input_schema"])
    if definition.ret_type is not Document:
        raise SettingsInvalid(
            f"The run method of resource '{offer_name}' should be annotated to return a Document."
        )
    try:
        template = parse_uri_template(declaration.uri)
    except ValueError as error:
        raise SettingsInvalid(f"The uri of resource '{offer_name}' cannot be used: {error}.") from error
    argument_names = set(offer_fields["input_schema"]["properties"])
    if argument_names != set(template.variables):
        raise SettingsInvalid(
            f"Resource '{offer_name}' takes {', '.join(sorted(argument_names)) or 'nothing'}, and its uri has "
            f"{', '.join(template.variables) or 'no variables'}: they should be the same."
        )
    return OfferedResource(**offer_fields, template=template)


def _build_offer_fields(
    offer_kind: str, offer_name: str, definition: "workflow._Definition", declaration: OfferDeclaration
) -> dict[str, Any]:
    if not _OFFER_NAME_PATTERN.fullmatch(offer_name):
        raise SettingsInvalid(
            f"'{offer_name}' is no name for a {offer_kind}: write @workflow.defn(name='lower_case_words')."
        )
    if definition.arg_types is None or len(definition.arg_types) > 1:
        raise SettingsInvalid(
            f"The run method of {offer_kind} '{offer_name}' should take one annotated argument, or none."
        )
    input_type = _build_type_adapter(definition.arg_types[0], offer_name) if definition.arg_types else None
    return {
        "name": offer_name,
        "description": inspect.getdoc(definition.cls) or declaration.title,
        "declaration": declaration,
        "input_type": input_type,
        "input_schema": {"type": "object", "properties": {}}
        if input_type is None
        else _build_object_schema(input_type, offer_name),
    }


def _build_type_adapter(annotation: Any, offer_name: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except PydanticSchemaGenerationError as error:
        raise SettingsInvalid(
            f"'{offer_name}': {annotation!r} has no JSON schema. Use a pydantic model or a dataclass."
        ) from error


def _build_object_schema(
    type_adapter: TypeAdapter[Any], offer_name: str, *, schema_mode: Any = "validation"
) -> dict[str, Any]:
    json_schema = type_adapter.json_schema(mode=schema_mode)
    if json_schema.get("type") != "object":
        raise SettingsInvalid(
            f"The input and output of '{offer_name}' should be objects: use a pydantic model or a dataclass."
        )
    return {"properties": {}, **json_schema}


def _require_text_arguments(offer_kind: str, offer_name: str, input_schema: Mapping[str, Any]) -> None:
    for argument_name, property_schema in input_schema["properties"].items():
        if _list_choices(property_schema, input_schema.get("$defs", {})) is None:
            raise SettingsInvalid(
                f"The argument '{argument_name}' of {offer_kind} '{offer_name}' should be a "
                "str, or a Literal or Enum of strings."
            )


def _list_choices(property_schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[str] | None:
    """Return the strings that a property allows, an empty list if it allows any, or None if it is not a string."""
    if "$ref" in property_schema:
        return _list_choices(definitions[property_schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in property_schema:
        non_null_schemas = [
            option_schema for option_schema in property_schema["anyOf"] if option_schema.get("type") != "null"
        ]
        return _list_choices(non_null_schemas[0], definitions) if len(non_null_schemas) == 1 else None
    if property_schema.get("type") != "string":
        return None
    return list(property_schema.get("enum", [property_schema["const"]] if "const" in property_schema else []))
