"""Builds the flat JSON schema of an answer, as forms can show it. It is safe to import from workflow code.

The schema is that of MCP's form elicitation: strings, numbers, booleans, and one or several of some strings, which may
have titles (SEP-1330). Nothing is nested.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import PydanticSchemaGenerationError, TypeAdapter

_KEPT: Final = frozenset(
    {
        "type",
        "title",
        "description",
        "default",
        "enum",
        "enumNames",
        "oneOf",
        "format",
        "minLength",
        "maxLength",
        "pattern",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
    }
)
_KEPT_OF_LISTS: Final = frozenset({"type", "title", "description", "default", "minItems", "maxItems"})
_FORMATS: Final = frozenset({"email", "uri", "date", "date-time"})


def flat_schema(answer: TypeAdapter[Any], name: str) -> dict[str, Any]:
    """Return the flat JSON schema of an answer's type; raises TypeError if no form can show it."""
    try:
        schema = answer.json_schema()
    except PydanticSchemaGenerationError as error:
        raise _unfit(name, "use a pydantic model or a dataclass") from error
    properties = schema.get("properties")
    if schema.get("type") != "object" or not properties:
        raise _unfit(name, "use a pydantic model or a dataclass with at least one field")
    definitions = schema.get("$defs", {})
    fields = {
        field: _field(described, definitions, f"{name}.{field}") for field, described in properties.items()
    }
    required = [field for field in schema.get("required", ()) if field in fields]
    return {"type": "object", "properties": fields, "required": required}


def choices(described: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the values that a field's schema offers, each with its title, or an empty list for free input."""
    if described["type"] == "array":
        return choices({"type": "string", **described["items"]})
    titled = described.get("oneOf", described.get("anyOf"))
    if titled is not None:
        return [(each["const"], each["title"]) for each in titled]
    values = described.get("enum", [])
    return list(zip(values, described.get("enumNames", values), strict=True))


def _field(described: Mapping[str, Any], definitions: Mapping[str, Any], name: str) -> dict[str, Any]:
    merged = dict(described)
    if "$ref" in merged:
        merged = {**definitions[merged["$ref"].rpartition("/")[2]], **merged}
    if merged.get("type") == "array":
        return _several(merged, definitions, name)
    if "anyOf" in merged:
        # An optional field is one that may be left out, since forms have no null.
        given = [each for each in merged["anyOf"] if each.get("type") != "null"]
        if len(given) != 1:
            raise _unfit(name, "use one type for it")
        inner = _field(given[0], definitions, name)
        outer = {key: value for key, value in merged.items() if key in _KEPT and value is not None}
        return {**inner, **outer}
    if "const" in merged:
        merged["enum"] = [merged["const"]]
    is_choice = all(isinstance(each, str) for each in merged.get("enum", ()))
    if merged.get("type") not in {"string", "number", "integer", "boolean"} or not is_choice:
        raise _unfit(
            name, "use a str, int, float, bool, date, or one or a list of a Literal or Enum of strings"
        )
    if not _are_titled(merged.get("oneOf", ())) or len(merged.get("enumNames", ())) not in {
        0,
        len(merged.get("enum", ())),
    }:
        raise _unfit(name, "give each choice a const and a title")
    kept = {key: value for key, value in merged.items() if key in _KEPT and value is not None}
    try:
        re.compile(kept.get("pattern", ""))
    except re.error as error:
        raise _unfit(name, "use a pattern that Python's re can read as well") from error
    if kept.get("format") not in _FORMATS:
        kept.pop("format", None)
    return kept


def _several(described: Mapping[str, Any], definitions: Mapping[str, Any], name: str) -> dict[str, Any]:
    items = dict(described.get("items", {}))
    if "$ref" in items:
        items = definitions[items["$ref"].rpartition("/")[2]]
    kept = {key: value for key, value in described.items() if key in _KEPT_OF_LISTS and value is not None}
    titled = items.get("anyOf")
    if titled and _are_titled(titled):
        return {**kept, "items": {"anyOf": titled}}
    values = [items["const"]] if "const" in items else items.get("enum")
    if not values or not all(isinstance(each, str) for each in values):
        raise _unfit(name, "use a list of a Literal or Enum of strings for it")
    return {**kept, "items": {"type": "string", "enum": values}}


def _are_titled(options: Sequence[Mapping[str, Any]]) -> bool:
    return all(isinstance(each.get("const"), str) and isinstance(each.get("title"), str) for each in options)


def _unfit(name: str, instead: str) -> TypeError:
    return TypeError(f"No form can ask for {name}: {instead}.")
