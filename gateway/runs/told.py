"""Records which outcomes were delivered to callers, after the response and many in one write."""

import asyncio
import contextlib

from sqlalchemy.exc import SQLAlchemyError

from engine.identity.runs import RunRecords


class Told:
    """The outcomes that this gateway delivered, which are kept in memory until they are stored.

    An outcome that is not stored when the process is killed counts as not delivered. The same call then gets it once
    more, and nothing is done twice.
    """

    def __init__(self, records: RunRecords) -> None:
        self._records = records
        self._unstored: set[str] = set()
        self._storing: asyncio.Task[None] | None = None

    def note(self, run_id: str) -> None:
        """Record that the outcome of this run is delivered now."""
        self._unstored.add(run_id)
        if self._storing is None or self._storing.done():
            self._storing = asyncio.create_task(self._store())

    def has(self, run_id: str) -> bool:
        """Return whether the outcome was delivered a moment ago and is not stored yet."""
        return run_id in self._unstored

    async def close(self) -> None:
        """Return once everything is stored."""
        if self._storing is not None:
            await self._storing

    async def _store(self) -> None:
        while self._unstored:
            batch = frozenset(self._unstored)
            with contextlib.suppress(OSError, SQLAlchemyError):
                await self._records.answered(batch)
            # A failed write is not repeated: the outcome is then delivered once more, and that is harmless.
            self._unstored -= batch
