"""Reads a tool's arguments from the command line: words by its schema, and JSON from a file or standard input."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.client.answers import Tool
from gateway.client.api import Gateway
from gateway.client.arguments import arguments
from gateway.client.failures import WrongUse

Arg = Annotated[
    list[str] | None,
    typer.Option(
        "--arg", help="an argument as name=value; again for each item of a list", metavar="NAME=VALUE"
    ),
]
ArgsJson = Annotated[
    Path | None,
    typer.Option(allow_dash=True, help="a file with all arguments in JSON, or - for standard input"),
]


def given_arguments(gateway: Gateway, tool: str, pairs: Sequence[str], path: Path | None) -> dict[str, Any]:
    """Return the arguments for a tool. Raises UsageInvalid if its input schema shows that they do not fit."""
    given = {} if path is None else json_object(path)
    return arguments(Tool.model_validate(gateway.get("tools", tool)).input_schema, pairs, given)


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or on standard input if the path is a dash. Raises UsageInvalid."""
    try:
        found = json.loads(sys.stdin.read() if str(path) == "-" else path.read_text())
    except OSError as error:
        raise WrongUse(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WrongUse(f"{path} holds no JSON: {error}") from error
    if not isinstance(found, dict):
        raise WrongUse(f"{path} should hold one JSON object")
    return found
