"""Reads a tool's arguments from the command line: words by its schema, and JSON from a file or standard input."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.client.api_documents import ToolDocument
from gateway.client.command_errors import UsageInvalid
from gateway.client.gateway_client import GatewayClient
from gateway.client.parse_arguments import parse_arguments

ArgumentOption = Annotated[
    list[str] | None,
    typer.Option(
        "--arg",
        help="an argument as name=value; may be repeated, also for each item of a list",
        metavar="NAME=VALUE",
    ),
]
ArgumentsFileOption = Annotated[
    Path | None,
    typer.Option(allow_dash=True, help="a file with all arguments in JSON, or - for standard input"),
]


def read_arguments(
    gateway_client: GatewayClient, tool_name: str, argument_pairs: Sequence[str], file_path: Path | None
) -> dict[str, Any]:
    """Return the arguments for a tool. Raises UsageInvalid if its input schema shows that they do not fit."""
    json_arguments = {} if file_path is None else read_json_object(file_path)
    return parse_arguments(
        ToolDocument.model_validate(gateway_client.get_document("tools", tool_name)).input_schema,
        argument_pairs,
        json_arguments,
    )


def read_json_object(file_path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or on standard input if the path is a dash. Raises UsageInvalid."""
    try:
        json_document = json.loads(sys.stdin.read() if str(file_path) == "-" else file_path.read_text())
    except OSError as error:
        raise UsageInvalid(f"{file_path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageInvalid(f"{file_path} holds no JSON: {error}") from error
    if not isinstance(json_document, dict):
        raise UsageInvalid(f"{file_path} should hold one JSON object")
    return json_document
