"""Stores which resources have changed recently, so that every process can read it. It does not know who listens."""

from datetime import datetime, timedelta
from typing import Final

from sqlmodel import col, delete, select

from engine.db.database import Database, utc_now
from engine.db.tables import ResourceChangeRow

_RETENTION: Final = timedelta(hours=1)


class ResourceChanges:
    """Owner of the table of resource changes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def note_change(self, resource_uri: str) -> None:
        """Note that the resource at this address has changed, and delete changes older than an hour."""
        async with self._database.open_write_session() as db_session:
            statement = delete(ResourceChangeRow).where(
                col(ResourceChangeRow.changed_at) < utc_now() - _RETENTION
            )
            await db_session.exec(statement)
            await db_session.merge(ResourceChangeRow(uri=resource_uri, changed_at=utc_now()))

    async def list_changes_since(self, changed_since: datetime) -> dict[str, datetime]:
        """Return when each resource that changed at or after `changed_since` changed last, by its address."""
        statement = select(ResourceChangeRow).where(col(ResourceChangeRow.changed_at) >= changed_since)
        async with self._database.open_read_session() as db_session:
            return {
                change_row.uri: change_row.changed_at
                for change_row in (await db_session.exec(statement)).all()
            }
