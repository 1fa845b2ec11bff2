"""Models of the REST API's documents about tools and runs, with the fields that the command line shows."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

ENDED: Final = frozenset({"completed", "failed", "cancelled", "terminated", "timed_out", "unknown"})


class Answer(BaseModel):
    """Base class of the documents. It ignores fields that a newer gateway may add."""

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
    """The progress that a workflow reports: a message, and how much of which total is done."""

    message: str = ""
    done: float | None = None
    of: float | None = None


class Wait(Answer):
    """What a workflow waits for, with the address of the page if the caller can answer it."""

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
        """Yield the step itself and every step below it."""
        yield self
        for child in self.children:
            yield from child.all()


class Happened(Answer):
    """An audit event of a run, with the kinds and fields of the audit reference."""

    kind: str
    event: dict[str, Any]


class RunError(Answer):
    """The code and message of the error that ended a run."""

    code: str
    message: str


class RunState(Answer):
    """One run. A list leaves out its steps and its result."""

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
        """Whether the run has reached a final status."""
        return self.status in ENDED

    def all_steps(self) -> Iterator[Step]:
        """Yield every workflow of the run, the root first."""
        for step in self.steps:
            yield from step.all()

    def waits(self) -> list[Wait]:
        """Return everything that any of its workflows waits for, without duplicates."""
        return list(dict.fromkeys(wait for step in self.all_steps() for wait in step.waiting_for))
