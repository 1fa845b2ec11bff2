import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp_types import CallToolResult

from examples.chat import Person, chat
from tests.e2e.world import TOOL, World, eventually, link, outcome, said

BACK_IN_ORDER = ("temporal", "worker", "gateway")


@asynccontextmanager
async def call_under_way(
    world: World, who: Person, record: str
) -> AsyncIterator[tuple[str, "asyncio.Task[CallToolResult]"]]:
    """A call whose client was shown a link and has not gone on yet: the link, and the call."""
    async with chat(who, world.stack.mcp_url) as client, asyncio.TaskGroup() as group:
        calling = group.create_task(client.call_tool(TOOL, {"record": record, "note": "survives"}))
        yield await link(who), calling


def owed(world: World) -> list[tuple[Any, ...]]:
    """The wake-ups that are owed, as the database file has them."""
    with sqlite3.connect(f"file:{world.stack.variables['DATA_DIR']}/byline.db?mode=ro", uri=True) as database:
        rows = database.execute("SELECT run_id FROM waiter WHERE due_at IS NOT NULL").fetchall()
    database.close()
    return rows


@pytest.mark.parametrize("killed", [["gateway"], ["worker"], ["temporal"], ["worker", "gateway", "temporal"]])
async def test_a_client_between_two_rounds_rejoins_its_run_after(world: World, killed: list[str]) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    async with call_under_way(world, alice, record) as (address, calling):
        (begun,) = await world.runs(alice)
        for name in killed:
            await world.stack.kill_service(name)
        await world.restart(*(name for name in BACK_IN_ORDER if name in killed))
        page = await world.consent(alice, address, "alice")
        alice.has_signed_in.set()

    assert page.status == 200
    assert said(calling.result()) == {"record": record, "notes": ["survives"]}
    assert world.authors(record) == ["alice"]
    assert await world.runs(alice) == [begun]


async def test_a_gateway_that_dies_between_grant_and_wake_up_sends_it_when_it_is_back(world: World) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    async with chat(alice, world.stack.mcp_url, elicitation=False) as client:
        waits = said(await client.call_tool(TOOL, {"record": record, "note": "survives"}))
        # Without a Temporal server the grant can be stored and the wake-up cannot be sent.
        await world.stack.kill_service("temporal")
        page = await world.consent(alice, waits["links"][0]["url"], "alice")
        owed_before = owed(world)
        await world.stack.kill_service("gateway")
        await world.restart("temporal")
        authors_without_gateway = world.authors(record)
        await world.restart("gateway")
        await eventually(lambda: world.authors(record) == ["alice"])
        collected = await outcome(client, waits["run_id"])

    assert "Kinto is connected" in page.text
    assert owed_before == [(waits["run_id"],)]
    assert authors_without_gateway == []
    assert collected == {"record": record, "notes": ["survives"]}
    assert await world.runs(alice) == [waits["run_id"]]
    await eventually(lambda: owed(world) == [])


async def test_a_run_that_waits_holds_nothing_of_a_worker(world: World) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    async with call_under_way(world, alice, record) as (address, calling):
        await world.stack.kill_service("worker")
        page = await world.consent(alice, address, "alice")
        await world.restart("worker")
        alice.has_signed_in.set()

    assert page.status == 200
    assert said(calling.result())["notes"] == ["survives"]
    assert world.authors(record) == ["alice"]
