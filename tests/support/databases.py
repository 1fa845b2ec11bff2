"""Databases with this release's schema and no row: the migrations make one of a kind in each process of the tests."""

import asyncio
import tempfile
from functools import cache
from pathlib import Path

from engine.db.database import Database
from engine.db.migrate import upgrade_schema
from engine.db.tables import AuditEventRow
from engine.settings import DatabaseSettings
from gateway.sign_in.built_in_people import BuiltInPeople
from tests.support.foreign.postgres import Postgres

_SHARED = "shared"


async def sqlite_database(folder: Path, *, demo_people: bool = False) -> str:
    """The address of the SQLite database in a folder, which is made with the schema, and with people, where none is."""
    file = folder / "byline.db"
    if not file.exists():
        file.write_bytes(await asyncio.to_thread(_migrate_file, demo_people=demo_people))
    return _address(file)


async def postgres_database(server: Postgres) -> str:
    """The address of a server's one database with the schema, emptied: one test after the other has it to itself."""
    address, ours = server.build_url(_SHARED), f"datname = '{_SHARED}'"
    await server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")
    if await server.execute(f"SELECT FROM pg_database WHERE {ours}") == "SELECT 0":
        await server.execute(f"CREATE DATABASE {_SHARED}")
        await asyncio.to_thread(upgrade_schema, address)
    else:
        tables = reversed(AuditEventRow.metadata.sorted_tables)
        await server.execute("; ".join(f'DELETE FROM "{table.name}"' for table in tables), _SHARED)
    return address


@cache
def _migrate_file(*, demo_people: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "byline.db"
        upgrade_schema(_address(file))
        if demo_people:
            asyncio.run(_with_demo_people(file))
        return file.read_bytes()


async def _with_demo_people(file: Path) -> None:
    database = Database(DatabaseSettings(url=_address(file)))
    await BuiltInPeople(database).add_demo_people()
    await database.close_connections()


def _address(file: Path) -> str:
    return f"sqlite+aiosqlite:///{file}"
