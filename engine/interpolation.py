"""Replaces `${VARIABLE}` in parsed YAML by Compose's rules. A variable that is not set is an error.

It does not use `string.Template`, because that has neither defaults nor messages.

${NAME}            the variable's value; an error if it is not set
${NAME:-default}   the default if it is not set or empty; a default may contain variables itself
${NAME:?message}   an error with this message if it is not set or empty
$$                 a dollar sign
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class InterpolationFailed(ValueError):
    """A variable is not set, or the text after a dollar sign is malformed; the message names the place."""


def interpolate_variables(yaml_value: object, variables: Mapping[str, str], *, yaml_path: str = "") -> Any:
    """Return the YAML value with the variables in its strings replaced; keys and other values stay unchanged."""
    match yaml_value:
        case str():
            return "".join(_replace_variables(yaml_value, variables, yaml_path))
        case Mapping():
            return {
                nested_key: interpolate_variables(
                    nested_value, variables, yaml_path=f"{yaml_path}.{nested_key}".lstrip(".")
                )
                for nested_key, nested_value in yaml_value.items()
            }
        case list():
            return [
                interpolate_variables(nested_value, variables, yaml_path=f"{yaml_path}[{item_index}]")
                for item_index, nested_value in enumerate(yaml_value)
            ]
        case _:
            return yaml_value


def collect_defaults(yaml_value: object) -> dict[str, str]:
    """Return each variable that the YAML value refers to, with its default as written, or an empty string."""
    match yaml_value:
        case str():
            return _collect_text_defaults(yaml_value)
        case Mapping():
            return _merge_defaults(collect_defaults(nested_value) for nested_value in yaml_value.values())
        case list():
            return _merge_defaults(collect_defaults(nested_value) for nested_value in yaml_value)
        case _:
            return {}


def _merge_defaults(defaults_of_parts: Iterator[dict[str, str]]) -> dict[str, str]:
    merged_defaults: dict[str, str] = {}
    for part_defaults in defaults_of_parts:
        for variable_name, default_text in part_defaults.items():
            merged_defaults[variable_name] = merged_defaults.get(variable_name) or default_text
    return merged_defaults


def _collect_text_defaults(template_text: str) -> dict[str, str]:
    collected_defaults: dict[str, str] = {}
    for text_piece in _split_pieces(template_text, ""):
        if isinstance(text_piece, tuple):
            variable_name, operator, operand = text_piece
            default_text = operand if operator == ":-" else ""
            collected_defaults[variable_name] = collected_defaults.get(variable_name) or default_text
            collected_defaults |= {
                nested_name: collected_defaults.get(nested_name) or nested_default
                for nested_name, nested_default in _collect_text_defaults(default_text).items()
            }
    return collected_defaults


def _replace_variables(template_text: str, variables: Mapping[str, str], yaml_path: str) -> Iterator[str]:
    for text_piece in _split_pieces(template_text, yaml_path):
        if isinstance(text_piece, str):
            yield text_piece
            continue
        variable_name, operator, operand = text_piece
        variable_value = variables.get(variable_name)
        if variable_value or (variable_value is not None and not operator):
            yield variable_value
        elif operator == ":-":
            yield from _replace_variables(operand, variables, yaml_path)
        else:
            reason = operand or "set it in the environment"
            raise InterpolationFailed(
                _add_yaml_path(yaml_path, f"the variable {variable_name} is not set: {reason}")
            )


def _split_pieces(template_text: str, yaml_path: str) -> Iterator[str | tuple[str, str, str]]:
    """Split a text into plain strings and variable references `(name, operator, operand)`."""
    position = 0
    while (dollar_position := template_text.find("$", position)) >= 0:
        yield template_text[position:dollar_position]
        if template_text.startswith("$$", dollar_position):
            yield "$"
            position = dollar_position + 2
        elif template_text.startswith("${", dollar_position):
            brace_position = _find_closing_brace(template_text, dollar_position + 2, yaml_path)
            yield _parse_reference(template_text[dollar_position + 2 : brace_position], yaml_path)
            position = brace_position + 1
        else:
            raise InterpolationFailed(
                _add_yaml_path(yaml_path, "write ${NAME} for a variable and $$ for a dollar sign")
            )
    yield template_text[position:]


def _find_closing_brace(template_text: str, start_position: int, yaml_path: str) -> int:
    brace_depth = 1
    for position in range(start_position, len(template_text)):
        if template_text[position] == "{" and template_text[position - 1] == "$":
            brace_depth += 1
        elif template_text[position] == "}":
            brace_depth -= 1
            if brace_depth == 0:
                return position
    raise InterpolationFailed(_add_yaml_path(yaml_path, f"a closing brace is missing in {template_text!r}"))


def _parse_reference(reference_text: str, yaml_path: str) -> tuple[str, str, str]:
    name_match = _VARIABLE_NAME.match(reference_text)
    operator_text = reference_text[name_match.end() :] if name_match else reference_text
    if name_match and (not operator_text or operator_text.startswith((":-", ":?"))):
        return name_match.group(), operator_text[:2], operator_text[2:]
    raise InterpolationFailed(
        _add_yaml_path(
            yaml_path,
            f"${{{reference_text}}} is not understood: write ${{NAME}}, ${{NAME:-default}} or ${{NAME:?message}}",
        )
    )


def _add_yaml_path(yaml_path: str, message: str) -> str:
    return f"{yaml_path}: {message}" if yaml_path else message
