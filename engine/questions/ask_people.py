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
from engine.questions.answer_schemas import build_flat_schema
from engine.validation_errors import describe_validation_error
from engine.wire import ASK_ACTIVITY

T = TypeVar("T")

_QUESTION_END_CODES: Final = frozenset(
    error_class.code
    for error_class in (QuestionDeclined, QuestionExpired, QuestionCancelled, ApprovalDenied, ApprovalExpired)
)
_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ATTEMPT_TIMEOUT: Final = timedelta(seconds=30)
_RETRY_POLICY: Final = RetryPolicy(maximum_interval=timedelta(seconds=30))


QuestionKind = Literal["form", "sampling", "roots"]
"""Who answers: a person (`form`), or the MCP client that called the run (`sampling`, `roots`)."""


@dataclass(frozen=True, slots=True)
class QuestionInput:
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
class QuestionAnswer:
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
    answer_schema = build_flat_schema(adapter, answer.__name__)
    question_answer = await put_question(
        QuestionInput(message, answer_schema, timeout=_to_seconds(timeout), name=check_question_name(name))
    )
    try:
        return adapter.validate_json(json.dumps(question_answer.content))
    except ValidationError as error:
        problems = describe_validation_error(error, root_name="answer")
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
    empty_schema = {"type": "object", "properties": {}, "required": []}
    return (
        await put_question(QuestionInput(message, empty_schema, role=role, timeout=_to_seconds(timeout)))
    ).by


def check_question_name(question_name: str | None) -> str | None:
    """Return the name of a question, which may be None; raises ValueError if it is malformed."""
    if question_name is not None and not _NAME_PATTERN.fullmatch(question_name):
        raise ValueError(
            f"{question_name!r} is no name for a question: use up to 64 letters, digits, dots, - and _."
        )
    return question_name


async def put_question(question_input: QuestionInput) -> QuestionAnswer:
    """Ask a question and wait for its answer; raises a non-retryable ApplicationError if none comes."""
    try:
        question_answer: QuestionAnswer = await workflow.execute_activity(
            ASK_ACTIVITY,
            question_input,
            result_type=QuestionAnswer,
            start_to_close_timeout=_ATTEMPT_TIMEOUT,
            retry_policy=_RETRY_POLICY,
            summary=question_input.message[:200],
        )
    except ActivityError as error:
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.type in _QUESTION_END_CODES:
            raise ApplicationError(cause.message, type=cause.type, non_retryable=True) from error
        raise
    return question_answer


def _to_seconds(timeout: timedelta | None) -> float | None:
    return None if timeout is None else timeout.total_seconds()
