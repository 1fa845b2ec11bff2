"""The application database: SQLite or PostgreSQL, with sessions for reading and for writing. It holds no query."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.db import sqlite
from engine.errors import SettingsInvalid
from engine.settings import DatabaseSettings

_BUSY_TIMEOUT_MS = 10_000


def utc_now() -> datetime:
    """Return the present instant, in UTC."""
    return datetime.now(UTC)


class Database:
    """One pool of connections to the application database."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._async_database = _open_database(settings)
        self.url = self._async_database.url
        self.is_sqlite = self._async_database.dialect.name == "sqlite"
        self._writer_lock: asyncio.Lock | nullcontext[None] = (
            asyncio.Lock() if self.is_sqlite else nullcontext()
        )

    @asynccontextmanager
    async def open_read_session(self) -> AsyncIterator[AsyncSession]:
        """Open a session for queries only, each of which sees what is committed when it runs."""
        async with AsyncSession(self._async_database, expire_on_commit=False) as db_session:
            yield db_session

    @asynccontextmanager
    async def open_write_session(self) -> AsyncIterator[AsyncSession]:
        """Open a session with one transaction, committed at the end of the block and rolled back on any error.

        On SQLite it takes the write lock at once, so that what it reads cannot change before it writes. The writers of
        a process take turns, because SQLite lets some waiting writers starve, and each would hold a connection.
        """
        async with (
            self._writer_lock,
            AsyncSession(self._async_database, expire_on_commit=False) as db_session,
        ):
            await db_session.connection(execution_options={"byline_write": True})
            yield db_session
            await db_session.commit()

    async def close_connections(self) -> None:
        """Close every connection."""
        await self._async_database.dispose()


def parse_database_url(url_text: str) -> URL:
    """Parse the address in BYLINE_DATABASE__URL; raises SettingsInvalid unless its driver is aiosqlite or asyncpg."""
    try:
        parsed_url = make_url(url_text)
    except ArgumentError as error:
        raise SettingsInvalid(
            "BYLINE_DATABASE__URL is not a database URL: write sqlite+aiosqlite:///path or postgresql+asyncpg://…"
        ) from error
    if parsed_url.drivername not in {"sqlite+aiosqlite", "postgresql+asyncpg"}:
        raise SettingsInvalid(
            f"BYLINE_DATABASE__URL names '{parsed_url.drivername}': use sqlite+aiosqlite:///path or postgresql+asyncpg://…"
        )
    return parsed_url


@contextmanager
def translate_connection_errors(database_url: URL) -> Iterator[None]:
    """Raise SettingsInvalid for a failure to connect; the block may do nothing else."""
    try:
        yield
    except (OSError, DBAPIError, asyncpg.PostgresError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise SettingsInvalid(
            f"The database {database_url} cannot be reached ({reason}): start it, or correct BYLINE_DATABASE__URL."
        ) from error


def create_database_folder(database_url: URL) -> None:
    """Create the folder of a SQLite file; raises SettingsInvalid where the file could not be written."""
    if (
        database_url.drivername != "sqlite+aiosqlite"
        or not database_url.database
        or database_url.database == ":memory:"
    ):
        return
    file_path = Path(database_url.database)
    with translate_connection_errors(database_url):
        file_path.parent.mkdir(parents=True, exist_ok=True)
        if file_path.is_dir():
            raise IsADirectoryError("it is a folder")
        if not os.access(file_path if file_path.exists() else file_path.parent, os.W_OK):
            raise PermissionError("it may not be written")


def _open_database(settings: DatabaseSettings) -> AsyncEngine:
    database_url = parse_database_url(settings.url)
    create_database_folder(database_url)
    if database_url.drivername == "postgresql+asyncpg":
        return create_async_engine(
            database_url, pool_size=settings.pool_size, pool_pre_ping=True, hide_parameters=True
        )
    connect_args = {"async_creator_fn": sqlite.connect_sqlite}
    database = create_async_engine(
        database_url, pool_size=settings.pool_size, connect_args=connect_args, hide_parameters=True
    )
    event.listen(database.sync_engine, "connect", _prepare_sqlite)
    event.listen(database.sync_engine, "begin", _begin_sqlite)
    return database


def _prepare_sqlite(dbapi_connection: Any, _connection_record: object) -> None:
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
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
    # A query needs no transaction around it, and beginning one costs as much as the query.
    if connection.get_execution_options().get("byline_write", False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
