"""The application database: SQLite or PostgreSQL behind two verbs, `reading` and `writing`; it holds no query."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.errors import SettingsInvalid
from engine.settings import DatabaseSettings

_BUSY_TIMEOUT_MS = 10_000


def now() -> datetime:
    """The present instant, in UTC."""
    return datetime.now(UTC)


class Database:
    """One pool of connections to the application database."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._engine = _open(settings)
        self.is_sqlite = self._engine.dialect.name == "sqlite"

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session for queries only."""
        async with AsyncSession(self._engine, expire_on_commit=False) as session:
            yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """One transaction, committed at the end of the block and rolled back on any error.

        On SQLite it takes the write lock at once, so that what it reads cannot change under it.
        """
        async with AsyncSession(self._engine, expire_on_commit=False) as session:
            await session.connection(execution_options={"byline_write": True})
            yield session
            await session.commit()

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


def _open(settings: DatabaseSettings) -> AsyncEngine:
    try:
        url = make_url(settings.url)
    except ArgumentError as error:
        msg = "BYLINE_DATABASE__URL is not a database URL: write sqlite+aiosqlite:///path or postgresql+asyncpg://…"
        raise SettingsInvalid(msg) from error
    if url.drivername not in {"sqlite+aiosqlite", "postgresql+asyncpg"}:
        msg = f"BYLINE_DATABASE__URL names '{url.drivername}': use sqlite+aiosqlite:///path or postgresql+asyncpg://…"
        raise SettingsInvalid(msg)
    if url.drivername == "postgresql+asyncpg":
        return create_async_engine(url, pool_size=settings.pool_size, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    database = create_async_engine(url, pool_size=settings.pool_size)
    event.listen(database.sync_engine, "connect", _prepare_sqlite)
    event.listen(database.sync_engine, "begin", _begin_sqlite)
    return database


def _prepare_sqlite(connection: Any, record: object) -> None:
    del record
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # The sqlite3 module would begin lazily and upgrade a read lock, which fails at once when another writer is there.
    writes = connection.get_execution_options().get("byline_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
