"""Models of the REST API's documents about tools and runs, with the fields that the command line shows."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

FINAL_STATUSES: Final = frozenset({"completed", "failed", "cancelled", "terminated", "timed_out", "unknown"})


class ApiDocument(BaseModel):
    """Base class of the documents. It ignores fields that a newer gateway may add."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class UsedConnection(ApiDocument):
    """A connection that a tool may use."""

    name: str


class ToolDocument(ApiDocument):
    """A composite tool."""

    name: str
    title: str = ""
    description: str = ""
    input_schema: dict[str, Any] = Field(default_factory=dict)
    output_schema: dict[str, Any] | None = None
    connections: list[UsedConnection] = Field(default_factory=list)


class ProgressDocument(ApiDocument):
    """The progress that a workflow reports: a message, and how much of which total is done."""

    message: str = ""
    done: float | None = None
    of: float | None = None


class WaitDocument(ApiDocument):
    """What a workflow waits for, with the address of the page if the caller can answer it."""

    kind: str
    title: str
    url: str | None = None
    expires_at: datetime | None = None
    role: str | None = None


class StepDocument(ApiDocument):
    """One workflow of a run."""

    workflow_id: str
    type: str
    status: str
    progress: ProgressDocument | None = None
    waiting_for: tuple[WaitDocument, ...] = ()
    children: tuple["StepDocument", ...] = ()

    def iterate_subtree(self) -> Iterator["StepDocument"]:
        """Yield the step itself and every step below it."""
        yield self
        for child_step in self.children:
            yield from child_step.iterate_subtree()


class AuditEventDocument(ApiDocument):
    """An audit event of a run, with the kinds and fields of the audit reference."""

    kind: str
    event: dict[str, Any]


class RunErrorDocument(ApiDocument):
    """The code and message of the error that ended a run."""

    code: str
    message: str


class RunDocument(ApiDocument):
    """One run. A list leaves out its steps and its result."""

    id: str
    tool: str
    status: str
    started_at: datetime
    ended_at: datetime | None = None
    trigger: str = ""
    retry_of: str | None = None
    result: Any = None
    error: RunErrorDocument | None = None
    progress: ProgressDocument | None = None
    steps: tuple[StepDocument, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether the run has reached a final status."""
        return self.status in FINAL_STATUSES

    def iterate_steps(self) -> Iterator[StepDocument]:
        """Yield every workflow of the run, the root first."""
        for step in self.steps:
            yield from step.iterate_subtree()

    def list_waits(self) -> list[WaitDocument]:
        """Return everything that any of its workflows waits for, without duplicates."""
        return list(dict.fromkeys(wait for step in self.iterate_steps() for wait in step.waiting_for))
