"""Builds the flat JSON schema of an answer, as forms can show it. It is safe to import from workflow code.

The schema is that of MCP's form elicitation: strings, numbers, booleans, and one or several of some strings, which may
have titles (SEP-1330). Nothing is nested. Pydantic's own schema is not used as it is, because it refers to definitions
and has keywords that forms do not know.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import PydanticSchemaGenerationError, TypeAdapter

_FIELD_KEYWORDS: Final = frozenset(
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
_LIST_KEYWORDS: Final = frozenset({"type", "title", "description", "default", "minItems", "maxItems"})
_KNOWN_FORMATS: Final = frozenset({"email", "uri", "date", "date-time"})


def build_flat_schema(answer_type: TypeAdapter[Any], type_name: str) -> dict[str, Any]:
    """Return the flat JSON schema of an answer's type; raises TypeError if no form can show it."""
    try:
        json_schema = answer_type.json_schema()
    except PydanticSchemaGenerationError as error:
        raise _build_unfit_error(type_name, "use a pydantic model or a dataclass") from error
    properties = json_schema.get("properties")
    if json_schema.get("type") != "object" or not properties:
        raise _build_unfit_error(type_name, "use a pydantic model or a dataclass with at least one field")
    definitions = json_schema.get("$defs", {})
    field_schemas = {
        field_name: _build_field_schema(field_schema, definitions, f"{type_name}.{field_name}")
        for field_name, field_schema in properties.items()
    }
    required_fields = [
        field_name for field_name in json_schema.get("required", ()) if field_name in field_schemas
    ]
    return {"type": "object", "properties": field_schemas, "required": required_fields}


def list_choices(field_schema: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the values that a field's schema offers, each with its title, or an empty list for free input."""
    if field_schema["type"] == "array":
        return list_choices({"type": "string", **field_schema["items"]})
    titled_options = field_schema.get("oneOf", field_schema.get("anyOf"))
    if titled_options is not None:
        return [(option["const"], option["title"]) for option in titled_options]
    enum_values = field_schema.get("enum", [])
    return list(zip(enum_values, field_schema.get("enumNames", enum_values), strict=True))


def _build_field_schema(
    field_schema: Mapping[str, Any], definitions: Mapping[str, Any], field_path: str
) -> dict[str, Any]:
    merged_schema = dict(field_schema)
    if "$ref" in merged_schema:
        merged_schema = {**definitions[merged_schema["$ref"].rpartition("/")[2]], **merged_schema}
    if merged_schema.get("type") == "array":
        return _build_list_schema(merged_schema, definitions, field_path)
    if "anyOf" in merged_schema:
        # An optional field is one that may be left out, since forms have no null.
        non_null_options = [option for option in merged_schema["anyOf"] if option.get("type") != "null"]
        if len(non_null_options) != 1:
            raise _build_unfit_error(field_path, "use one type for it")
        inner_schema = _build_field_schema(non_null_options[0], definitions, field_path)
        outer_keywords = {
            keyword: keyword_value
            for keyword, keyword_value in merged_schema.items()
            if keyword in _FIELD_KEYWORDS and keyword_value is not None
        }
        return {**inner_schema, **outer_keywords}
    if "const" in merged_schema:
        merged_schema["enum"] = [merged_schema["const"]]
    is_text_choice = all(isinstance(enum_value, str) for enum_value in merged_schema.get("enum", ()))
    if merged_schema.get("type") not in {"string", "number", "integer", "boolean"} or not is_text_choice:
        raise _build_unfit_error(
            field_path, "use a str, int, float, bool, date, or one or a list of a Literal or Enum of strings"
        )
    if not _has_titles(merged_schema.get("oneOf", ())) or len(merged_schema.get("enumNames", ())) not in {
        0,
        len(merged_schema.get("enum", ())),
    }:
        raise _build_unfit_error(field_path, "give each choice a const and a title")
    kept_keywords = {
        keyword: keyword_value
        for keyword, keyword_value in merged_schema.items()
        if keyword in _FIELD_KEYWORDS and keyword_value is not None
    }
    try:
        re.compile(kept_keywords.get("pattern", ""))
    except re.error as error:
        raise _build_unfit_error(field_path, "use a pattern that Python's re can read as well") from error
    if kept_keywords.get("format") not in _KNOWN_FORMATS:
        kept_keywords.pop("format", None)
    return kept_keywords


def _build_list_schema(
    field_schema: Mapping[str, Any], definitions: Mapping[str, Any], field_path: str
) -> dict[str, Any]:
    item_schema = dict(field_schema.get("items", {}))
    if "$ref" in item_schema:
        item_schema = definitions[item_schema["$ref"].rpartition("/")[2]]
    kept_keywords = {
        keyword: keyword_value
        for keyword, keyword_value in field_schema.items()
        if keyword in _LIST_KEYWORDS and keyword_value is not None
    }
    titled_options = item_schema.get("anyOf")
    if titled_options and _has_titles(titled_options):
        return {**kept_keywords, "items": {"anyOf": titled_options}}
    enum_values = [item_schema["const"]] if "const" in item_schema else item_schema.get("enum")
    if not enum_values or not all(isinstance(enum_value, str) for enum_value in enum_values):
        raise _build_unfit_error(field_path, "use a list of a Literal or Enum of strings for it")
    return {**kept_keywords, "items": {"type": "string", "enum": enum_values}}


def _has_titles(options: Sequence[Mapping[str, Any]]) -> bool:
    return all(
        isinstance(option.get("const"), str) and isinstance(option.get("title"), str) for option in options
    )


def _build_unfit_error(field_path: str, instruction: str) -> TypeError:
    return TypeError(f"No form can ask for {field_path}: {instruction}.")
