"""Lets a tool ask the MCP client that called it for sampling or roots. It is safe to import from workflow code.

The person sees none of it. In a run that anything but an MCP client began, the question is declined at once.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from engine.errors import AnswerInvalid
from engine.questions.asking import Asked, QuestionKind, checked_name, put

_PATIENCE: Final = timedelta(minutes=5)
_LONGEST: Final = 500_000


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
    timeout: timedelta = _PATIENCE,  # noqa: ASYNC109 -- a wait that the client sees
) -> str:
    """Have the model of the client that called this run write at most so many tokens, and give its text.

    Raises a final ApplicationError of type `question_declined` or `question_expired`. A tool that cannot do without
    says `requires=("sampling",)`.
    """
    message = {"role": "user", "content": {"type": "text", "text": prompt}}
    parameters: dict[str, Any] = {"messages": [message], "maxTokens": max_tokens}
    if system is not None:
        parameters["systemPrompt"] = system
    answered = await put(_asked("sampling", prompt, parameters, name, timeout))
    return str(answered.content["text"])


async def roots(*, name: str | None = None, timeout: timedelta = _PATIENCE) -> list[Root]:  # noqa: ASYNC109 -- as above
    """The folders and files that the client which called this run works on; raises as `sample` does."""
    answered = await put(_asked("roots", "Which folders and files do you work on?", {}, name, timeout))
    return _ListRootsResult.model_validate(answered.content).roots


def fitting_of_client(kind: QuestionKind, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a client's answer as it is stored; raises AnswerInvalid.

    The answer is a CreateMessageResult, of which the text is stored, or a ListRootsResult.
    """
    try:
        if kind == "roots":
            return _ListRootsResult.model_validate(content).model_dump(mode="json", exclude_none=True)
        written = _CreateMessageResult.model_validate(content).text
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
            for each in error.errors(include_url=False, include_input=False)
        )
        raise AnswerInvalid(f"The answer does not fit: {problems}.") from None
    if not written or len(written) > _LONGEST or "\0" in written:
        raise AnswerInvalid("The answer holds no text, or too much of it.")
    return {"text": written}


def _asked(
    kind: QuestionKind, message: str, parameters: dict[str, Any], name: str | None, timeout: timedelta
) -> Asked:
    return Asked(
        message,
        {},
        timeout=timeout.total_seconds(),
        kind=kind,
        parameters=parameters,
        name=checked_name(name),
    )


class _Block(BaseModel):
    type: str
    text: str = ""


class _CreateMessageResult(BaseModel):
    role: Literal["assistant", "user"]
    model: str
    content: _Block | list[_Block]

    @property
    def text(self) -> str:
        blocks = self.content if isinstance(self.content, list) else [self.content]
        return "".join(block.text for block in blocks if block.type == "text")


class _ListRootsResult(BaseModel):
    roots: list[Root] = Field(max_length=1_000)
