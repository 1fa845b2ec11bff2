"""The workflow that notifies channels of a wait or an end, separately from the run itself. It decides nothing."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from temporalio import workflow
from temporalio.common import RetryPolicy

from engine.notifications.messages import Outcome
from engine.wire import NOTIFY_ACTIVITY, NOTIFY_WORKFLOW

_PATIENCE = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2, maximum_interval=timedelta(minutes=30)
)
_ONE_TRY = timedelta(minutes=1)
_LONGEST = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Notice:
    """What happened to a run, and the channels to notify. It holds ids only, which name nobody and open nothing."""

    event: Literal["waiting", "ended"]
    run: str
    channels: list[str]
    awaits: str | None = None
    outcome: Outcome | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Owed:
    """One note for one channel; `at` is in seconds since the epoch."""

    notice: Notice
    channel: str
    at: float


@workflow.defn(name=NOTIFY_WORKFLOW)
class NotifyWorkflow:
    """Delivers to every channel separately, and tries each for up to a day."""

    @workflow.run
    async def run(self, notice: Notice) -> None:
        """Deliver to every channel; fails at the end where one could not be reached, which does not stop the others."""
        at = workflow.time()
        told = await asyncio.gather(
            *(self._deliver(Owed(notice, channel, at)) for channel in notice.channels), return_exceptions=True
        )
        failures = [each for each in told if isinstance(each, BaseException)]
        if failures:
            raise failures[0]

    async def _deliver(self, owed: Owed) -> None:
        await workflow.execute_activity(
            NOTIFY_ACTIVITY,
            owed,
            start_to_close_timeout=_ONE_TRY,
            schedule_to_close_timeout=_LONGEST,
            retry_policy=_PATIENCE,
        )
