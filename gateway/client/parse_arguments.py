"""Parses `name=value` words by a tool's input schema. The gateway decides whether the arguments are valid."""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from gateway.client.command_errors import UsageInvalid

JsonSchema = Mapping[str, Any]

_INTEGER_PATTERN = re.compile(r"[+-]?[0-9]{1,1000}")
_BOOLEAN_WORDS = {"true": True, "yes": True, "false": False, "no": False}
_TYPE_DESCRIPTIONS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object in JSON",
}


class _ValueMismatch(Exception):
    """Raised when a text is no value of the schema."""


def parse_arguments(
    input_schema: JsonSchema, argument_pairs: Sequence[str], json_arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments from JSON, overridden by each pair. Raises UsageInvalid that names what does not fit."""
    argument_texts: dict[str, list[str]] = {}
    for argument_pair in argument_pairs:
        argument_name, separator, argument_text = argument_pair.partition("=")
        if not (argument_name and separator):
            raise UsageInvalid(f"--arg {argument_pair}: write --arg name=value")
        argument_texts.setdefault(argument_name, []).append(argument_text)
    properties: JsonSchema = input_schema.get("properties", {})
    for argument_name in (*json_arguments, *argument_texts):
        if argument_name not in properties and not input_schema.get("additionalProperties"):
            raise UsageInvalid(_describe_unknown_name(argument_name, properties))
    parsed_arguments = {
        **json_arguments,
        **{
            argument_name: _parse_argument(argument_name, value_texts, input_schema)
            for argument_name, value_texts in argument_texts.items()
        },
    }
    missing_names = [
        argument_name
        for argument_name in input_schema.get("required", ())
        if argument_name not in parsed_arguments
    ]
    if missing_names:
        missing_options = " ".join(f"--arg {argument_name}=…" for argument_name in missing_names)
        raise UsageInvalid(f"This tool also needs {missing_options}")
    return parsed_arguments


def describe_schema(value_schema: JsonSchema, root_schema: JsonSchema) -> str:
    """Describe in words what a value of this schema looks like."""
    descriptions = []
    for schema_option in _expand_options(value_schema, root_schema):
        allowed_values = _read_allowed_values(schema_option)
        if allowed_values is not None:
            descriptions.append(" or ".join(_to_text(allowed_value) for allowed_value in allowed_values))
        elif schema_option.get("type") == "array" and "items" in schema_option:
            descriptions.append(f"a list, each {describe_schema(schema_option['items'], root_schema)}")
        else:
            descriptions.append(_TYPE_DESCRIPTIONS.get(str(schema_option.get("type")), "anything"))
    return " or ".join(dict.fromkeys(descriptions))


def parse_value(value_text: str, value_schema: JsonSchema, root_schema: JsonSchema) -> Any:
    """Return the value that a text stands for. Raises UsageInvalid if the text is no value of this schema."""
    try:
        return _parse_by_schema(value_text, value_schema, root_schema)
    except _ValueMismatch:
        raise UsageInvalid(f"'{value_text}' is not {describe_schema(value_schema, root_schema)}") from None


def _parse_argument(argument_name: str, value_texts: list[str], root_schema: JsonSchema) -> Any:
    argument_schema: JsonSchema = root_schema.get("properties", {}).get(argument_name, {})
    list_options = [
        schema_option
        for schema_option in _expand_options(argument_schema, root_schema)
        if schema_option.get("type") == "array"
    ]
    try:
        if list_options and (len(value_texts) > 1 or not _is_json_list(value_texts[0])):
            return [
                _parse_by_schema(value_text, list_options[0].get("items", {}), root_schema)
                for value_text in value_texts
            ]
        if len(value_texts) > 1:
            raise UsageInvalid(
                f"--arg {argument_name}=… is there {len(value_texts)} times, and '{argument_name}' is no list"
            )
        return _parse_by_schema(value_texts[0], argument_schema, root_schema)
    except _ValueMismatch:
        raise UsageInvalid(
            f"--arg {argument_name}={value_texts[0]}: '{argument_name}' is "
            f"{describe_schema(argument_schema, root_schema)}"
        ) from None


def _parse_by_schema(value_text: str, value_schema: JsonSchema, root_schema: JsonSchema) -> Any:
    schema_options = sorted(_expand_options(value_schema, root_schema), key=_rank_option)
    for schema_option in schema_options:
        try:
            return _parse_by_option(value_text, schema_option)
        except _ValueMismatch:
            continue
    raise _ValueMismatch


def _parse_by_option(value_text: str, schema_option: JsonSchema) -> Any:
    allowed_values = _read_allowed_values(schema_option)
    if allowed_values is None:
        return _PARSERS_BY_TYPE.get(str(schema_option.get("type")), _parse_json_or_text)(value_text)
    for allowed_value in allowed_values:
        if _to_text(allowed_value) == value_text:
            return allowed_value
    raise _ValueMismatch


def _parse_integer(value_text: str) -> int:
    if not _INTEGER_PATTERN.fullmatch(value_text):
        raise _ValueMismatch
    return int(value_text)


def _parse_number(value_text: str) -> int | float:
    if _INTEGER_PATTERN.fullmatch(value_text):
        return int(value_text)
    try:
        parsed_number = float(value_text)
    except ValueError:
        raise _ValueMismatch from None
    if not math.isfinite(parsed_number):
        raise _ValueMismatch
    return parsed_number


def _parse_boolean(value_text: str) -> bool:
    if value_text.lower() not in _BOOLEAN_WORDS:
        raise _ValueMismatch
    return _BOOLEAN_WORDS[value_text.lower()]


def _parse_null(value_text: str) -> None:
    if value_text != "null":
        raise _ValueMismatch


def _parse_list(value_text: str) -> list[Any]:
    parsed_list = _parse_json_or_text(value_text)
    if not isinstance(parsed_list, list):
        raise _ValueMismatch
    return parsed_list


def _parse_object(value_text: str) -> dict[str, Any]:
    parsed_object = _parse_json_or_text(value_text)
    if not isinstance(parsed_object, dict):
        raise _ValueMismatch
    return parsed_object


def _parse_json_or_text(value_text: str) -> Any:
    try:
        return json.loads(value_text)
    except ValueError:
        return value_text


# The narrowest type comes first, since every text is a value of type string.
_PARSERS_BY_TYPE: Final[dict[str, Callable[[str], Any]]] = {
    "null": _parse_null,
    "boolean": _parse_boolean,
    "integer": _parse_integer,
    "number": _parse_number,
    "array": _parse_list,
    "object": _parse_object,
    "string": str,
}
_TYPE_ORDER: Final = tuple(_PARSERS_BY_TYPE)


def _is_json_list(value_text: str) -> bool:
    return isinstance(_parse_json_or_text(value_text), list)


def _rank_option(schema_option: JsonSchema) -> int:
    if _read_allowed_values(schema_option) is not None:
        return -1
    type_name = schema_option.get("type")
    return _TYPE_ORDER.index(type_name) if type_name in _TYPE_ORDER else len(_TYPE_ORDER)


def _read_allowed_values(schema_option: JsonSchema) -> list[Any] | None:
    if "const" in schema_option:
        return [schema_option["const"]]
    return schema_option.get("enum")


def _expand_options(value_schema: JsonSchema, root_schema: JsonSchema) -> Iterator[JsonSchema]:
    """Yield the schemas of one type each that a value may have, with references and unions resolved."""
    if "$ref" in value_schema:
        yield from _expand_options(_resolve_reference(str(value_schema["$ref"]), root_schema), root_schema)
    elif "anyOf" in value_schema or "oneOf" in value_schema:
        for schema_option in value_schema.get("anyOf") or value_schema["oneOf"]:
            yield from _expand_options(schema_option, root_schema)
    elif len(value_schema.get("allOf", ())) == 1:
        yield from _expand_options(value_schema["allOf"][0], root_schema)
    elif isinstance(value_schema.get("type"), list):
        for type_name in value_schema["type"]:
            yield {**value_schema, "type": type_name}
    else:
        yield value_schema


def _resolve_reference(reference: str, root_schema: JsonSchema) -> JsonSchema:
    target_schema: Any = root_schema
    for path_segment in reference.removeprefix("#/").split("/"):
        target_schema = target_schema.get(path_segment, {}) if isinstance(target_schema, Mapping) else {}
    # A target that is itself a reference, such as one to itself, gives no type by which to read a text.
    return target_schema if isinstance(target_schema, Mapping) and "$ref" not in target_schema else {}


def _to_text(allowed_value: Any) -> str:
    return allowed_value if isinstance(allowed_value, str) else json.dumps(allowed_value)


def _describe_unknown_name(argument_name: str, properties: JsonSchema) -> str:
    if not properties:
        return f"This tool takes no arguments, so no '{argument_name}'"
    near_names = difflib.get_close_matches(argument_name, properties, n=1)
    suggestion = (
        f": did you mean '{near_names[0]}'?" if near_names else f". It takes: {', '.join(properties)}"
    )
    return f"This tool takes no '{argument_name}'{suggestion}"
