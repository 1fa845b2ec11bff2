"""The workflow of upkeep. It runs every part separately, so that one that fails does not stop the others."""

import asyncio
from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RetryPolicy

from engine.wire import UPKEEP_ACTIVITY, UPKEEP_WORKFLOW

PARTS: Final = ("end", "revoke", "renew", "expire")

_ONE_TRY = timedelta(minutes=5)
_TRIES = RetryPolicy(maximum_attempts=3)


@workflow.defn(name=UPKEEP_WORKFLOW)
class UpkeepWorkflow:
    """Does all of upkeep once; a schedule that every worker creates or updates starts it."""

    @workflow.run
    async def run(self) -> dict[str, int]:
        """Do every part and return how many items each handled; fails at the end where a part failed."""
        done = await asyncio.gather(*(self._do(part) for part in PARTS), return_exceptions=True)
        failures = [each for each in done if isinstance(each, BaseException)]
        if failures:
            raise failures[0]
        return {part: each for part, each in zip(PARTS, done, strict=True) if isinstance(each, int)}

    async def _do(self, part: str) -> int:
        done: int = await workflow.execute_activity(
            UPKEEP_ACTIVITY, part, result_type=int, start_to_close_timeout=_ONE_TRY, retry_policy=_TRIES
        )
        return done
