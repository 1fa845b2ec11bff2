"""Notices, for every call in flight, that its run waits for something new; what that is, it leaves to others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy.exc import SQLAlchemyError

from engine.db.database import now
from engine.waiting.waiters import Waiters

_LOOK_EVERY_SECONDS = 0.1
# Branches of a run that need sign-ins park within moments of each other: they are told together.
_SETTLED = timedelta(seconds=0.4)


@dataclass(slots=True)
class _Watched:
    told: frozenset[str]
    asked: asyncio.Event = field(default_factory=asyncio.Event)


class WaitWatch:
    """Notices, by one query for all calls in flight, which of them wait for something their caller was not told of."""

    def __init__(self, waiters: Waiters) -> None:
        self._waiters = waiters
        self._watched: dict[str, list[_Watched]] = {}
        self._looking: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watch(self, run_id: str, told: Collection[str]) -> AsyncIterator[asyncio.Event]:
        """An event that is set once the run waits for something not in `told`."""
        watched = _Watched(frozenset(told))
        self._watched.setdefault(run_id, []).append(watched)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            yield watched.asked
        finally:
            self._watched[run_id].remove(watched)
            if not self._watched[run_id]:
                del self._watched[run_id]

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            if not self._watched:
                return
            with contextlib.suppress(OSError, SQLAlchemyError):
                for run_id, awaited in (await self._waiters.awaited_in(list(self._watched))).items():
                    for watched in self._watched.get(run_id, ()):
                        new = [since for asked, since in awaited.items() if asked not in watched.told]
                        if new and max(new) < now() - _SETTLED:
                            watched.asked.set()
