"""Runs the migrations on SQLite or PostgreSQL through the product's own asynchronous drivers."""

import asyncio
from pathlib import Path

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import SQLModel

from engine.db import tables

_METADATA = SQLModel.metadata
_URL = make_url(context.config.attributes["url"])


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=_METADATA,
        render_as_batch=connection.dialect.name == "sqlite",
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def _run() -> None:
    assert tables.AuditEventRow.metadata is _METADATA
    if _URL.database and _URL.drivername.startswith("sqlite"):
        Path(_URL.database).parent.mkdir(parents=True, exist_ok=True)
    database = create_async_engine(_URL)
    async with database.connect() as connection:
        await connection.run_sync(_migrate)
        await connection.commit()
    await database.dispose()


asyncio.run(_run())
