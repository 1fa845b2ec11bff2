"""Parses `name=value` words by a tool's input schema. The gateway decides whether the arguments are valid."""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from gateway.client.failures import WrongUse

Schema = Mapping[str, Any]

_INTEGER = re.compile(r"[+-]?[0-9]{1,1000}")
_YES_NO = {"true": True, "yes": True, "false": False, "no": False}
_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object in JSON",
}


class _Unfit(Exception):
    """Raised when a text is no value of the schema."""


def arguments(schema: Schema, pairs: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments from JSON, overridden by each pair. Raises UsageInvalid that names what does not fit."""
    texts: dict[str, list[str]] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not (name and separator):
            raise WrongUse(f"--arg {pair}: write --arg name=value")
        texts.setdefault(name, []).append(text)
    properties: Schema = schema.get("properties", {})
    for name in (*given, *texts):
        if name not in properties and not schema.get("additionalProperties"):
            raise WrongUse(_unknown(name, properties))
    found = {**given, **{name: _value(name, text, schema) for name, text in texts.items()}}
    missing = [name for name in schema.get("required", ()) if name not in found]
    if missing:
        needed = " ".join(f"--arg {name}=…" for name in missing)
        raise WrongUse(f"This tool also needs {needed}")
    return found


def kind_of(schema: Schema, root: Schema) -> str:
    """Describe in words what a value of this schema looks like."""
    words = []
    for option in _options(schema, root):
        choices = _choices(option)
        if choices is not None:
            words.append(" or ".join(_text(choice) for choice in choices))
        elif option.get("type") == "array" and "items" in option:
            words.append(f"a list, each {kind_of(option['items'], root)}")
        else:
            words.append(_WORDS.get(str(option.get("type")), "anything"))
    return " or ".join(dict.fromkeys(words))


def value_of(text: str, schema: Schema, root: Schema) -> Any:
    """Return the value that a text stands for. Raises UsageInvalid if the text is no value of this schema."""
    try:
        return _one(text, schema, root)
    except _Unfit:
        raise WrongUse(f"'{text}' is not {kind_of(schema, root)}") from None


def _value(name: str, texts: list[str], root: Schema) -> Any:
    schema: Schema = root.get("properties", {}).get(name, {})
    lists = [option for option in _options(schema, root) if option.get("type") == "array"]
    try:
        if lists and (len(texts) > 1 or not _is_list(texts[0])):
            return [_one(text, lists[0].get("items", {}), root) for text in texts]
        if len(texts) > 1:
            raise WrongUse(f"--arg {name}=… is there {len(texts)} times, and '{name}' is no list")
        return _one(texts[0], schema, root)
    except _Unfit:
        raise WrongUse(f"--arg {name}={texts[0]}: '{name}' is {kind_of(schema, root)}") from None


def _one(text: str, schema: Schema, root: Schema) -> Any:
    options = sorted(_options(schema, root), key=_particular)
    for option in options:
        try:
            return _as(text, option)
        except _Unfit:
            continue
    raise _Unfit


def _as(text: str, option: Schema) -> Any:
    choices = _choices(option)
    if choices is None:
        return _READERS.get(str(option.get("type")), _json_or_text)(text)
    for choice in choices:
        if _text(choice) == text:
            return choice
    raise _Unfit


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise _Unfit
    return int(text)


def _number(text: str) -> int | float:
    if _INTEGER.fullmatch(text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        raise _Unfit from None
    if not math.isfinite(number):
        raise _Unfit
    return number


def _boolean(text: str) -> bool:
    if text.lower() not in _YES_NO:
        raise _Unfit
    return _YES_NO[text.lower()]


def _null(text: str) -> None:
    if text != "null":
        raise _Unfit


def _list(text: str) -> list[Any]:
    found = _json_or_text(text)
    if not isinstance(found, list):
        raise _Unfit
    return found


def _object(text: str) -> dict[str, Any]:
    found = _json_or_text(text)
    if not isinstance(found, dict):
        raise _Unfit
    return found


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# The narrowest type comes first, since every text is a value of type string.
_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "null": _null,
    "boolean": _boolean,
    "integer": _integer,
    "number": _number,
    "array": _list,
    "object": _object,
    "string": str,
}
_ORDER: Final = tuple(_READERS)


def _is_list(text: str) -> bool:
    return isinstance(_json_or_text(text), list)


def _particular(option: Schema) -> int:
    if _choices(option) is not None:
        return -1
    kind = option.get("type")
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def _choices(option: Schema) -> list[Any] | None:
    if "const" in option:
        return [option["const"]]
    return option.get("enum")


def _options(schema: Schema, root: Schema) -> Iterator[Schema]:
    """Yield the schemas of one type each that a value may have, with references and unions resolved."""
    if "$ref" in schema:
        yield from _options(_referred(str(schema["$ref"]), root), root)
    elif "anyOf" in schema or "oneOf" in schema:
        for option in schema.get("anyOf") or schema["oneOf"]:
            yield from _options(option, root)
    elif len(schema.get("allOf", ())) == 1:
        yield from _options(schema["allOf"][0], root)
    elif isinstance(schema.get("type"), list):
        for kind in schema["type"]:
            yield {**schema, "type": kind}
    else:
        yield schema


def _referred(reference: str, root: Schema) -> Schema:
    found: Any = root
    for step in reference.removeprefix("#/").split("/"):
        found = found.get(step, {}) if isinstance(found, Mapping) else {}
    # A target that is itself a reference, such as one to itself, gives no type by which to read a text.
    return found if isinstance(found, Mapping) and "$ref" not in found else {}


def _text(choice: Any) -> str:
    return choice if isinstance(choice, str) else json.dumps(choice)


def _unknown(name: str, properties: Schema) -> str:
    if not properties:
        return f"This tool takes no arguments, so no '{name}'"
    near = difflib.get_close_matches(name, properties, n=1)
    meant = f": did you mean '{near[0]}'?" if near else f". It takes: {', '.join(properties)}"
    return f"This tool takes no '{name}'{meant}"
