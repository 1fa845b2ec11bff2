"""The outcome of a run as its caller gets it: finished, failed, waiting for people, or running on."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError
from temporalio.exceptions import TimeoutError as WorkflowTimedOut
from temporalio.service import RPCError, RPCStatusCode

from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.errors import RunUnknown, TemporalUnreachable
from engine.questions.questions import Question, Questions
from engine.runs.wait_watch import WaitWatch

RUN_CANCELLED: Final = "run_cancelled"


@dataclass(frozen=True, slots=True)
class Finished:
    """The run returned a value."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The run ended without a value, for this reason."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class PendingWaits:
    """The run waits for its principal to consent to these requests, and for people to answer these questions."""

    requests: tuple[AuthorizationRequest, ...]
    questions: tuple[Question, ...]

    @property
    def ids(self) -> list[str]:
        """The id of each request and question."""
        return [
            *(authorization_request.id for authorization_request in self.requests),
            *(question.id for question in self.questions),
        ]


@dataclass(frozen=True, slots=True)
class Running:
    """The run goes on."""


Outcome = Finished | Failed | PendingWaits | Running


class RunOutcomes:
    """Waits for the outcomes of runs and for what they wait for."""

    def __init__(
        self,
        temporal_client: Client,
        wait_watch: WaitWatch,
        authorization_requests: AuthorizationRequests,
        questions: Questions,
    ) -> None:
        self._temporal_client = temporal_client
        self._wait_watch = wait_watch
        self._authorization_requests = authorization_requests
        self._questions = questions

    async def wait_for_outcome(
        self, run_id: str, *, timeout_seconds: float, announced_waits: Collection[str] = ()
    ) -> Outcome:
        """Wait at most `timeout_seconds` until a run ends or waits for something, and return which.

        Waits in `announced_waits`, which the caller knows already, do not end the waiting early. Returns Running where
        the run goes on and waits for nothing. Raises TemporalUnreachable.
        """
        result_task = asyncio.create_task(self.wait_for_result(run_id))
        try:
            with self._wait_watch.watch_run(run_id, announced_waits) as new_wait_event:
                new_wait_task = asyncio.create_task(new_wait_event.wait())
                try:
                    await asyncio.wait(
                        {result_task, new_wait_task},
                        timeout=timeout_seconds,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    new_wait_task.cancel()
            if result_task.done():
                return result_task.result()
        finally:
            result_task.cancel()
        pending_waits = await self.read_pending_waits(run_id)
        return pending_waits if pending_waits.ids else Running()

    async def read_pending_waits(self, run_id: str) -> PendingWaits:
        """Return what a run and all its descendants wait for now, which may be nothing."""
        authorization_requests = await self._authorization_requests.list_awaited_requests(run_id)
        questions = await self._questions.list_awaited_questions(run_id)
        return PendingWaits(tuple(authorization_requests), tuple(questions))

    async def wait_for_result(self, run_id: str) -> Finished | Failed:
        """Wait until a run ends, and return how it ended. Raises TemporalUnreachable."""
        try:
            return Finished(await self._temporal_client.get_workflow_handle(run_id).result())
        except WorkflowFailureError as error:
            return _to_failed_outcome(error)
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return Failed(RunUnknown.code, f"Run '{run_id}' is not kept any more.")
            raise TemporalUnreachable(
                "The workflow engine does not answer; the run goes on. Ask for its outcome again in a moment."
            ) from error


def _to_failed_outcome(workflow_error: WorkflowFailureError) -> Failed:
    """Convert the outermost cause that says what happened, with the message of whoever raised it."""
    failure_cause: BaseException | None = workflow_error
    while failure_cause is not None:
        match failure_cause:
            case ApplicationError():
                return Failed(failure_cause.type or "run_failed", failure_cause.message)
            case CancelledError():
                return Failed(RUN_CANCELLED, "The run was cancelled.")
            case TerminatedError():
                return Failed("run_terminated", "The run was terminated by an operator.")
            case WorkflowTimedOut():
                return Failed("run_timed_out", "A step of the run did not end in time.")
            case _:
                failure_cause = failure_cause.__cause__
    return Failed("run_failed", "The run failed.")
