"""Asks a run's question at the terminal. It notices when the person answers on the question's page instead."""

import select
import sys
from collections.abc import Mapping
from typing import Any

import typer

from gateway.client.answers import Wait
from gateway.client.api import Gateway
from gateway.client.arguments import kind_of, value_of
from gateway.client.failures import CommandFailed, WrongUse
from gateway.commands.plain import plain

_LOOK_EVERY_SECONDS = 2.0


class _AnsweredElsewhere(Exception):
    """Raised when the question is no longer open."""


def somebody_is_there() -> bool:
    """Whether the command runs at a terminal, so that a person can answer."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask_here(gateway: Gateway, wait: Wait) -> None:
    """Ask the question of a wait at the terminal, and send the answer. At the end of input, its page remains."""
    question_id = str(wait.url).rpartition("/")[2]
    question = gateway.get("questions", question_id)
    _say(question["message"])
    while True:
        try:
            answer = _answer(gateway, question)
            gateway.post("questions", question_id, "answer", body={"answer": answer})
        except EOFError:
            _say("Answer it on its page, then.")
        except WrongUse as error:
            _say(str(error))
            continue
        except (_AnsweredElsewhere, CommandFailed) as error:
            _say(str(error) or "It is answered already.")
        return


def _answer(gateway: Gateway, question: Mapping[str, Any]) -> dict[str, Any]:
    schema = question["answer_schema"]
    found: dict[str, Any] = {}
    for name, field in schema["properties"].items():
        text = _line(gateway, question["id"], _prompt(name, field, schema))
        while not text and name in schema.get("required", ()) and "default" not in field:
            text = _line(gateway, question["id"], _prompt(name, field, schema))
        if text:
            found[name] = value_of(text, field, schema)
        elif "default" in field:
            found[name] = field["default"]
    return found


def _prompt(name: str, field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    title = field.get("description") or field.get("title") or name
    default = f" [{field['default']}]" if "default" in field else ""
    return f"{title} ({kind_of(field, schema)}){default}: "


def _line(gateway: Gateway, question_id: str, prompt: str) -> str:
    """Return a line of the terminal. Raises EOFError at its end, and _AnsweredElsewhere if the question is closed."""
    typer.echo(plain(prompt), nl=False, err=True)
    while not select.select([sys.stdin], [], [], _LOOK_EVERY_SECONDS)[0]:
        if gateway.get("questions", question_id)["state"] != "open":
            typer.echo(err=True)
            raise _AnsweredElsewhere
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()


def _say(text: str) -> None:
    typer.echo(plain(text), err=True)
