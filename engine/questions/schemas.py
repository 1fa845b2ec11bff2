"""What an answer may look like: one flat object, as forms can show it; safe to import from workflow code.

The words are those of MCP's form elicitation: strings, numbers, booleans and choices among strings, and nothing nested.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import PydanticSchemaGenerationError, TypeAdapter

_KEPT: Final = frozenset(
    {
        "type",
        "title",
        "description",
        "default",
        "enum",
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
_FORMATS: Final = frozenset({"email", "uri", "date", "date-time"})


def flat_schema(answer: TypeAdapter[Any], name: str) -> dict[str, Any]:
    """The schema of an answer's type; raises TypeError where no form can show it."""
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


def _field(described: Mapping[str, Any], definitions: Mapping[str, Any], name: str) -> dict[str, Any]:
    merged = dict(described)
    if "$ref" in merged:
        merged = {**definitions[merged["$ref"].rpartition("/")[2]], **merged}
    if "anyOf" in merged:
        # An optional field is one that may be left out: forms know no null.
        given = [each for each in merged["anyOf"] if each.get("type") != "null"]
        if len(given) != 1:
            raise _unfit(name, "use one type for it")
        inner = _field(given[0], definitions, name)
        outer = {key: value for key, value in merged.items() if key in _KEPT and value is not None}
        return {**inner, **outer}
    if "const" in merged:
        merged["enum"] = [merged["const"]]
    is_choice = "enum" in merged and all(isinstance(each, str) for each in merged["enum"])
    if merged.get("type") not in {"string", "number", "integer", "boolean"} or (
        "enum" in merged and not is_choice
    ):
        raise _unfit(name, "use a str, int, float, bool, date, or a Literal or Enum of strings for it")
    kept = {key: value for key, value in merged.items() if key in _KEPT and value is not None}
    try:
        re.compile(kept.get("pattern", ""))
    except re.error as error:
        raise _unfit(name, "use a pattern that Python's re can read as well") from error
    if kept.get("format") not in _FORMATS:
        kept.pop("format", None)
    return kept


def _unfit(name: str, instead: str) -> TypeError:
    return TypeError(f"No form can ask for {name}: {instead}.")
