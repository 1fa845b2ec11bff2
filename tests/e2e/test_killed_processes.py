import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp_types import CallToolResult

from examples.chat import Person, open_chat
from tests.e2e.installation import TOOL, Installation, collect_outcome, next_link, read_result, wait_until

BACK_IN_ORDER = ("temporal", "worker", "gateway")


@asynccontextmanager
async def call_under_way(
    installation: Installation, who: Person, record: str
) -> AsyncIterator[tuple[str, "asyncio.Task[CallToolResult]"]]:
    """A call whose client was shown a link and has not gone on yet: the link, and the call."""
    async with open_chat(who, installation.stack.mcp_url) as client, asyncio.TaskGroup() as group:
        calling = group.create_task(client.call_tool(TOOL, {"record": record, "note": "survives"}))
        yield await next_link(who), calling


def list_due_wake_ups(installation: Installation) -> list[tuple[Any, ...]]:
    """The wake-ups that are owed, as the database file has them."""
    with sqlite3.connect(
        f"file:{installation.stack.variables['DATA_DIR']}/byline.db?mode=ro", uri=True
    ) as database:
        rows = database.execute("SELECT run_id FROM waiter WHERE due_at IS NOT NULL").fetchall()
    database.close()
    return rows


@pytest.mark.parametrize(
    "killed_services", [["gateway"], ["worker"], ["temporal"], ["worker", "gateway", "temporal"]]
)
async def test_a_client_between_two_rounds_rejoins_its_run_after(
    installation: Installation, killed_services: list[str]
) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    async with call_under_way(installation, alice, record) as (address, calling):
        (run_id,) = await installation.list_runs(alice)
        for name in killed_services:
            await installation.stack.kill_service(name)
        await installation.restart(*(name for name in BACK_IN_ORDER if name in killed_services))
        page = await installation.consent(alice, address, "alice")
        alice.has_signed_in.set()

    assert page.status == 200
    assert read_result(calling.result()) == {"record": record, "notes": ["survives"]}
    assert installation.list_authors(record) == ["alice"]
    assert await installation.list_runs(alice) == [run_id]


async def test_a_gateway_that_dies_between_grant_and_wake_up_sends_it_when_it_is_back(
    installation: Installation,
) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    async with open_chat(alice, installation.stack.mcp_url, elicitation=False) as client:
        waits = read_result(await client.call_tool(TOOL, {"record": record, "note": "survives"}))
        # Without a Temporal server the grant can be stored and the wake-up cannot be sent.
        await installation.stack.kill_service("temporal")
        page = await installation.consent(alice, waits["links"][0]["url"], "alice")
        due_before = list_due_wake_ups(installation)
        await installation.stack.kill_service("gateway")
        await installation.restart("temporal")
        authors_without_gateway = installation.list_authors(record)
        await installation.restart("gateway")
        await wait_until(lambda: installation.list_authors(record) == ["alice"])
        collected_outcome = await collect_outcome(client, waits["run_id"])

    assert "Kinto is connected" in page.text
    assert due_before == [(waits["run_id"],)]
    assert authors_without_gateway == []
    assert collected_outcome == {"record": record, "notes": ["survives"]}
    assert await installation.list_runs(alice) == [waits["run_id"]]
    await wait_until(lambda: list_due_wake_ups(installation) == [])


async def test_a_run_that_waits_holds_nothing_of_a_worker(installation: Installation) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    async with call_under_way(installation, alice, record) as (address, calling):
        await installation.stack.kill_service("worker")
        page = await installation.consent(alice, address, "alice")
        await installation.restart("worker")
        alice.has_signed_in.set()

    assert page.status == 200
    assert read_result(calling.result())["notes"] == ["survives"]
    assert installation.list_authors(record) == ["alice"]
