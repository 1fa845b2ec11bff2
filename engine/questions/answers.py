"""Validates an answer against the flat schema of its question."""

import json
import operator
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from engine.errors import AnswerInvalid
from engine.questions.schemas import choices

_LARGEST: Final = 50_000
_LARGEST_NUMBER: Final = 2**63
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+")
_BOUNDS: Final[Mapping[str, tuple[str, Callable[[float, float], bool]]]] = {
    "minimum": ("at least", operator.ge),
    "maximum": ("at most", operator.le),
    "exclusiveMinimum": ("more than", operator.gt),
    "exclusiveMaximum": ("less than", operator.lt),
}


def fitting(schema: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to store, without the fields that were left empty; raises AnswerInvalid."""
    fields: Mapping[str, Mapping[str, Any]] = schema["properties"]
    given = {name: value for name, value in content.items() if value is not None}
    problems = [f"{_shown(name)}: this was not asked for" for name in given if name not in fields]
    problems += [f"{name}: this is missing" for name in schema["required"] if name not in given]
    kept: dict[str, Any] = {}
    for name, described in fields.items():
        if name in given:
            try:
                kept[name] = _value(described, given[name])
            except ValueError as error:
                problems.append(f"{name}: {error}")
    if problems:
        raise AnswerInvalid(f"The answer does not fit: {'; '.join(problems)}.")
    if len(json.dumps(kept)) > _LARGEST:
        raise AnswerInvalid("The answer is too long.")
    return kept


def _value(described: Mapping[str, Any], value: Any) -> Any:
    match described["type"]:
        case "boolean":
            if isinstance(value, bool):
                return value
            raise ValueError("this should be true or false")
        case "string":
            if isinstance(value, str):
                return _text(described, value)
            raise ValueError("this should be text")
        case "array":
            return _several(described, value)
        case kind:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            # This excludes NaN, the infinities, and integers beyond 64 bits, which other languages cannot hold.
            if not is_number or not -_LARGEST_NUMBER < value < _LARGEST_NUMBER:
                raise ValueError("this should be a number")
            return _number(described, value, whole=kind == "integer")


def _number(described: Mapping[str, Any], value: float, *, whole: bool) -> float:
    if whole and value != int(value):
        raise ValueError("this should be a whole number")
    for name, (words, holds) in _BOUNDS.items():
        if name in described and not holds(value, described[name]):
            raise ValueError(f"this should be {words} {described[name]}")
    return int(value) if whole else value


def _several(described: Mapping[str, Any], value: Any) -> list[str]:
    offered = [each for each, _ in choices(described)]
    if not isinstance(value, list) or any(each not in offered for each in value):
        raise ValueError(f"this should be a list of: {', '.join(offered)}")
    if len(set(value)) < len(value):
        raise ValueError("this names one twice")
    if not described.get("minItems", 0) <= len(value) <= described.get("maxItems", len(offered)):
        raise ValueError("these are too few or too many")
    return value


def _text(described: Mapping[str, Any], value: str) -> str:
    if "\0" in value or not _is_text(value):
        raise ValueError("this holds what is no text")
    offered = [each for each, _ in choices(described)]
    if offered and value not in offered:
        raise ValueError(f"this should be one of: {', '.join(offered)}")
    if not described.get("minLength", 0) <= len(value) <= described.get("maxLength", _LARGEST):
        raise ValueError("this is too short or too long")
    if "pattern" in described and re.search(described["pattern"], value) is None:
        raise ValueError(f"this should look like {described['pattern']}")
    if "format" in described and not _has_format(described["format"], value):
        raise ValueError(f"this is no {described['format']}")
    return value


def _shown(name: str) -> str:
    return name[:100].encode(errors="replace").decode()


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_format(name: str, value: str) -> bool:
    try:
        match name:
            case "date":
                date.fromisoformat(value)
            case "date-time":
                return datetime.fromisoformat(value) is not None and "T" in value
            case "uri":
                parts = urlsplit(value)
                return bool(parts.scheme and (parts.netloc or parts.path))
            case "email":
                return _EMAIL.fullmatch(value) is not None
    except ValueError:
        return False
    return True
