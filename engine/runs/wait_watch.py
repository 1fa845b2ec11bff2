"""Notices, for every call in flight, that its run waits for something new. What that is, callers read themselves."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from engine.db.database import utc_now
from engine.db.watch import Watch
from engine.waiting.waiters import Waiters

_POLL_INTERVAL_SECONDS = 0.1
# Branches of a run that need sign-ins park within moments of each other. They are announced together, and at once
# where nothing of the run is under way any more.
_QUIET_PERIOD = timedelta(seconds=0.4)

UnderWayCheck = Callable[[str], Awaitable[bool]]


@dataclass(slots=True, eq=False)
class _WatchedCall:
    run_id: str
    announced_waits: frozenset[str]
    new_wait_event: asyncio.Event = field(default_factory=asyncio.Event)


class WaitWatch:
    """Notices, by one query for all calls in flight, which of them wait for something their caller does not know."""

    def __init__(self, waiters: Waiters, is_under_way: UnderWayCheck) -> None:
        self._waiters = waiters
        self._is_under_way = is_under_way
        self._watch = Watch[_WatchedCall](self._announce_waits, interval_seconds=_POLL_INTERVAL_SECONDS)

    @contextmanager
    def watch_run(self, run_id: str, announced_waits: Collection[str]) -> Iterator[asyncio.Event]:
        """Yield an event that is set once the run waits for something not in `announced_waits`."""
        with self._watch.include(_WatchedCall(run_id, frozenset(announced_waits))) as watched_call:
            yield watched_call.new_wait_event

    async def _announce_waits(self) -> None:
        calls_by_run: dict[str, list[_WatchedCall]] = {}
        for watched_call in self._watch.watchers:
            calls_by_run.setdefault(watched_call.run_id, []).append(watched_call)
        waits_by_run = await self._waiters.list_awaited_by_run(list(calls_by_run))
        await asyncio.gather(
            *(
                self._announce_run_waits(run_id, calls_by_run[run_id], awaited_since)
                for run_id, awaited_since in waits_by_run.items()
            )
        )

    async def _announce_run_waits(
        self, run_id: str, watched_calls: list[_WatchedCall], awaited_since: Mapping[str, datetime]
    ) -> None:
        newest_wait_times = {
            watched_call: max(
                waiting_since
                for wait_id, waiting_since in awaited_since.items()
                if wait_id not in watched_call.announced_waits
            )
            for watched_call in watched_calls
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
