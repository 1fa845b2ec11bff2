"""Notices, for every call in flight, that its run waits for something new. What that is, callers read themselves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from engine.db.database import now
from engine.waiting.waiters import Waiters

_LOOK_EVERY_SECONDS = 0.1
# Branches of a run that need sign-ins park within moments of each other. They are announced together, and at once
# where nothing of the run is under way any more.
_SETTLED = timedelta(seconds=0.4)

IsUnderWay = Callable[[str], Awaitable[bool]]


@dataclass(slots=True, eq=False)
class _Watched:
    told: frozenset[str]
    asked: asyncio.Event = field(default_factory=asyncio.Event)


class WaitWatch:
    """Notices, by one query for all calls in flight, which of them wait for something their caller does not know."""

    def __init__(self, waiters: Waiters, is_under_way: IsUnderWay) -> None:
        self._waiters = waiters
        self._is_under_way = is_under_way
        self._watched: dict[str, list[_Watched]] = {}
        self._looking: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watch(self, run_id: str, told: Collection[str]) -> AsyncIterator[asyncio.Event]:
        """Yield an event that is set once the run waits for something not in `announced_waits`."""
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
                waits = await self._waiters.awaited_in(list(self._watched))
                await asyncio.gather(*(self._tell(run_id, awaited) for run_id, awaited in waits.items()))

    async def _tell(self, run_id: str, awaited: Mapping[str, datetime]) -> None:
        new = {
            watched: max(since for asked, since in awaited.items() if asked not in watched.told)
            for watched in self._watched.get(run_id, ())
            if not watched.asked.is_set() and not awaited.keys() <= watched.told
        }
        if not new:
            return
        has_settled = max(new.values()) < now() - _SETTLED or not await self._is_under_way(run_id)
        for watched in new if has_settled else ():
            watched.asked.set()
