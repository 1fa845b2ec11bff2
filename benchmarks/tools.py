"""The composite tools of the benchmarks, which do the same as the raw workflows."""

from dataclasses import dataclass
from datetime import timedelta

from temporalio import workflow

from benchmarks.actions import write
from byline import tool

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


@tool(title="Do nothing", read_only=True)
@workflow.defn(name="noop")
class Noop:
    """Do nothing."""

    @workflow.run
    async def run(self) -> WorkResult:
        """Return at once."""
        return WorkResult(0)


@tool(title="Write to the upstream", destructive=False)
@workflow.defn(name="writes")
class Writes:
    """Write to the upstream in the name of the person who asks."""

    @workflow.run
    async def run(self, work: Work) -> WorkResult:
        """Write one after the other."""
        for _ in range(work.writes):
            await workflow.execute_activity(write, work.name, start_to_close_timeout=_ATTEMPT)
        return WorkResult(work.writes)
