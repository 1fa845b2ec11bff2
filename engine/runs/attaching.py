"""Decides whether a call without an idempotency key attaches to a run that the same call started earlier."""

from datetime import UTC, datetime, timedelta
from typing import Final

from engine.errors import AuthorizationEnded, QuestionEnded
from engine.identity.model import TriggerKind
from engine.runs.delivered_outcomes import DeliveredOutcomes
from engine.runs.outcome import Failed, RunOutcomes
from engine.runs.records import RunRecords, UndeliveredRun
from engine.runs.workflows import RunWorkflows

_RETRY_WINDOW: Final = timedelta(minutes=10)
_ENDED_WAIT_CODES: Final = frozenset(
    ended_class.code
    for error_class in (AuthorizationEnded, QuestionEnded)
    for ended_class in error_class.__subclasses__()
)


class AttachableRuns:
    """Finds the runs whose outcome was not delivered yet, to which the same call attaches (decision 0004)."""

    def __init__(
        self,
        run_records: RunRecords,
        run_workflows: RunWorkflows,
        run_outcomes: RunOutcomes,
        delivered_outcomes: DeliveredOutcomes,
    ) -> None:
        self._run_records = run_records
        self._run_workflows = run_workflows
        self._run_outcomes = run_outcomes
        self._delivered_outcomes = delivered_outcomes

    async def find_attachable_run(
        self, principal_id: str, call_digest: str, trigger: TriggerKind
    ) -> str | None:
        """Return the id of the run that the same call started and that still serves it, or None.

        Raises TemporalUnreachable.
        """
        earlier_run = await self._run_records.find_undelivered_run(principal_id, call_digest, trigger)
        if earlier_run is None or self._delivered_outcomes.is_storing_delivery(earlier_run.id):
            return None
        return earlier_run.id if await self._serves_call(earlier_run) else None

    async def _serves_call(self, earlier_run: UndeliveredRun) -> bool:
        """Return whether the caller is served by this earlier run, and needs no new one.

        False in three cases: Temporal no longer keeps the run; its wait ended without a grant or an answer; or it never
        waited and closed more than ten minutes ago, so that no caller can still be retrying for its outcome.
        """
        description = await self._run_workflows.describe_workflow(earlier_run.id)
        if description is None:
            return False
        if description.close_time is None:
            return True
        if not earlier_run.has_waited and description.close_time < datetime.now(UTC) - _RETRY_WINDOW:
            return False
        outcome = await self._run_outcomes.wait_for_result(earlier_run.id)
        return not (isinstance(outcome, Failed) and outcome.code in _ENDED_WAIT_CODES)
