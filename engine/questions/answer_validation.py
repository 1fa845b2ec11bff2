"""Validates an answer against the flat schema of its question.

It does not use jsonschema, because people read these messages beside a form, and because jsonschema accepts what cannot
be stored: NaN, numbers beyond 64 bits, and text that is not Unicode.
"""

import json
import operator
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from engine.errors import AnswerInvalid
from engine.questions.answer_schemas import list_choices

_MAX_ANSWER_CHARS: Final = 50_000
_MAX_NUMBER: Final = 2**63
_EMAIL_PATTERN: Final = re.compile(r"[^@\s]+@[^@\s]+")
_NUMBER_BOUNDS: Final[Mapping[str, tuple[str, Callable[[float, float], bool]]]] = {
    "minimum": ("at least", operator.ge),
    "maximum": ("at most", operator.le),
    "exclusiveMinimum": ("more than", operator.gt),
    "exclusiveMaximum": ("less than", operator.lt),
}


def validate_answer(answer_schema: Mapping[str, Any], answer_content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to store, without the fields that were left empty; raises AnswerInvalid."""
    field_schemas: Mapping[str, Mapping[str, Any]] = answer_schema["properties"]
    given_values = {
        field_name: field_value
        for field_name, field_value in answer_content.items()
        if field_value is not None
    }
    problems = [
        f"{_shorten_name(field_name)}: this was not asked for"
        for field_name in given_values
        if field_name not in field_schemas
    ]
    problems += [
        f"{field_name}: this is missing"
        for field_name in answer_schema["required"]
        if field_name not in given_values
    ]
    valid_values: dict[str, Any] = {}
    for field_name, field_schema in field_schemas.items():
        if field_name in given_values:
            try:
                valid_values[field_name] = _validate_value(field_schema, given_values[field_name])
            except ValueError as error:
                problems.append(f"{field_name}: {error}")
    if problems:
        raise AnswerInvalid(f"The answer does not fit: {'; '.join(problems)}.")
    if len(json.dumps(valid_values)) > _MAX_ANSWER_CHARS:
        raise AnswerInvalid("The answer is too long.")
    return valid_values


def _validate_value(field_schema: Mapping[str, Any], field_value: Any) -> Any:
    match field_schema["type"]:
        case "boolean":
            if isinstance(field_value, bool):
                return field_value
            raise ValueError("this should be true or false")
        case "string":
            if isinstance(field_value, str):
                return _validate_text(field_schema, field_value)
            raise ValueError("this should be text")
        case "array":
            return _validate_choices(field_schema, field_value)
        case field_type:
            is_number = isinstance(field_value, int | float) and not isinstance(field_value, bool)
            # This excludes NaN, the infinities, and integers beyond 64 bits, which other languages cannot hold.
            if not is_number or not -_MAX_NUMBER < field_value < _MAX_NUMBER:
                raise ValueError("this should be a number")
            return _validate_number(field_schema, field_value, is_whole=field_type == "integer")


def _validate_number(field_schema: Mapping[str, Any], field_value: float, *, is_whole: bool) -> float:
    if is_whole and field_value != int(field_value):
        raise ValueError("this should be a whole number")
    for bound_name, (bound_words, is_within) in _NUMBER_BOUNDS.items():
        if bound_name in field_schema and not is_within(field_value, field_schema[bound_name]):
            raise ValueError(f"this should be {bound_words} {field_schema[bound_name]}")
    return int(field_value) if is_whole else field_value


def _validate_choices(field_schema: Mapping[str, Any], field_value: Any) -> list[str]:
    offered_choices = [choice for choice, _ in list_choices(field_schema)]
    if not isinstance(field_value, list) or any(
        chosen_value not in offered_choices for chosen_value in field_value
    ):
        raise ValueError(f"this should be a list of: {', '.join(offered_choices)}")
    if len(set(field_value)) < len(field_value):
        raise ValueError("this names one twice")
    if (
        not field_schema.get("minItems", 0)
        <= len(field_value)
        <= field_schema.get("maxItems", len(offered_choices))
    ):
        raise ValueError("these are too few or too many")
    return field_value


def _validate_text(field_schema: Mapping[str, Any], field_value: str) -> str:
    if "\0" in field_value or not _is_encodable(field_value):
        raise ValueError("this holds what is no text")
    offered_choices = [choice for choice, _ in list_choices(field_schema)]
    if offered_choices and field_value not in offered_choices:
        raise ValueError(f"this should be one of: {', '.join(offered_choices)}")
    if (
        not field_schema.get("minLength", 0)
        <= len(field_value)
        <= field_schema.get("maxLength", _MAX_ANSWER_CHARS)
    ):
        raise ValueError("this is too short or too long")
    if "pattern" in field_schema and re.search(field_schema["pattern"], field_value) is None:
        raise ValueError(f"this should look like {field_schema['pattern']}")
    if "format" in field_schema and not _has_format(field_schema["format"], field_value):
        raise ValueError(f"this is no {field_schema['format']}")
    return field_value


def _shorten_name(field_name: str) -> str:
    return field_name[:100].encode(errors="replace").decode()


def _is_encodable(field_value: str) -> bool:
    try:
        field_value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_format(format_name: str, field_value: str) -> bool:
    try:
        match format_name:
            case "date":
                date.fromisoformat(field_value)
            case "date-time":
                return datetime.fromisoformat(field_value) is not None and "T" in field_value
            case "uri":
                url_parts = urlsplit(field_value)
                return bool(url_parts.scheme and (url_parts.netloc or url_parts.path))
            case "email":
                return _EMAIL_PATTERN.fullmatch(field_value) is not None
    except ValueError:
        return False
    return True
