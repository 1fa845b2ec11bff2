"""Asks a run's question at the terminal. It notices when the person answers on the question's page instead."""

import select
import sys
from collections.abc import Mapping
from typing import Any

import typer

from gateway.client.api_documents import WaitDocument
from gateway.client.command_errors import CommandFailed, UsageInvalid
from gateway.client.gateway_client import GatewayClient
from gateway.client.parse_arguments import describe_schema, parse_value
from gateway.terminal.safe_text import escape_text

_POLL_INTERVAL_SECONDS = 2.0


class _AnsweredElsewhere(Exception):
    """Raised when the question is no longer open."""


def has_terminal() -> bool:
    """Whether the command runs at a terminal, so that a person can answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask_at_terminal(gateway_client: GatewayClient, pending_wait: WaitDocument) -> None:
    """Ask the question of a wait at the terminal, and send the answer. At the end of input, its page remains."""
    question_id = str(pending_wait.url).rpartition("/")[2]
    question = gateway_client.get_document("questions", question_id)
    _print_message(question["message"])
    while True:
        try:
            answer_content = _read_answer(gateway_client, question)
            gateway_client.post_document(
                "questions", question_id, "answer", request_body={"answer": answer_content}
            )
        except EOFError:
            _print_message("Answer it on its page, then.")
        except UsageInvalid as error:
            _print_message(str(error))
            continue
        except (_AnsweredElsewhere, CommandFailed) as error:
            _print_message(str(error) or "It is answered already.")
        return


def _read_answer(gateway_client: GatewayClient, question: Mapping[str, Any]) -> dict[str, Any]:
    answer_schema = question["answer_schema"]
    answer_content: dict[str, Any] = {}
    for field_name, field_schema in answer_schema["properties"].items():
        answer_text = _read_line(
            gateway_client, question["id"], _format_prompt(field_name, field_schema, answer_schema)
        )
        while (
            not answer_text
            and field_name in answer_schema.get("required", ())
            and "default" not in field_schema
        ):
            answer_text = _read_line(
                gateway_client, question["id"], _format_prompt(field_name, field_schema, answer_schema)
            )
        if answer_text:
            answer_content[field_name] = parse_value(answer_text, field_schema, answer_schema)
        elif "default" in field_schema:
            answer_content[field_name] = field_schema["default"]
    return answer_content


def _format_prompt(field_name: str, field_schema: Mapping[str, Any], answer_schema: Mapping[str, Any]) -> str:
    field_title = field_schema.get("description") or field_schema.get("title") or field_name
    default_hint = f" [{field_schema['default']}]" if "default" in field_schema else ""
    return f"{field_title} ({describe_schema(field_schema, answer_schema)}){default_hint}: "


def _read_line(gateway_client: GatewayClient, question_id: str, prompt_text: str) -> str:
    """Return a line of the terminal. Raises EOFError at its end, and _AnsweredElsewhere if the question is closed."""
    typer.echo(escape_text(prompt_text), nl=False, err=True)
    while not select.select([sys.stdin], [], [], _POLL_INTERVAL_SECONDS)[0]:
        if gateway_client.get_document("questions", question_id)["state"] != "open":
            typer.echo(err=True)
            raise _AnsweredElsewhere
    input_line = sys.stdin.readline()
    if not input_line:
        raise EOFError
    return input_line.strip()


def _print_message(message_text: str) -> None:
    typer.echo(escape_text(message_text), err=True)
