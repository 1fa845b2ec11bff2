"""Lets one process at a time renew a row that can be renewed only once, while the others wait for the result.

A refresh token that rotates is such a thing: whoever uses it a second time loses the sign-in.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import ColumnElement, Update, update
from sqlmodel import col, or_

from engine.db.database import Database, utc_now
from engine.errors import BylineError

LEASE_DURATION: Final = timedelta(seconds=45)
_POLL_SECONDS: Final = 0.05

Response = TypeVar("Response")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StaleRow(Generic[Response, Result]):
    """A row that has to be renewed.

    `conditions` select it in the version that was read. `request_renewal` requests what renews it, and
    `store_renewal` stores the response, which ends the lease. `leased_until` is when the lease of another process
    expires, if that is known.
    """

    conditions: tuple[ColumnElement[bool], ...]
    request_renewal: Callable[[], Awaitable[Response]]
    store_renewal: Callable[[Response], Awaitable[Result]]
    leased_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class FreshRow(Generic[Result]):
    """What to return of a row that needs no renewal."""

    result: Result


class Lease:
    """The exclusive right to renew a row of one table, which a column of that table holds until it expires."""

    def __init__(self, database: Database, expiry_column: Any) -> None:
        self._database = database
        self._row_class = expiry_column.class_
        self._expiry_column = expiry_column
        self._renewal_tasks: set[asyncio.Task[Any]] = set()

    async def renew_once(
        self, read_row: Callable[[], Awaitable[FreshRow[Result] | StaleRow[Response, Result]]]
    ) -> Result:
        """Return the result of a row that is fresh, or that this or another process renews now.

        The lease of a process that died expires after 45 seconds. Raises TimeoutError if the row is still stale by
        then. If `request_renewal` fails, releases the lease and raises its error.
        """
        deadline = time.monotonic() + LEASE_DURATION.total_seconds()
        while time.monotonic() < deadline:
            row = await read_row()
            if isinstance(row, FreshRow):
                return row.result
            is_free = row.leased_until is None or row.leased_until < utc_now()
            if is_free and await self.acquire_lease(*row.conditions):
                # Rotation has invalidated the old refresh token, so the response is stored even if the caller is gone.
                renewal_task = asyncio.create_task(self._renew_row(row))
                self._renewal_tasks.add(renewal_task)
                renewal_task.add_done_callback(self._renewal_tasks.discard)
                return await asyncio.shield(renewal_task)
            await asyncio.sleep(_POLL_SECONDS)
        raise TimeoutError

    async def acquire_lease(self, *conditions: ColumnElement[bool]) -> bool:
        """Lease the row that these conditions select to this process for 45 seconds.

        Returns False if another process has it, or if there is no such row any more.
        """
        is_lease_free = or_(col(self._expiry_column).is_(None), col(self._expiry_column) < utc_now())
        return await self._set_expiry(
            update(self._row_class).where(*conditions, is_lease_free), utc_now() + LEASE_DURATION
        )

    async def release_lease(self, *conditions: ColumnElement[bool]) -> None:
        """Release the lease of the row that these conditions select, so that another process can renew it."""
        await self._set_expiry(update(self._row_class).where(*conditions), None)

    async def _renew_row(self, row: StaleRow[Response, Result]) -> Result:
        try:
            response = await row.request_renewal()
        except BylineError:
            await self.release_lease(*row.conditions)
            raise
        return await row.store_renewal(response)

    async def _set_expiry(self, update_statement: Update, expires_at: datetime | None) -> bool:
        async with self._database.open_write_session() as db_session:
            result = await db_session.exec(update_statement.values({self._expiry_column: expires_at}))
            return bool(result.rowcount == 1)
