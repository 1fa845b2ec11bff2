import asyncio
import sqlite3
from contextlib import suppress
from pathlib import Path

from engine.db.sqlite import DirectConnection, connect_sqlite


async def run(connection: DirectConnection, statement: str) -> None:
    await connection.execute(statement)


async def test_what_goes_on_though_its_caller_was_cancelled_is_met_by_no_other_call(tmp_path: Path) -> None:
    path = str(tmp_path / "some.db")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("CREATE TABLE some (thing)")
    connection = connect_sqlite(path, isolation_level=None, timeout=60)
    await connection
    writer.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(run(connection, "BEGIN IMMEDIATE"))
    async with asyncio.timeout(10):
        while connection._tx.qsize() or not connection._pending_calls:
            await asyncio.sleep(0.01)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting

    following = asyncio.create_task(run(connection, "SELECT thing FROM some"))
    finished_tasks, _ = await asyncio.wait({following}, timeout=0.5)

    assert finished_tasks == set()
    writer.execute("ROLLBACK")
    writer.close()
    await following
    await run(connection, "ROLLBACK")
    assert not connection._pending_calls
    await connection.close()
