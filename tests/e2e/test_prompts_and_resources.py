"""Holds prompts and resources to what tools are held to: they are runs in the person's name, with their sign-in."""

import asyncio
import json
import warnings
from typing import Literal
from urllib.parse import urlsplit

import pytest
from mcp.client.client import Client
from mcp.client.session import IncomingMessage
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourceUpdated
from mcp_types import (
    INVALID_PARAMS,
    PromptReference,
    ResourceTemplateReference,
    ResourceUpdatedNotification,
    TextContent,
    TextResourceContents,
)

from examples.chat import Person, chat
from tests.e2e.world import PATIENCE, World, link

ACCOUNT = "001D000000IRFmaIAP"
ADDRESS = f"crm://accounts/{ACCOUNT}"
MODES: list[Literal["auto", "legacy"]] = ["auto", "legacy"]


async def customer(world: World) -> Person:
    who = await world.newcomer("alice")
    netloc = urlsplit(f"//127.0.0.1:{world.stack.variables['CRM_PORT']}").netloc
    who.upstream_accounts[netloc] = ("alice.liddell@acme-crm.example", "alice-crm")
    return who


async def letter(client: Client, tone: str = "polite") -> str:
    given = await client.get_prompt("letter", {"account_id": ACCOUNT, "tone": tone})
    (message,) = given.messages
    assert isinstance(message.content, TextContent)
    return message.content.text


async def read(client: Client) -> dict[str, str]:
    (document,) = (await client.read_resource(ADDRESS)).contents
    assert isinstance(document, TextResourceContents)
    assert (str(document.uri), document.mime_type) == (ADDRESS, "application/json")
    account: dict[str, str] = json.loads(document.text)
    return account


@pytest.mark.parametrize("mode", MODES)
async def test_a_prompt_that_needs_a_sign_in_asks_for_it_and_what_was_asked_for_comes(
    world: World, mode: Literal["auto", "legacy"]
) -> None:
    alice = await customer(world)
    async with chat(alice, world.stack.mcp_url, mode=mode) as client, asyncio.TaskGroup() as group:
        asking = group.create_task(letter(client))
        await alice.connect(await link(alice))
        alice.has_signed_in.set()

    assert asking.result() == "Write a polite letter to Northwind Traders."
    (run,) = await world.runs(alice)
    (ended,) = [line for line in await world.audit("--run", run) if line["kind"] == "action.ended"]
    assert (ended["action"], ended["principal"]["name"][:5]) == ("salesforce.read_account", "Alice")


@pytest.mark.parametrize("mode", MODES)
async def test_a_resource_that_needs_a_sign_in_tells_a_client_that_cannot_ask_and_is_read_once_it_is_done(
    world: World, mode: Literal["auto", "legacy"]
) -> None:
    alice = await customer(world)
    async with chat(alice, world.stack.mcp_url, elicitation=False, mode=mode) as client:
        with pytest.raises(MCPError, match="NOT FINISHED") as unfinished:
            await read(client)
        (address,) = [word for word in unfinished.value.error.message.split() if word.startswith("http://")]
        await alice.connect(address)

        assert (await read(client))["name"] == "Northwind Traders"
        assert len(await world.runs(alice)) == 1


async def test_what_is_offered_is_listed_with_all_that_a_client_shows(world: World) -> None:
    async with chat(await world.newcomer("alice"), world.stack.mcp_url) as client:
        prompts, listed = await client.list_prompts(), await client.list_resources()
        templates = await client.list_resource_templates()
        tools = {tool.name for tool in (await client.list_tools()).tools}

    (one,) = prompts.prompts
    assert (one.name, one.title, one.description) == (
        "letter",
        "Write a letter",
        "Begins a letter to an account.",
    )
    assert [(each.name, each.required) for each in one.arguments or ()] == [
        ("account_id", True),
        ("tone", False),
    ]
    assert [(str(each.uri), each.mime_type) for each in listed.resources] == [("crm://help", "text/plain")]
    assert [each.uri_template for each in templates.resource_templates] == ["crm://accounts/{account_id}"]
    assert tools.isdisjoint({"letter", "account", "crm_help"})
    assert (prompts.ttl_ms, prompts.cache_scope) == (60_000, "private")


async def test_what_somebody_types_is_completed_from_what_can_be_chosen(world: World) -> None:
    async with chat(await world.newcomer("alice"), world.stack.mcp_url) as client:
        told = await client.complete(PromptReference(name="letter"), {"name": "tone", "value": "P"})
        free = await client.complete(
            ResourceTemplateReference(uri="crm://accounts/{account_id}"), {"name": "account_id", "value": "0"}
        )
        with pytest.raises(MCPError, match="no argument 'mood'"):
            await client.complete(PromptReference(name="letter"), {"name": "mood", "value": ""})

    assert told.completion.values == ["plain", "polite"]
    assert free.completion.values == []


async def test_what_is_not_there_or_does_not_fit_is_an_error_of_the_request_and_starts_nothing(
    world: World,
) -> None:
    alice = await world.newcomer("alice")
    async with chat(alice, world.stack.mcp_url) as client:
        for wrong in (
            client.read_resource("crm://nothing"),
            client.get_prompt("nothing"),
            client.get_prompt("letter", {"account_id": ACCOUNT, "tone": "rude"}),
        ):
            with pytest.raises(MCPError) as refused:
                await wrong
            assert refused.value.error.code == INVALID_PARAMS
        for tool in ("letter", "account"):
            with pytest.raises(MCPError, match="no tool"):
                await client.call_tool(tool, {"account_id": ACCOUNT})

    assert await world.runs(alice) == []


async def test_a_client_of_2026_07_28_that_watches_a_resource_is_told_when_a_run_changed_it(
    world: World,
) -> None:
    alice = await world.newcomer("alice")
    async with (
        asyncio.timeout(PATIENCE),
        chat(alice, world.stack.mcp_url) as client,
        client.listen(resource_subscriptions=[ADDRESS]) as events,
    ):
        await client.call_tool("say_account_changed", {"account_id": "another"})
        await client.call_tool("say_account_changed", {"account_id": ACCOUNT})
        told = await anext(events)

    assert told == ResourceUpdated(ADDRESS)


async def test_a_session_that_watches_a_resource_is_told_when_a_run_changed_it(world: World) -> None:
    alice, told = await world.newcomer("alice"), asyncio.Queue[str]()

    async def hears(message: IncomingMessage) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            await told.put(str(message.params.uri))

    async with chat(alice, world.stack.mcp_url, mode="legacy", hears=hears) as client:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            await client.subscribe_resource(ADDRESS)
            with pytest.raises(MCPError, match="no such resource"):
                await client.subscribe_resource("crm://nothing")
            await client.call_tool("say_account_changed", {"account_id": ACCOUNT})
            async with asyncio.timeout(PATIENCE):
                assert await told.get() == ADDRESS
            await client.subscribe_resource("crm://accounts/other")
            await client.unsubscribe_resource(ADDRESS)
        for account in (ACCOUNT, "other"):
            await client.call_tool("say_account_changed", {"account_id": account})
        async with asyncio.timeout(PATIENCE):
            assert await told.get() == "crm://accounts/other"
