"""Runs SQLite on the event loop's own thread, since a statement takes less time than handing it to another thread.

A statement that may have to wait, for another writer's lock or for the disk, still goes to aiosqlite's thread.
"""

import sqlite3
from collections import deque
from collections.abc import Callable
from typing import Any

import aiosqlite
from typing_extensions import override

_WAITING_STATEMENTS = ("BEGIN IMMEDIATE", "PRAGMA")
_FETCH_BATCH_ROWS = 64


class DirectConnection(aiosqlite.Connection):
    """A connection that hands to aiosqlite's thread only calls that may wait, and the calls that follow meanwhile.

    A caller awaits each call before the next. A call whose caller was cancelled still runs on, and two threads that use
    one connection at the same time would end the process. So the calls that follow also go to the thread until it ends.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, _FETCH_BATCH_ROWS)
        self._thread.daemon = True
        self._pending_calls: deque[None] = deque()

    @override
    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        statement = args[0] if args else None
        may_wait = fn.__name__ == "commit" or (
            isinstance(statement, str) and statement.startswith(_WAITING_STATEMENTS)
        )
        if not may_wait and self._running and not self._pending_calls:
            return fn(*args, **kwargs)

        def call_and_release() -> Any:
            try:
                return fn(*args, **kwargs)
            finally:
                self._pending_calls.pop()

        self._pending_calls.append(None)
        return await super()._execute(call_and_release)  # type: ignore[no-untyped-call]


def connect_sqlite(database_path: str, **connect_options: Any) -> DirectConnection:
    """Return a connection to the database at `database_path`, to be awaited."""
    return DirectConnection(
        lambda: sqlite3.connect(database_path, **{**connect_options, "check_same_thread": False})
    )
