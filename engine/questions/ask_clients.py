"""Lets a tool ask the MCP client that called it for sampling or roots. It is safe to import from workflow code.

The person sees none of it. In a run that anything but an MCP client began, the question is declined at once.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from engine.errors import AnswerInvalid
from engine.questions.ask_people import QuestionInput, QuestionKind, check_question_name, put_question
from engine.validation_errors import describe_validation_error

_CLIENT_TIMEOUT: Final = timedelta(minutes=5)
_MAX_TEXT_CHARS: Final = 500_000


class Root(BaseModel, frozen=True):
    """A folder or file that the client works on: a URI, usually `file://…`, and perhaps a name."""

    uri: str = Field(max_length=10_000)
    name: str | None = Field(default=None, max_length=1_000)


async def sample(
    prompt: str,
    *,
    max_tokens: int,
    system: str | None = None,
    name: str | None = None,
    timeout: timedelta = _CLIENT_TIMEOUT,  # noqa: ASYNC109 -- a wait that the client sees
) -> str:
    """Have the model of the client that called this run write at most so many tokens, and give its text.

    Raises a final ApplicationError of type `question_declined` or `question_expired`. A tool that cannot do without
    says `requires=("sampling",)`.
    """
    user_message = {"role": "user", "content": {"type": "text", "text": prompt}}
    request_parameters: dict[str, Any] = {"messages": [user_message], "maxTokens": max_tokens}
    if system is not None:
        request_parameters["systemPrompt"] = system
    question_answer = await put_question(
        _build_question_input("sampling", prompt, request_parameters, name, timeout)
    )
    return str(question_answer.content["text"])


async def roots(*, name: str | None = None, timeout: timedelta = _CLIENT_TIMEOUT) -> list[Root]:  # noqa: ASYNC109 -- as above
    """The folders and files that the client which called this run works on; raises as `sample` does."""
    question_answer = await put_question(
        _build_question_input("roots", "Which folders and files do you work on?", {}, name, timeout)
    )
    return _ListRootsResult.model_validate(question_answer.content).roots


def validate_client_answer(question_kind: QuestionKind, answer_content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a client's answer as it is stored; raises AnswerInvalid.

    The answer is a CreateMessageResult, of which the text is stored, or a ListRootsResult.
    """
    try:
        if question_kind == "roots":
            return _ListRootsResult.model_validate(answer_content).model_dump(mode="json", exclude_none=True)
        sampled_text = _CreateMessageResult.model_validate(answer_content).text
    except ValidationError as error:
        raise AnswerInvalid(f"The answer does not fit: {describe_validation_error(error)}.") from None
    if not sampled_text or len(sampled_text) > _MAX_TEXT_CHARS or "\0" in sampled_text:
        raise AnswerInvalid("The answer holds no text, or too much of it.")
    return {"text": sampled_text}


def _build_question_input(
    question_kind: QuestionKind,
    question_text: str,
    request_parameters: dict[str, Any],
    question_name: str | None,
    timeout: timedelta,
) -> QuestionInput:
    return QuestionInput(
        question_text,
        {},
        timeout=timeout.total_seconds(),
        kind=question_kind,
        parameters=request_parameters,
        name=check_question_name(question_name),
    )


class _ContentBlock(BaseModel):
    type: str
    text: str = ""


class _CreateMessageResult(BaseModel):
    role: Literal["assistant", "user"]
    model: str
    content: _ContentBlock | list[_ContentBlock]

    @property
    def text(self) -> str:
        content_blocks = self.content if isinstance(self.content, list) else [self.content]
        return "".join(content_block.text for content_block in content_blocks if content_block.type == "text")


class _ListRootsResult(BaseModel):
    roots: list[Root] = Field(max_length=1_000)
