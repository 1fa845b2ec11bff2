"""SQLite on the event loop's own thread, where a statement takes less than handing it to another thread would.

What may have to wait, for another writer's lock or for the disk, still goes to aiosqlite's thread.
"""

import sqlite3
from collections.abc import Callable
from typing import Any

import aiosqlite
from typing_extensions import override

_MAY_WAIT = ("BEGIN IMMEDIATE", "PRAGMA")
_ROWS_AT_ONCE = 64


class DirectConnection(aiosqlite.Connection):
    """A connection that hands over only what may wait; each call awaits the one before, so they never meet."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, _ROWS_AT_ONCE)
        self._thread.daemon = True

    @override
    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        statement = args[0] if args else None
        waits = fn.__name__ == "commit" or (isinstance(statement, str) and statement.startswith(_MAY_WAIT))
        if not waits:
            return fn(*args, **kwargs)
        return await super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]


def connect(path: str, **options: Any) -> DirectConnection:
    """A connection to the database at `path`, to be awaited."""
    return DirectConnection(lambda: sqlite3.connect(path, **{**options, "check_same_thread": False}))
