import asyncio
from typing import Any, Literal

import fastmcp
import pytest
from fastmcp.client.transports import StreamableHttpTransport
from mcp.client.client import Client
from mcp_types import ElicitRequestParams, ElicitRequestURLParams, ElicitResult

from examples.chat import chat
from tests.e2e.world import COLLECT, TOOL, World, eventually, link, outcome, said
from tests.foreign.mcp_client import Implementation, tool_call

NOTE = "pays on time"
MODES: list[Literal["auto", "legacy"]] = ["auto", "legacy"]


async def test_a_client_that_can_show_links_gets_the_outcome_of_the_same_call(world: World) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    async with chat(alice, world.stack.mcp_url) as client, asyncio.TaskGroup() as group:
        calling = group.create_task(client.call_tool(TOOL, {"record": record, "note": NOTE}))
        page = await world.consent(alice, await link(alice), "alice")
        alice.has_signed_in.set()

    assert "Kinto is connected" in page.text
    assert said(calling.result()) == {"record": record, "notes": [NOTE]}
    assert not calling.result().is_error
    assert world.authors(record) == ["alice"]
    assert len(await world.runs(alice)) == 1


async def test_who_has_connected_once_is_not_asked_again(world: World) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    async with chat(alice, world.stack.mcp_url) as client:
        async with asyncio.TaskGroup() as group:
            group.create_task(client.call_tool(TOOL, {"record": record, "note": NOTE}))
            await world.consent(alice, await link(alice), "alice")
            alice.has_signed_in.set()
        second = await client.call_tool(TOOL, {"record": record, "note": NOTE})

    assert said(second)["notes"] == [NOTE, NOTE]
    assert alice.links.empty()
    assert len(await world.runs(alice)) == 2


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_that_can_show_no_links_gets_them_in_a_plain_result_and_the_outcome_later(
    world: World, mode: Literal["auto", "legacy"]
) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    arguments = {"record": record, "note": NOTE}
    async with chat(alice, world.stack.mcp_url, elicitation=False, mode=mode) as client:
        first = await client.call_tool(TOOL, arguments)
        waits = said(first)
        await world.consent(alice, waits["links"][0]["url"], "alice")
        await eventually(lambda: world.authors(record) == ["alice"])
        again = await client.call_tool(TOOL, arguments)
        collected = await client.call_tool(COLLECT, {"run_id": waits["run_id"]})

    assert first.is_error
    assert waits["status"] == "authorization_required"
    assert waits["links"][0]["question"] == "Sign in to Kinto so that this can go on in your name."
    assert said(again) == said(collected) == {"record": record, "notes": [NOTE]}
    assert world.authors(record) == ["alice"]
    assert await world.runs(alice) == [waits["run_id"]]


async def test_calls_that_are_repeated_while_their_run_is_parked_begin_no_other(world: World) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    arguments = {"record": record, "note": NOTE}
    async with chat(alice, world.stack.mcp_url, elicitation=False) as client:
        waits = said(await client.call_tool(TOOL, arguments))
        again = await asyncio.gather(
            client.call_tool(TOOL, dict(reversed(arguments.items()))),
            client.call_tool(COLLECT, {"run_id": waits["run_id"]}),
        )
        await world.consent(alice, waits["links"][0]["url"], "alice")
        collected = [await outcome(client, waits["run_id"]) for _ in range(2)]

    assert [said(parked) for parked in again] == [waits] * 2
    assert collected == [{"record": record, "notes": [NOTE]}] * 2
    assert world.authors(record) == ["alice"]
    assert await world.runs(alice) == [waits["run_id"]]


async def test_other_arguments_begin_another_run_that_waits_for_the_same_sign_in(world: World) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    async with chat(alice, world.stack.mcp_url, elicitation=False) as client:
        one = said(await client.call_tool(TOOL, {"record": record, "note": "one"}))
        two = said(await client.call_tool(TOOL, {"record": record, "note": "two"}))
        await world.consent(alice, one["links"][0]["url"], "alice")
        outcomes = [await outcome(client, waiting["run_id"]) for waiting in (one, two)]

    assert one["links"] == two["links"]
    assert await world.runs(alice) == [one["run_id"], two["run_id"]]
    assert [found["notes"][-1] for found in outcomes] == ["one", "two"]


async def test_the_typescript_client_asks_for_the_sign_in_and_gets_the_outcome(world: World) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    token = await world.token(alice)
    arguments = {"record": record, "note": NOTE}
    async with tool_call(world.stack.mcp_url, token, TOOL, arguments, elicitation=True) as call:
        assert await call.protocol() == "2026-07-28"
        await world.consent(alice, await call.link(), "alice")
        result = await call.result()

    assert result["structuredContent"] == {"record": record, "notes": [NOTE]}
    assert world.authors(record) == ["alice"]
    assert len(await world.runs(alice)) == 1


async def test_the_typescript_sdk_of_protocol_2025_11_25_asks_for_the_sign_in_and_gets_the_outcome(
    world: World,
) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    url, token = world.stack.mcp_url, await world.token(alice)
    arguments = {"record": record, "note": NOTE}
    async with tool_call(url, token, TOOL, arguments, elicitation=True, by=Implementation.SDK_1) as call:
        assert await call.protocol() == "2025-11-25"
        await world.consent(alice, await call.link(), "alice")
        result = await call.result()

    assert result["structuredContent"] == {"record": record, "notes": [NOTE]}
    assert world.authors(record) == ["alice"]
    assert len(await world.runs(alice)) == 1


async def test_fastmcp_asks_for_the_sign_in_and_gets_the_outcome(world: World) -> None:
    alice, record = await world.newcomer("alice"), world.record()

    async def shown(
        _message: str, _response_type: type[Any] | None, params: ElicitRequestParams, _context: Any
    ) -> ElicitResult:
        assert isinstance(params, ElicitRequestURLParams)
        await world.consent(alice, params.url, "alice")
        return ElicitResult(action="accept")

    transport = StreamableHttpTransport(world.stack.mcp_url, auth=await world.token(alice))
    async with fastmcp.Client(transport, elicitation_handler=shown) as client:
        result = await client.call_tool(TOOL, {"record": record, "note": NOTE})

    assert result.structured_content == {"record": record, "notes": [NOTE]}
    assert world.authors(record) == ["alice"]
    assert len(await world.runs(alice)) == 1


async def test_who_declines_in_the_chat_client_ends_the_run(world: World) -> None:
    alice, record = await world.newcomer("alice"), world.record()
    alice.decision = "decline"
    alice.has_signed_in.set()
    async with chat(alice, world.stack.mcp_url) as client:
        declined = await client.call_tool(TOOL, {"record": record, "note": NOTE})

    assert declined.is_error
    assert said(declined)["error"] == "authorization_denied"
    assert world.authors(record) == []


async def test_two_people_who_call_at_once_each_act_as_themselves_alone(world: World) -> None:
    alice, bob = await world.newcomer("alice"), await world.newcomer("bob")
    record = world.record(writers=["alice", "bob"])

    async def act(client: Client, account: str) -> dict[str, Any]:
        who = alice if account == "alice" else bob
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(client.call_tool(TOOL, {"record": record, "note": f"by {account}"}))
            await world.consent(who, await link(who), account)
            who.has_signed_in.set()
        return said(calling.result())

    async with (
        chat(alice, world.stack.mcp_url) as hers,
        chat(bob, world.stack.mcp_url) as his,
        asyncio.TaskGroup() as group,
    ):
        both = [group.create_task(act(hers, "alice")), group.create_task(act(his, "bob"))]

    written = {entry["user_id"]: entry["target"]["data"]["notes"][-1] for entry in world.changes(record)}
    trail = await world.audit("--record", f"kinto:record/{record}")
    runs = {"alice": await world.runs(alice), "bob": await world.runs(bob)}
    assert [call.result()["notes"][-1] for call in both] == ["by alice", "by bob"]
    assert written == {"oidc:alice": "by alice", "oidc:bob": "by bob"}
    assert {(line["account"], line["run_id"]) for line in trail} == {
        (account, run) for account, (run,) in runs.items()
    }
    assert len({line["grant_id"] for line in trail}) == 2
