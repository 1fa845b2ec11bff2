"""Lets a tool ask a person mid-run and wait for the answer. It is safe to import from workflow code.

The activity `byline.ask` stores the question and parks until it is answered. Never ask for a secret, because questions
and answers are in the run's history.
"""

import json
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

from engine.errors import (
    AnswerInvalid,
    ApprovalDenied,
    ApprovalExpired,
    QuestionCancelled,
    QuestionDeclined,
    QuestionExpired,
)
from engine.questions.schemas import flat_schema
from engine.wire import ASK_ACTIVITY

T = TypeVar("T")

_ENDED: Final = frozenset(
    kind.code
    for kind in (QuestionDeclined, QuestionExpired, QuestionCancelled, ApprovalDenied, ApprovalExpired)
)
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ONE_TRY: Final = timedelta(seconds=30)
_PATIENCE: Final = RetryPolicy(maximum_interval=timedelta(seconds=30))


QuestionKind = Literal["form", "sampling", "roots"]
"""Who answers: a person (`form`), or the MCP client that called the run (`sampling`, `roots`)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The input of the activity `byline.ask`.

    Without `role` the run's principal is asked. `timeout` is in seconds. `parameters` is the request to a client as
    MCP puts it on the wire, and `name` is the key under which the client gets it.
    """

    message: str
    answer_schema: dict[str, Any]
    role: str | None = None
    timeout: float | None = None
    kind: QuestionKind = "form"
    parameters: dict[str, Any] | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Person:
    """Who answered."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The result of the activity `byline.ask`: the fields of the answer, and who gave it."""

    content: dict[str, Any]
    by: Person


async def ask(
    message: str,
    answer: type[T],
    *,
    name: str | None = None,
    timeout: timedelta | None = None,  # noqa: ASYNC109 -- a wait of days, which the person sees
) -> T:
    """Ask the person for whom this run acts, and wait, free of cost, until they answer.

    `answer` is a flat pydantic model or dataclass: strings, numbers, booleans, and choices among strings. `name` is
    the key under which a client is given the question. Raises a final ApplicationError of type `question_declined` or
    `question_expired`. Without `timeout` the question stays open as long as BYLINE_WAIT_LIMIT says.
    """
    adapter = TypeAdapter(answer)
    schema = flat_schema(adapter, answer.__name__)
    answered = await put(Asked(message, schema, timeout=_seconds(timeout), name=checked_name(name)))
    try:
        return adapter.validate_json(json.dumps(answered.content))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'answer'}: {each['msg']}"
            for each in error.errors(include_url=False, include_input=False)
        )
        raise ApplicationError(
            f"The answer does not fit {answer.__name__}: {problems}.",
            type=AnswerInvalid.code,
            non_retryable=True,
        ) from None


async def approval(message: str, *, role: str, timeout: timedelta | None = None) -> Person:  # noqa: ASYNC109 -- as above
    """Wait until somebody else who has the role says yes; returns who did.

    Never the person for whom this run acts, even where they have the role, and never a service. Raises a final
    ApplicationError of type `approval_denied` or `approval_expired`.
    """
    nothing = {"type": "object", "properties": {}, "required": []}
    return (await put(Asked(message, nothing, role=role, timeout=_seconds(timeout)))).by


def checked_name(name: str | None) -> str | None:
    """Return the name of a question, which may be None; raises ValueError if it is malformed."""
    if name is not None and not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a question: use up to 64 letters, digits, dots, - and _.")
    return name


async def put(asked: Asked) -> Answered:
    """Ask a question and wait for its answer; raises a non-retryable ApplicationError if none comes."""
    try:
        answered: Answered = await workflow.execute_activity(
            ASK_ACTIVITY,
            asked,
            result_type=Answered,
            start_to_close_timeout=_ONE_TRY,
            retry_policy=_PATIENCE,
            summary=asked.message[:200],
        )
    except ActivityError as error:
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.type in _ENDED:
            raise ApplicationError(cause.message, type=cause.type, non_retryable=True) from error
        raise
    return answered


def _seconds(timeout: timedelta | None) -> float | None:
    return None if timeout is None else timeout.total_seconds()
