"""Records which outcomes were delivered to callers, after the response and many in one write."""

import asyncio
import contextlib

from sqlalchemy.exc import SQLAlchemyError

from engine.runs.records import RunRecords


class DeliveredOutcomes:
    """The outcomes that this gateway delivered, which are kept in memory until they are stored.

    An outcome that is not stored when the process is killed counts as not delivered. The same call then gets it once
    more, and nothing is done twice.
    """

    def __init__(self, run_records: RunRecords) -> None:
        self._run_records = run_records
        self._unstored_run_ids: set[str] = set()
        self._store_task: asyncio.Task[None] | None = None

    def mark_delivered(self, run_id: str) -> None:
        """Record that the outcome of this run is delivered now."""
        self._unstored_run_ids.add(run_id)
        if self._store_task is None or self._store_task.done():
            self._store_task = asyncio.create_task(self._store_outcomes())

    def is_storing_delivery(self, run_id: str) -> bool:
        """Return whether the outcome was delivered a moment ago and is not stored yet."""
        return run_id in self._unstored_run_ids

    async def close(self) -> None:
        """Return once everything is stored."""
        if self._store_task is not None:
            await self._store_task

    async def _store_outcomes(self) -> None:
        while self._unstored_run_ids:
            run_id_batch = frozenset(self._unstored_run_ids)
            with contextlib.suppress(OSError, SQLAlchemyError):
                await self._run_records.record_delivered(run_id_batch)
            # A failed write is not repeated: the outcome is then delivered once more, and that is harmless.
            self._unstored_run_ids -= run_id_batch
