"""The workflow that notifies channels of a wait or an end, separately from the run itself. It decides nothing."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from temporalio import workflow
from temporalio.common import RetryPolicy

from engine.notifications.messages import RunOutcome
from engine.wire import NOTIFY_ACTIVITY, NOTIFY_WORKFLOW

_RETRY_POLICY = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2, maximum_interval=timedelta(minutes=30)
)
_ATTEMPT_TIMEOUT = timedelta(minutes=1)
_DELIVERY_TIMEOUT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class RunNotice:
    """What happened to a run, and the channels to notify. It holds ids only, which name nobody and open nothing."""

    event: Literal["waiting", "ended"]
    run: str
    channels: list[str]
    awaits: str | None = None
    outcome: RunOutcome | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class DueNote:
    """One note for one channel; `at` is in seconds since the epoch."""

    notice: RunNotice
    channel: str
    at: float


@workflow.defn(name=NOTIFY_WORKFLOW)
class NotifyWorkflow:
    """Delivers to every channel separately, and tries each for up to a day."""

    @workflow.run
    async def run(self, notice: RunNotice) -> None:
        """Deliver to every channel; fails at the end where one could not be reached, which does not stop the others."""
        occurred_at = workflow.time()
        delivery_results = await asyncio.gather(
            *(self._deliver_note(DueNote(notice, channel_id, occurred_at)) for channel_id in notice.channels),
            return_exceptions=True,
        )
        failures = [
            delivery_result
            for delivery_result in delivery_results
            if isinstance(delivery_result, BaseException)
        ]
        if failures:
            raise failures[0]

    async def _deliver_note(self, due_note: DueNote) -> None:
        await workflow.execute_activity(
            NOTIFY_ACTIVITY,
            due_note,
            start_to_close_timeout=_ATTEMPT_TIMEOUT,
            schedule_to_close_timeout=_DELIVERY_TIMEOUT,
            retry_policy=_RETRY_POLICY,
        )
