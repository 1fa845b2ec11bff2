import asyncio
from typing import Any, Literal

import fastmcp
import pytest
from fastmcp.client.transports import StreamableHttpTransport
from mcp.client.client import Client
from mcp_types import ElicitRequestParams, ElicitRequestURLParams, ElicitResult

from examples.chat import open_chat
from tests.e2e.installation import (
    COLLECT,
    TOOL,
    Installation,
    collect_outcome,
    next_link,
    read_result,
    wait_until,
)
from tests.support.foreign.mcp_client import Implementation, tool_call

NOTE = "pays on time"
MODES: list[Literal["auto", "legacy"]] = ["auto", "legacy"]


async def test_a_client_that_can_show_links_gets_the_outcome_of_the_same_call(
    installation: Installation,
) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    async with open_chat(alice, installation.stack.mcp_url) as client, asyncio.TaskGroup() as group:
        calling = group.create_task(client.call_tool(TOOL, {"record": record, "note": NOTE}))
        page = await installation.consent(alice, await next_link(alice), "alice")
        alice.has_signed_in.set()

    assert "Kinto is connected" in page.text
    assert read_result(calling.result()) == {"record": record, "notes": [NOTE]}
    assert not calling.result().is_error
    assert installation.list_authors(record) == ["alice"]
    assert len(await installation.list_runs(alice)) == 1


async def test_who_has_connected_once_is_not_asked_again(installation: Installation) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    async with open_chat(alice, installation.stack.mcp_url) as client:
        async with asyncio.TaskGroup() as group:
            group.create_task(client.call_tool(TOOL, {"record": record, "note": NOTE}))
            await installation.consent(alice, await next_link(alice), "alice")
            alice.has_signed_in.set()
        second = await client.call_tool(TOOL, {"record": record, "note": NOTE})

    assert read_result(second)["notes"] == [NOTE, NOTE]
    assert alice.links.empty()
    assert len(await installation.list_runs(alice)) == 2


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_that_can_show_no_links_gets_them_in_a_plain_result_and_the_outcome_later(
    installation: Installation, mode: Literal["auto", "legacy"]
) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    arguments = {"record": record, "note": NOTE}
    async with open_chat(alice, installation.stack.mcp_url, elicitation=False, mode=mode) as client:
        first = await client.call_tool(TOOL, arguments)
        waits = read_result(first)
        await installation.consent(alice, waits["links"][0]["url"], "alice")
        await wait_until(lambda: installation.list_authors(record) == ["alice"])
        again = await client.call_tool(TOOL, arguments)
        collected_result = await client.call_tool(COLLECT, {"run_id": waits["run_id"]})

    assert first.is_error
    assert waits["status"] == "authorization_required"
    assert waits["links"][0]["question"] == "Sign in to Kinto so that this can go on in your name."
    assert read_result(again) == read_result(collected_result) == {"record": record, "notes": [NOTE]}
    assert installation.list_authors(record) == ["alice"]
    assert await installation.list_runs(alice) == [waits["run_id"]]


async def test_calls_that_are_repeated_while_their_run_is_parked_begin_no_other(
    installation: Installation,
) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    arguments = {"record": record, "note": NOTE}
    async with open_chat(alice, installation.stack.mcp_url, elicitation=False) as client:
        waits = read_result(await client.call_tool(TOOL, arguments))
        again = await asyncio.gather(
            client.call_tool(TOOL, dict(reversed(arguments.items()))),
            client.call_tool(COLLECT, {"run_id": waits["run_id"]}),
        )
        await installation.consent(alice, waits["links"][0]["url"], "alice")
        collected_outcomes = [await collect_outcome(client, waits["run_id"]) for _ in range(2)]

    assert [read_result(repeated_result) for repeated_result in again] == [waits] * 2
    assert collected_outcomes == [{"record": record, "notes": [NOTE]}] * 2
    assert installation.list_authors(record) == ["alice"]
    assert await installation.list_runs(alice) == [waits["run_id"]]


async def test_other_arguments_begin_another_run_that_waits_for_the_same_sign_in(
    installation: Installation,
) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    async with open_chat(alice, installation.stack.mcp_url, elicitation=False) as client:
        one = read_result(await client.call_tool(TOOL, {"record": record, "note": "one"}))
        two = read_result(await client.call_tool(TOOL, {"record": record, "note": "two"}))
        await installation.consent(alice, one["links"][0]["url"], "alice")
        outcomes = [await collect_outcome(client, waiting["run_id"]) for waiting in (one, two)]

    assert one["links"] == two["links"]
    assert await installation.list_runs(alice) == [one["run_id"], two["run_id"]]
    assert [outcome_document["notes"][-1] for outcome_document in outcomes] == ["one", "two"]


async def test_the_typescript_client_asks_for_the_sign_in_and_gets_the_outcome(
    installation: Installation,
) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    token = await installation.issue_token(alice)
    arguments = {"record": record, "note": NOTE}
    async with tool_call(installation.stack.mcp_url, token, TOOL, arguments, elicitation=True) as call:
        assert await call.read_protocol() == "2026-07-28"
        await installation.consent(alice, await call.read_link(), "alice")
        result = await call.read_result()

    assert result["structuredContent"] == {"record": record, "notes": [NOTE]}
    assert installation.list_authors(record) == ["alice"]
    assert len(await installation.list_runs(alice)) == 1


async def test_the_typescript_sdk_of_protocol_2025_11_25_asks_for_the_sign_in_and_gets_the_outcome(
    installation: Installation,
) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    url, token = installation.stack.mcp_url, await installation.issue_token(alice)
    arguments = {"record": record, "note": NOTE}
    async with tool_call(url, token, TOOL, arguments, elicitation=True, by=Implementation.SDK_1) as call:
        assert await call.read_protocol() == "2025-11-25"
        await installation.consent(alice, await call.read_link(), "alice")
        result = await call.read_result()

    assert result["structuredContent"] == {"record": record, "notes": [NOTE]}
    assert installation.list_authors(record) == ["alice"]
    assert len(await installation.list_runs(alice)) == 1


async def test_fastmcp_asks_for_the_sign_in_and_gets_the_outcome(installation: Installation) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()

    async def show_link(
        _message: str, _response_type: type[Any] | None, params: ElicitRequestParams, _context: Any
    ) -> ElicitResult:
        assert isinstance(params, ElicitRequestURLParams)
        await installation.consent(alice, params.url, "alice")
        return ElicitResult(action="accept")

    transport = StreamableHttpTransport(
        installation.stack.mcp_url, auth=await installation.issue_token(alice)
    )
    async with fastmcp.Client(transport, elicitation_handler=show_link) as client:
        result = await client.call_tool(TOOL, {"record": record, "note": NOTE})

    assert result.structured_content == {"record": record, "notes": [NOTE]}
    assert installation.list_authors(record) == ["alice"]
    assert len(await installation.list_runs(alice)) == 1


async def test_who_declines_in_the_chat_client_ends_the_run(installation: Installation) -> None:
    alice, record = await installation.add_newcomer("alice"), installation.add_record()
    alice.decision = "decline"
    alice.has_signed_in.set()
    async with open_chat(alice, installation.stack.mcp_url) as client:
        declined_result = await client.call_tool(TOOL, {"record": record, "note": NOTE})

    assert declined_result.is_error
    assert read_result(declined_result)["error"] == "authorization_denied"
    assert installation.list_authors(record) == []


async def test_two_people_who_call_at_once_each_act_as_themselves_alone(installation: Installation) -> None:
    alice, bob = await installation.add_newcomer("alice"), await installation.add_newcomer("bob")
    record = installation.add_record(writers=["alice", "bob"])

    async def act(client: Client, account: str) -> dict[str, Any]:
        who = alice if account == "alice" else bob
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(client.call_tool(TOOL, {"record": record, "note": f"by {account}"}))
            await installation.consent(who, await next_link(who), account)
            who.has_signed_in.set()
        return read_result(calling.result())

    async with (
        open_chat(alice, installation.stack.mcp_url) as hers,
        open_chat(bob, installation.stack.mcp_url) as his,
        asyncio.TaskGroup() as group,
    ):
        both = [group.create_task(act(hers, "alice")), group.create_task(act(his, "bob"))]

    note_by_user = {
        entry["user_id"]: entry["target"]["data"]["notes"][-1] for entry in installation.list_changes(record)
    }
    trail = await installation.read_audit_lines("--record", f"kinto:record/{record}")
    runs = {"alice": await installation.list_runs(alice), "bob": await installation.list_runs(bob)}
    assert [call.result()["notes"][-1] for call in both] == ["by alice", "by bob"]
    assert note_by_user == {"oidc:alice": "by alice", "oidc:bob": "by bob"}
    assert {(line["account"], line["run_id"]) for line in trail} == {
        (account, run) for account, (run,) in runs.items()
    }
    assert len({line["grant_id"] for line in trail}) == 2
