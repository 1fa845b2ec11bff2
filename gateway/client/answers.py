"""What the API says of tools and runs, as far as the command line shows it; what it does not know, it passes over."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

ENDED: Final = frozenset({"completed", "failed", "cancelled", "terminated", "timed_out", "unknown"})


class Answer(BaseModel):
    """A part of an answer; a newer gateway may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Use(Answer):
    """A connection that a tool may use."""

    name: str


class Tool(Answer):
    """A composite tool."""

    name: str
    title: str = ""
    description: str = ""
    input_schema: dict[str, Any] = Field(default_factory=dict)
    output_schema: dict[str, Any] | None = None
    connections: list[Use] = Field(default_factory=list)


class Progress(Answer):
    """What a workflow says of how far it is."""

    message: str = ""
    done: float | None = None
    of: float | None = None


class Wait(Answer):
    """What a workflow waits for, and where it can be answered where that is the caller's to do."""

    kind: str
    title: str
    url: str | None = None
    expires_at: datetime | None = None
    role: str | None = None


class Step(Answer):
    """One workflow of a run."""

    workflow_id: str
    type: str
    status: str
    progress: Progress | None = None
    waiting_for: tuple[Wait, ...] = ()
    children: tuple["Step", ...] = ()

    def all(self) -> Iterator["Step"]:
        """The step itself, and every one below it."""
        yield self
        for child in self.children:
            yield from child.all()


class Happened(Answer):
    """A line of a run's trail, in the words of the audit reference."""

    kind: str
    event: dict[str, Any]


class RunError(Answer):
    """Why a run did not return."""

    code: str
    message: str


class RunState(Answer):
    """One run; in a list without its steps and its result."""

    id: str
    tool: str
    status: str
    started_at: datetime
    ended_at: datetime | None = None
    trigger: str = ""
    retry_of: str | None = None
    result: Any = None
    error: RunError | None = None
    progress: Progress | None = None
    steps: tuple[Step, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ENDED

    def all_steps(self) -> Iterator[Step]:
        """Every workflow of the run, the root first."""
        for step in self.steps:
            yield from step.all()

    def waits(self) -> list[Wait]:
        """Everything that any of its workflows waits for, each once."""
        return list(dict.fromkeys(wait for step in self.all_steps() for wait in step.waiting_for))
