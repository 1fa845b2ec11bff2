"""Polls the database for as long as somebody watches it, by one task for all who do."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from sqlalchemy.exc import SQLAlchemyError

Watcher = TypeVar("Watcher")


class Watch(Generic[Watcher]):
    """Awaits `poll` at an interval while there are watchers. Without any, nothing runs.

    A poll that cannot reach the database is tried again at the next interval.
    """

    def __init__(self, poll: Callable[[], Awaitable[None]], *, interval_seconds: float) -> None:
        self.watchers: set[Watcher] = set()
        self._poll = poll
        self._interval_seconds = interval_seconds
        self._poll_task: asyncio.Task[None] | None = None

    def add(self, watcher: Watcher) -> None:
        """Poll for this watcher too, the first time after one interval."""
        self.watchers.add(watcher)
        if self._poll_task is None or self._poll_task.done():
            self._poll_task = asyncio.create_task(self._poll_at_intervals())

    def remove(self, watcher: Watcher) -> None:
        """Poll no longer for this watcher."""
        self.watchers.discard(watcher)

    @contextmanager
    def include(self, watcher: Watcher) -> Iterator[Watcher]:
        """Yield this watcher, and poll for it meanwhile."""
        self.add(watcher)
        try:
            yield watcher
        finally:
            self.remove(watcher)

    async def _poll_at_intervals(self) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds)
            if not self.watchers:
                return
            with contextlib.suppress(OSError, SQLAlchemyError):
                await self._poll()
