"""Reads what a run is doing: its steps from Temporal, and what they wait for from the database."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError
from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus

from engine.errors import RunForgotten
from engine.identity.model import Principal, TriggerKind
from engine.identity.runs import Run
from engine.services import Services
from engine.wire import NOTIFY_WORKFLOW, PROGRESS_MEMO
from gateway.links import connect_link, question_link
from gateway.runs.runs import Failed, Finished, Runs

RunStatus = Literal[
    "running", "waiting", "completed", "failed", "cancelled", "terminated", "timed_out", "unknown"
]

GOES_ON: Final[frozenset[RunStatus]] = frozenset({"running", "waiting"})

_STATUS: Final[Mapping[WorkflowExecutionStatus, RunStatus]] = {
    WorkflowExecutionStatus.COMPLETED: "completed",
    WorkflowExecutionStatus.FAILED: "failed",
    WorkflowExecutionStatus.CANCELED: "cancelled",
    WorkflowExecutionStatus.TERMINATED: "terminated",
    WorkflowExecutionStatus.TIMED_OUT: "timed_out",
}
_MOST_STEPS: Final = 500
_AT_ONCE: Final = 8
_FORGOTTEN: Final = (
    "The workflow engine does not keep this run any more, or never started it. What it did is in the trail."
)


class Progress(BaseModel):
    """The progress that a workflow reports."""

    message: str
    done: float | None = None
    of: float | None = None


class WaitingFor(BaseModel):
    """An answer that a step waits for."""

    kind: Literal["connection", "question", "approval", "client"]
    title: str
    url: str | None = Field(
        description="Where it is answered; only told to those whom it asks. A client's answer has no page."
    )
    expires_at: datetime
    role: str | None = Field(default=None, description="Whoever has this role is asked.")


class Step(BaseModel):
    """A workflow of the run, and the children of it that have not ended."""

    workflow_id: str
    type: str
    status: RunStatus
    progress: Progress | None
    waiting_for: list[WaitingFor]
    children: list["Step"]


class RunError(BaseModel):
    """Why a run ended without a result."""

    code: str
    message: str


class RunSummary(BaseModel):
    """One run."""

    id: str
    tool: str
    status: RunStatus = Field(
        description="`unknown` where the workflow engine does not keep the run any more, or never started it."
    )
    started_at: datetime
    ended_at: datetime | None
    trigger: TriggerKind
    actor: str = Field(description="What started it for its principal.")
    retry_of: str | None = Field(description="The run that this one repeats.")


class RunState(RunSummary):
    """One run with its outcome, and what each of its steps does or waits for."""

    result: Any = Field(description="What the tool returned, once the run completed.")
    error: RunError | None
    progress: Progress | None
    steps: list[Step] = Field(description="The root workflow; empty where the run is not kept.")
    truncated: bool = Field(
        description=f"Whether there are more steps than the {_MOST_STEPS} that are shown."
    )


@dataclass(slots=True)
class _Tree:
    """What is shared while the steps of one run are read."""

    waits: Mapping[str, list[WaitingFor]]
    left: int = _MOST_STEPS
    truncated: bool = False
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))


class RunStates:
    """Reads the state of runs. Callers check before whether the viewer may see a run."""

    def __init__(self, services: Services, runs: Runs) -> None:
        self._services = services
        self._runs = runs

    async def of(self, run: Run, viewer: Principal) -> RunState:
        """Return the state of a run as this principal may see it. Raises TemporalUnreachable."""
        description = await self._runs.described(run.id)
        if description is None:
            error = RunError(code=RunForgotten.code, message=_FORGOTTEN)
            return _state(run, "unknown", None, error=error)
        tree = _Tree(await self._waits(run.id, viewer))
        root = await self._step(description, tree)
        status: RunStatus = root.status
        if status == "running" and tree.waits:
            status = "waiting"
        outcome = None if status in GOES_ON else await self._runs.result(run.id)
        return _state(
            run,
            status,
            description.close_time,
            result=outcome.value if isinstance(outcome, Finished) else None,
            error=RunError(code=outcome.code, message=outcome.message)
            if isinstance(outcome, Failed)
            else None,
            progress=root.progress,
            steps=[root],
            truncated=tree.truncated,
        )

    async def summaries(self, runs: Sequence[Run]) -> list[RunSummary]:
        """Return a summary of each of these runs, in their order. Raises TemporalUnreachable."""
        waiting = await self._services.waiters.awaited_in([run.id for run in runs])
        slots = asyncio.Semaphore(_AT_ONCE)

        async def summary(run: Run) -> RunSummary:
            async with slots:
                description = await self._runs.described(run.id)
            return _summary(run, description, is_waiting=run.id in waiting)

        return list(await asyncio.gather(*(summary(run) for run in runs)))

    async def progress(self, run_id: str) -> Progress | None:
        """Return the progress that a run reports, or None. Raises TemporalUnreachable."""
        description = await self._runs.described(run_id)
        return None if description is None else await _progress(description)

    async def _step(self, description: WorkflowExecutionDescription, tree: _Tree) -> Step:
        children_left = description.raw_description.pending_children
        # The workflow that notifies people of a run is not one of its steps.
        pending = [each for each in children_left if each.workflow_type_name != NOTIFY_WORKFLOW]
        shown = pending[: max(0, tree.left)]
        tree.left -= len(shown)
        tree.truncated = tree.truncated or len(shown) < len(pending)

        async def child(workflow_id: str, run_id: str) -> Step | None:
            async with tree.slots:
                found = await self._runs.described(workflow_id, run_id)
            return None if found is None else await self._step(found, tree)

        children = await asyncio.gather(*(child(each.workflow_id, each.run_id) for each in shown))
        waits = tree.waits.get(description.id, [])
        status = status_of(description)
        return Step(
            workflow_id=description.id,
            type=description.workflow_type,
            status="waiting" if status == "running" and waits else status,
            progress=await _progress(description),
            waiting_for=waits,
            children=[each for each in children if each is not None],
        )

    async def _waits(self, run_id: str, viewer: Principal) -> dict[str, list[WaitingFor]]:
        """Return what each workflow of a run waits for, by workflow id."""
        waiters = await self._services.waiters.waiting(run_id)
        if not waiters:
            return {}
        answers = await self._answers({waiter.awaits for waiter in waiters}, run_id, viewer)
        found: dict[str, dict[str, WaitingFor]] = {}
        for waiter in waiters:
            if waiter.awaits in answers:
                found.setdefault(waiter.workflow_id, {})[waiter.awaits] = answers[waiter.awaits]
        return {workflow_id: list(waits.values()) for workflow_id, waits in found.items()}

    async def _answers(
        self, awaited: Collection[str], run_id: str, viewer: Principal
    ) -> dict[str, WaitingFor]:
        """Return what a run waits for, by the id of the request or question. Only whoever is asked gets a link."""
        connections = await self._services.catalogue.all()
        found: dict[str, WaitingFor] = {}
        for request in await self._services.authorization.awaited_by(run_id):
            if request.id not in awaited:
                continue
            connection = connections.get(request.connection)
            is_asked = request.principal_id == viewer.id and request.is_open
            found[request.id] = WaitingFor(
                kind="connection",
                title=request.connection if connection is None else connection.title,
                url=connect_link(self._services, request) if is_asked else None,
                expires_at=request.expires_at,
            )
        for question in await self._services.questions.awaited_by(run_id):
            if question.kind != "form":
                found[question.id] = WaitingFor(
                    kind="client", title=question.message, url=None, expires_at=question.expires_at
                )
                continue
            is_asked = question.role is None and question.principal_id == viewer.id
            found[question.id] = WaitingFor(
                kind="question" if question.role is None else "approval",
                title=question.message,
                url=question_link(self._services, question) if is_asked else None,
                expires_at=question.expires_at,
                role=question.role,
            )
        return found


def status_of(description: WorkflowExecutionDescription) -> RunStatus:
    """Return the status of a workflow as Temporal alone sees it: one that waits is running."""
    return "running" if description.status is None else _STATUS.get(description.status, "running")


async def _progress(description: WorkflowExecutionDescription) -> Progress | None:
    """Read the progress that a workflow reports in its memo, or None where there is none that can be read."""
    told = (await description.memo()).get(PROGRESS_MEMO)
    try:
        return None if told is None else Progress.model_validate(told)
    except ValidationError:
        return None


def _summary(run: Run, description: WorkflowExecutionDescription | None, *, is_waiting: bool) -> RunSummary:
    status = "unknown" if description is None else status_of(description)
    return RunSummary(
        id=run.id,
        tool=run.tool,
        status="waiting" if status == "running" and is_waiting else status,
        started_at=run.started_at,
        ended_at=None if description is None else description.close_time,
        trigger=run.trigger,
        actor=run.actor,
        retry_of=run.retry_of,
    )


def _state(
    run: Run,
    status: RunStatus,
    ended_at: datetime | None,
    *,
    result: Any = None,
    error: RunError | None = None,
    progress: Progress | None = None,
    steps: Sequence[Step] = (),
    truncated: bool = False,
) -> RunState:
    return RunState(
        id=run.id,
        tool=run.tool,
        status=status,
        started_at=run.started_at,
        ended_at=ended_at,
        trigger=run.trigger,
        actor=run.actor,
        retry_of=run.retry_of,
        result=result,
        error=error,
        progress=progress,
        steps=list(steps),
        truncated=truncated,
    )
