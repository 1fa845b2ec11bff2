"""Replaces `${VARIABLE}` in parsed YAML by Compose's rules. A variable that is not set is an error.

${NAME}            the variable's value; an error if it is not set
${NAME:-default}   the default if it is not set or empty; a default may contain variables itself
${NAME:?message}   an error with this message if it is not set or empty
$$                 a dollar sign
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class InterpolationFailed(ValueError):
    """A variable is not set, or the text after a dollar sign is malformed; the message names the place."""


def interpolate(value: object, variables: Mapping[str, str], *, at: str = "") -> Any:
    """Return the YAML value with the variables in its strings replaced; keys and other values stay unchanged."""
    match value:
        case str():
            return "".join(_replaced(value, variables, at))
        case Mapping():
            return {
                key: interpolate(item, variables, at=f"{at}.{key}".lstrip(".")) for key, item in value.items()
            }
        case list():
            return [interpolate(item, variables, at=f"{at}[{place}]") for place, item in enumerate(value)]
        case _:
            return value


def defaults(value: object) -> dict[str, str]:
    """Return each variable that the YAML value refers to, with its default as written, or an empty string."""
    match value:
        case str():
            return _named(value)
        case Mapping():
            return _merged(defaults(item) for item in value.values())
        case list():
            return _merged(defaults(item) for item in value)
        case _:
            return {}


def _merged(parts: Iterator[dict[str, str]]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for part in parts:
        for name, default in part.items():
            merged[name] = merged.get(name) or default
    return merged


def _named(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for piece in _pieces(text, ""):
        if isinstance(piece, tuple):
            name, operator, operand = piece
            default = operand if operator == ":-" else ""
            found[name] = found.get(name) or default
            found |= {
                inner: found.get(inner) or its_default for inner, its_default in _named(default).items()
            }
    return found


def _replaced(text: str, variables: Mapping[str, str], at: str) -> Iterator[str]:
    for piece in _pieces(text, at):
        if isinstance(piece, str):
            yield piece
            continue
        name, operator, operand = piece
        known = variables.get(name)
        if known or (known is not None and not operator):
            yield known
        elif operator == ":-":
            yield from _replaced(operand, variables, at)
        else:
            reason = operand or "set it in the environment"
            raise InterpolationFailed(_told(at, f"the variable {name} is not set: {reason}"))


def _pieces(text: str, at: str) -> Iterator[str | tuple[str, str, str]]:
    """Split a text into plain strings and variable references `(name, operator, operand)`."""
    position = 0
    while (dollar := text.find("$", position)) >= 0:
        yield text[position:dollar]
        if text.startswith("$$", dollar):
            yield "$"
            position = dollar + 2
        elif text.startswith("${", dollar):
            end = _closing_brace(text, dollar + 2, at)
            yield _reference(text[dollar + 2 : end], at)
            position = end + 1
        else:
            raise InterpolationFailed(_told(at, "write ${NAME} for a variable and $$ for a dollar sign"))
    yield text[position:]


def _closing_brace(text: str, start: int, at: str) -> int:
    depth = 1
    for place in range(start, len(text)):
        if text[place] == "{" and text[place - 1] == "$":
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if depth == 0:
                return place
    raise InterpolationFailed(_told(at, f"a closing brace is missing in {text!r}"))


def _reference(body: str, at: str) -> tuple[str, str, str]:
    name = _NAME.match(body)
    rest = body[name.end() :] if name else body
    if name and (not rest or rest.startswith((":-", ":?"))):
        return name.group(), rest[:2], rest[2:]
    raise InterpolationFailed(
        _told(at, f"${{{body}}} is not understood: write ${{NAME}}, ${{NAME:-default}} or ${{NAME:?message}}")
    )


def _told(at: str, message: str) -> str:
    return f"{at}: {message}" if at else message
