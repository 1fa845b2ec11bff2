"""The raw workflows, which do the same work on Temporal without Byline."""

from dataclasses import dataclass
from datetime import timedelta

from temporalio import workflow

WRITE = "plain.write"

_ATTEMPT = timedelta(seconds=30)


@dataclass
class Work:
    """So many writes, one after the other, under one name."""

    name: str
    writes: int


@dataclass
class WorkResult:
    """How many were made."""

    writes: int


@workflow.defn(name="plain_noop")
class PlainNoop:
    """Do nothing."""

    @workflow.run
    async def run(self) -> WorkResult:
        """Return at once."""
        return WorkResult(0)


@workflow.defn(name="plain_writes")
class PlainWrites:
    """Write to the upstream."""

    @workflow.run
    async def run(self, work: Work) -> WorkResult:
        """Write one after the other."""
        for _ in range(work.writes):
            await workflow.execute_activity(WRITE, work.name, start_to_close_timeout=_ATTEMPT)
        return WorkResult(work.writes)


@workflow.defn(name="plain_parked")
class PlainParked:
    """Wait for the signal, then write."""

    def __init__(self) -> None:
        self._is_woken = False

    @workflow.run
    async def run(self, work: Work) -> WorkResult:
        """Wait for the signal, and then write as often as `work` says."""
        await workflow.wait_condition(lambda: self._is_woken)
        for _ in range(work.writes):
            await workflow.execute_activity(WRITE, work.name, start_to_close_timeout=_ATTEMPT)
        return WorkResult(work.writes)

    @workflow.signal
    def wake(self) -> None:
        """End the wait."""
        self._is_woken = True
