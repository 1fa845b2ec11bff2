"""Stores which resources have changed recently, so that every process can read it. It does not know who listens."""

from datetime import datetime, timedelta
from typing import Final

from sqlmodel import col, delete, select

from engine.db.database import Database, now
from engine.db.tables import ResourceChangeRow

_KEPT: Final = timedelta(hours=1)


class ResourceChanges:
    """Owner of the table of resource changes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def note(self, uri: str) -> None:
        """Note that the resource at this address has changed, and delete changes older than an hour."""
        async with self._database.writing() as session:
            forgotten = delete(ResourceChangeRow).where(col(ResourceChangeRow.changed_at) < now() - _KEPT)
            await session.exec(forgotten)
            await session.merge(ResourceChangeRow(uri=uri, changed_at=now()))

    async def since(self, at: datetime) -> dict[str, datetime]:
        """Return when each resource that changed at or after `changed_since` changed last, by its address."""
        query = select(ResourceChangeRow).where(col(ResourceChangeRow.changed_at) >= at)
        async with self._database.reading() as session:
            return {row.uri: row.changed_at for row in (await session.exec(query)).all()}
