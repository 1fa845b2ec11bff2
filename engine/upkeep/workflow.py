"""The workflow of upkeep. It runs every part separately, so that one that fails does not stop the others."""

import asyncio
from datetime import timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RetryPolicy

from engine.wire import UPKEEP_ACTIVITY, UPKEEP_WORKFLOW

UPKEEP_PARTS: Final = ("end", "revoke", "renew", "expire")

_ATTEMPT_TIMEOUT = timedelta(minutes=5)
_RETRY_POLICY = RetryPolicy(maximum_attempts=3)


@workflow.defn(name=UPKEEP_WORKFLOW)
class UpkeepWorkflow:
    """Does all of upkeep once; a schedule that every worker creates or updates starts it."""

    @workflow.run
    async def run(self) -> dict[str, int]:
        """Do every part and return how many items each handled; fails at the end where a part failed."""
        part_results = await asyncio.gather(
            *(self._do_part(part_name) for part_name in UPKEEP_PARTS), return_exceptions=True
        )
        failures = [part_result for part_result in part_results if isinstance(part_result, BaseException)]
        if failures:
            raise failures[0]
        return {
            part_name: part_result
            for part_name, part_result in zip(UPKEEP_PARTS, part_results, strict=True)
            if isinstance(part_result, int)
        }

    async def _do_part(self, part_name: str) -> int:
        item_count: int = await workflow.execute_activity(
            UPKEEP_ACTIVITY,
            part_name,
            result_type=int,
            start_to_close_timeout=_ATTEMPT_TIMEOUT,
            retry_policy=_RETRY_POLICY,
        )
        return item_count
