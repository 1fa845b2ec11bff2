"""Reads what a run is doing: its steps from Temporal, and what they wait for from the database."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError
from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus

from engine.authorization.requests import AuthorizationRequests
from engine.connections.catalogue import ConnectionCatalogue
from engine.errors import RunForgotten
from engine.identity.model import Principal, TriggerKind
from engine.questions.questions import Questions
from engine.runs.outcome import Failed, Finished, RunOutcomes
from engine.runs.records import Run
from engine.runs.workflows import RunWorkflows
from engine.waiting.page_paths import PageLinks
from engine.waiting.waiters import Waiters
from engine.wire import NOTIFY_WORKFLOW, PROGRESS_MEMO

RunStatus = Literal[
    "running", "waiting", "completed", "failed", "cancelled", "terminated", "timed_out", "unknown"
]

ONGOING_STATUSES: Final[frozenset[RunStatus]] = frozenset({"running", "waiting"})

_STATUS_BY_TEMPORAL: Final[Mapping[WorkflowExecutionStatus, RunStatus]] = {
    WorkflowExecutionStatus.COMPLETED: "completed",
    WorkflowExecutionStatus.FAILED: "failed",
    WorkflowExecutionStatus.CANCELED: "cancelled",
    WorkflowExecutionStatus.TERMINATED: "terminated",
    WorkflowExecutionStatus.TIMED_OUT: "timed_out",
}
_MAX_STEPS: Final = 500
_MAX_CONCURRENT_QUERIES: Final = 8
_FORGOTTEN_MESSAGE: Final = (
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
        description="The page on which it is answered, for those who are asked. An answer of a client has none."
    )
    expires_at: datetime
    role: str | None = Field(default=None, description="The role whose holders are asked.")


class Step(BaseModel):
    """A workflow of the run, and the children of it that have not ended."""

    workflow_id: str
    type: str
    status: RunStatus
    progress: Progress | None
    waiting_for: list[WaitingFor]
    children: list["Step"]


class RunError(BaseModel):
    """The error that ended a run without a result."""

    code: str
    message: str


class RunSummary(BaseModel):
    """One run."""

    id: str
    tool: str
    status: RunStatus = Field(
        description="`unknown` if Temporal no longer keeps the run, or never started it."
    )
    started_at: datetime
    ended_at: datetime | None
    trigger: TriggerKind
    actor: str = Field(description="The name of the actor that started it for its principal.")
    retry_of: str | None = Field(description="The run that this one repeats.")


class RunState(RunSummary):
    """One run with its outcome, and what each of its steps does or waits for."""

    result: Any = Field(description="The result of the tool, once the run has completed.")
    error: RunError | None
    progress: Progress | None
    steps: list[Step] = Field(description="The root workflow. Empty if Temporal no longer keeps the run.")
    truncated: bool = Field(description=f"Whether there are more than the {_MAX_STEPS} steps that are shown.")


@dataclass(slots=True)
class _StepReading:
    """What is shared while the steps of one run are read."""

    waits_by_workflow: Mapping[str, list[WaitingFor]]
    remaining_steps: int = _MAX_STEPS
    is_truncated: bool = False
    query_slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_CONCURRENT_QUERIES))


class RunStates:
    """Reads the state of runs. Callers check before whether the viewer may see a run."""

    def __init__(
        self,
        *,
        workflows: RunWorkflows,
        outcomes: RunOutcomes,
        waiters: Waiters,
        authorization_requests: AuthorizationRequests,
        questions: Questions,
        catalogue: ConnectionCatalogue,
        page_links: PageLinks,
    ) -> None:
        self._workflows = workflows
        self._outcomes = outcomes
        self._waiters = waiters
        self._authorization_requests = authorization_requests
        self._questions = questions
        self._catalogue = catalogue
        self._page_links = page_links

    async def read_state(self, run: Run, viewer: Principal) -> RunState:
        """Return the state of a run as this principal may see it. Raises TemporalUnreachable."""
        description = await self._workflows.describe_workflow(run.id)
        if description is None:
            run_error = RunError(code=RunForgotten.code, message=_FORGOTTEN_MESSAGE)
            return _build_state(run, "unknown", None, run_error=run_error)
        step_reading = _StepReading(await self._read_waits(run.id, viewer))
        root_step = await self._read_step(description, step_reading)
        run_status: RunStatus = root_step.status
        if run_status == "running" and step_reading.waits_by_workflow:
            run_status = "waiting"
        outcome = None if run_status in ONGOING_STATUSES else await self._outcomes.wait_for_result(run.id)
        return _build_state(
            run,
            run_status,
            description.close_time,
            run_result=outcome.value if isinstance(outcome, Finished) else None,
            run_error=RunError(code=outcome.code, message=outcome.message)
            if isinstance(outcome, Failed)
            else None,
            progress=root_step.progress,
            steps=[root_step],
            is_truncated=step_reading.is_truncated,
        )

    async def summarize_runs(self, runs: Sequence[Run]) -> list[RunSummary]:
        """Return a summary of each of these runs, in their order. Raises TemporalUnreachable."""
        waiting_run_ids = await self._waiters.list_awaited_by_run([run.id for run in runs])
        query_slots = asyncio.Semaphore(_MAX_CONCURRENT_QUERIES)

        async def summarize_run(run: Run) -> RunSummary:
            async with query_slots:
                description = await self._workflows.describe_workflow(run.id)
            return _build_summary(run, description, is_waiting=run.id in waiting_run_ids)

        return list(await asyncio.gather(*(summarize_run(run) for run in runs)))

    async def read_progress(self, run_id: str) -> Progress | None:
        """Return the progress that a run reports, or None. Raises TemporalUnreachable."""
        description = await self._workflows.describe_workflow(run_id)
        return None if description is None else await _read_memo_progress(description)

    async def _read_step(self, description: WorkflowExecutionDescription, step_reading: _StepReading) -> Step:
        pending_children = description.raw_description.pending_children
        # The workflow that notifies people of a run is not one of its steps.
        pending_steps = [child for child in pending_children if child.workflow_type_name != NOTIFY_WORKFLOW]
        shown_children = pending_steps[: max(0, step_reading.remaining_steps)]
        step_reading.remaining_steps -= len(shown_children)
        step_reading.is_truncated = step_reading.is_truncated or len(shown_children) < len(pending_steps)

        async def read_child(workflow_id: str, run_id: str) -> Step | None:
            async with step_reading.query_slots:
                child_description = await self._workflows.describe_workflow(workflow_id, run_id)
            return (
                None if child_description is None else await self._read_step(child_description, step_reading)
            )

        child_steps = await asyncio.gather(
            *(read_child(child.workflow_id, child.run_id) for child in shown_children)
        )
        step_waits = step_reading.waits_by_workflow.get(description.id, [])
        step_status = to_run_status(description)
        return Step(
            workflow_id=description.id,
            type=description.workflow_type,
            status="waiting" if step_status == "running" and step_waits else step_status,
            progress=await _read_memo_progress(description),
            waiting_for=step_waits,
            children=[child_step for child_step in child_steps if child_step is not None],
        )

    async def _read_waits(self, run_id: str, viewer: Principal) -> dict[str, list[WaitingFor]]:
        """Return what each workflow of a run waits for, by workflow id."""
        waiters = await self._waiters.list_waiters(run_id)
        if not waiters:
            return {}
        wait_descriptions = await self._describe_waits(
            {waiter.awaited_id for waiter in waiters}, run_id, viewer
        )
        waits_by_workflow: dict[str, dict[str, WaitingFor]] = {}
        for waiter in waiters:
            if waiter.awaited_id in wait_descriptions:
                waits_by_workflow.setdefault(waiter.workflow_id, {})[waiter.awaited_id] = wait_descriptions[
                    waiter.awaited_id
                ]
        return {
            workflow_id: list(workflow_waits.values())
            for workflow_id, workflow_waits in waits_by_workflow.items()
        }

    async def _describe_waits(
        self, awaited_ids: Collection[str], run_id: str, viewer: Principal
    ) -> dict[str, WaitingFor]:
        """Return what a run waits for, by the id of the request or question. Only whoever is asked gets a link."""
        connections = await self._catalogue.list_connections()
        wait_descriptions: dict[str, WaitingFor] = {}
        for authorization_request in await self._authorization_requests.list_awaited_requests(run_id):
            if authorization_request.id not in awaited_ids:
                continue
            connection = connections.get(authorization_request.connection_name)
            is_asked = authorization_request.principal_id == viewer.id and authorization_request.is_open
            wait_descriptions[authorization_request.id] = WaitingFor(
                kind="connection",
                title=authorization_request.connection_name if connection is None else connection.title,
                url=self._page_links.build_connect_link(authorization_request.id) if is_asked else None,
                expires_at=authorization_request.expires_at,
            )
        for question in await self._questions.list_awaited_questions(run_id):
            if question.kind != "form":
                wait_descriptions[question.id] = WaitingFor(
                    kind="client", title=question.message, url=None, expires_at=question.expires_at
                )
                continue
            is_asked = question.role is None and question.principal_id == viewer.id
            wait_descriptions[question.id] = WaitingFor(
                kind="question" if question.role is None else "approval",
                title=question.message,
                url=self._page_links.build_question_link(question.id) if is_asked else None,
                expires_at=question.expires_at,
                role=question.role,
            )
        return wait_descriptions


def to_run_status(description: WorkflowExecutionDescription) -> RunStatus:
    """Return the status of a workflow as Temporal alone sees it: one that waits is running."""
    return "running" if description.status is None else _STATUS_BY_TEMPORAL.get(description.status, "running")


async def _read_memo_progress(description: WorkflowExecutionDescription) -> Progress | None:
    """Read the progress that a workflow reports in its memo, or None where there is none that can be read."""
    progress_memo = (await description.memo()).get(PROGRESS_MEMO)
    try:
        return None if progress_memo is None else Progress.model_validate(progress_memo)
    except ValidationError:
        return None


def _build_summary(
    run: Run, description: WorkflowExecutionDescription | None, *, is_waiting: bool
) -> RunSummary:
    run_status = "unknown" if description is None else to_run_status(description)
    return RunSummary(
        id=run.id,
        tool=run.tool_name,
        status="waiting" if run_status == "running" and is_waiting else run_status,
        started_at=run.started_at,
        ended_at=None if description is None else description.close_time,
        trigger=run.trigger,
        actor=run.actor_id,
        retry_of=run.retry_of,
    )


def _build_state(
    run: Run,
    run_status: RunStatus,
    ended_at: datetime | None,
    *,
    run_result: Any = None,
    run_error: RunError | None = None,
    progress: Progress | None = None,
    steps: Sequence[Step] = (),
    is_truncated: bool = False,
) -> RunState:
    return RunState(
        id=run.id,
        tool=run.tool_name,
        status=run_status,
        started_at=run.started_at,
        ended_at=ended_at,
        trigger=run.trigger,
        actor=run.actor_id,
        retry_of=run.retry_of,
        result=run_result,
        error=run_error,
        progress=progress,
        steps=list(steps),
        truncated=is_truncated,
    )
