"""Runs the migrations on SQLite or PostgreSQL through the product's own asynchronous drivers."""

import asyncio

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from engine.db import tables
from engine.db.database import create_database_folder, parse_database_url, translate_connection_errors

_METADATA = tables.AuditEventRow.metadata
_URL = parse_database_url(context.config.attributes["url"])


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
    create_database_folder(_URL)
    database = create_async_engine(_URL)
    with translate_connection_errors(_URL):
        connection = await database.connect()
    try:
        await connection.run_sync(_migrate)
        await connection.commit()
    finally:
        await connection.close()
        await database.dispose()


asyncio.run(_run())
