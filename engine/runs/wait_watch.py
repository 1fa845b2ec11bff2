"""Notices, for every call in flight, that its run waits for something new. What that is, callers read themselves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from engine.db.database import utc_now
from engine.waiting.waiters import Waiters

_POLL_INTERVAL_SECONDS = 0.1
# Branches of a run that need sign-ins park within moments of each other. They are announced together, and at once
# where nothing of the run is under way any more.
_QUIET_PERIOD = timedelta(seconds=0.4)

UnderWayCheck = Callable[[str], Awaitable[bool]]


@dataclass(slots=True, eq=False)
class _WatchedCall:
    announced_waits: frozenset[str]
    new_wait_event: asyncio.Event = field(default_factory=asyncio.Event)


class WaitWatch:
    """Notices, by one query for all calls in flight, which of them wait for something their caller does not know."""

    def __init__(self, waiters: Waiters, is_under_way: UnderWayCheck) -> None:
        self._waiters = waiters
        self._is_under_way = is_under_way
        self._watched_calls: dict[str, list[_WatchedCall]] = {}
        self._poll_task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watch_run(self, run_id: str, announced_waits: Collection[str]) -> AsyncIterator[asyncio.Event]:
        """Yield an event that is set once the run waits for something not in `announced_waits`."""
        watched_call = _WatchedCall(frozenset(announced_waits))
        self._watched_calls.setdefault(run_id, []).append(watched_call)
        if self._poll_task is None or self._poll_task.done():
            self._poll_task = asyncio.create_task(self._poll_waits())
        try:
            yield watched_call.new_wait_event
        finally:
            self._watched_calls[run_id].remove(watched_call)
            if not self._watched_calls[run_id]:
                del self._watched_calls[run_id]

    async def _poll_waits(self) -> None:
        while True:
            await asyncio.sleep(_POLL_INTERVAL_SECONDS)
            if not self._watched_calls:
                return
            with contextlib.suppress(OSError, SQLAlchemyError):
                waits_by_run = await self._waiters.list_awaited_by_run(list(self._watched_calls))
                await asyncio.gather(
                    *(
                        self._announce_waits(run_id, awaited_since)
                        for run_id, awaited_since in waits_by_run.items()
                    )
                )

    async def _announce_waits(self, run_id: str, awaited_since: Mapping[str, datetime]) -> None:
        newest_wait_times = {
            watched_call: max(
                waiting_since
                for wait_id, waiting_since in awaited_since.items()
                if wait_id not in watched_call.announced_waits
            )
            for watched_call in self._watched_calls.get(run_id, ())
            if not watched_call.new_wait_event.is_set()
            and not awaited_since.keys() <= watched_call.announced_waits
        }
        if not newest_wait_times:
            return
        has_settled = max(
            newest_wait_times.values()
        ) < utc_now() - _QUIET_PERIOD or not await self._is_under_way(run_id)
        for watched_call in newest_wait_times if has_settled else ():
            watched_call.new_wait_event.set()
