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

from examples.chat import Person, open_chat
from tests.e2e.installation import TIMEOUT_SECONDS, Installation, next_link

ACCOUNT = "001D000000IRFmaIAP"
ADDRESS = f"crm://accounts/{ACCOUNT}"
MODES: list[Literal["auto", "legacy"]] = ["auto", "legacy"]


async def add_customer(installation: Installation) -> Person:
    who = await installation.add_newcomer("alice")
    netloc = urlsplit(f"//127.0.0.1:{installation.stack.variables['CRM_PORT']}").netloc
    who.upstream_accounts[netloc] = ("alice.liddell@acme-crm.example", "alice-crm")
    return who


async def read_letter(client: Client, tone: str = "polite") -> str:
    prompt = await client.get_prompt("letter", {"account_id": ACCOUNT, "tone": tone})
    (message,) = prompt.messages
    assert isinstance(message.content, TextContent)
    return message.content.text


async def read_account(client: Client) -> dict[str, str]:
    (document,) = (await client.read_resource(ADDRESS)).contents
    assert isinstance(document, TextResourceContents)
    assert (str(document.uri), document.mime_type) == (ADDRESS, "application/json")
    account: dict[str, str] = json.loads(document.text)
    return account


@pytest.mark.parametrize("mode", MODES)
async def test_a_prompt_that_needs_a_sign_in_asks_for_it_and_what_was_asked_for_comes(
    installation: Installation, mode: Literal["auto", "legacy"]
) -> None:
    alice = await add_customer(installation)
    async with (
        open_chat(alice, installation.stack.mcp_url, mode=mode) as client,
        asyncio.TaskGroup() as group,
    ):
        asking = group.create_task(read_letter(client))
        await alice.connect(await next_link(alice))
        alice.has_signed_in.set()

    assert asking.result() == "Write a polite letter to Northwind Traders."
    (run,) = await installation.list_runs(alice)
    (ended_event,) = [
        line for line in await installation.read_audit_lines("--run", run) if line["kind"] == "action.ended"
    ]
    assert (ended_event["action"], ended_event["principal"]["name"][:5]) == (
        "salesforce.read_account",
        "Alice",
    )


@pytest.mark.parametrize("mode", MODES)
async def test_a_resource_that_needs_a_sign_in_says_so_to_a_client_that_cannot_ask_and_is_read_afterwards(
    installation: Installation, mode: Literal["auto", "legacy"]
) -> None:
    alice = await add_customer(installation)
    async with open_chat(alice, installation.stack.mcp_url, elicitation=False, mode=mode) as client:
        with pytest.raises(MCPError, match="NOT FINISHED") as error_info:
            await read_account(client)
        (address,) = [word for word in error_info.value.error.message.split() if word.startswith("http://")]
        await alice.connect(address)

        assert (await read_account(client))["name"] == "Northwind Traders"
        assert len(await installation.list_runs(alice)) == 1


async def test_what_is_offered_is_listed_with_all_that_a_client_shows(installation: Installation) -> None:
    async with open_chat(await installation.add_newcomer("alice"), installation.stack.mcp_url) as client:
        prompts, resource_list = await client.list_prompts(), await client.list_resources()
        templates = await client.list_resource_templates()
        tools = {tool.name for tool in (await client.list_tools()).tools}

    (one,) = prompts.prompts
    assert (one.name, one.title, one.description) == (
        "letter",
        "Write a letter",
        "Begins a letter to an account.",
    )
    assert [(listed_item.name, listed_item.required) for listed_item in one.arguments or ()] == [
        ("account_id", True),
        ("tone", False),
    ]
    assert [(str(listed_item.uri), listed_item.mime_type) for listed_item in resource_list.resources] == [
        ("crm://help", "text/plain")
    ]
    assert [listed_item.uri_template for listed_item in templates.resource_templates] == [
        "crm://accounts/{account_id}"
    ]
    assert tools.isdisjoint({"letter", "account", "crm_help"})
    assert (prompts.ttl_ms, prompts.cache_scope) == (60_000, "private")


async def test_what_somebody_types_is_completed_from_what_can_be_chosen(installation: Installation) -> None:
    async with open_chat(await installation.add_newcomer("alice"), installation.stack.mcp_url) as client:
        completion = await client.complete(PromptReference(name="letter"), {"name": "tone", "value": "P"})
        free = await client.complete(
            ResourceTemplateReference(uri="crm://accounts/{account_id}"), {"name": "account_id", "value": "0"}
        )
        with pytest.raises(MCPError, match="no argument 'mood'"):
            await client.complete(PromptReference(name="letter"), {"name": "mood", "value": ""})

    assert completion.completion.values == ["plain", "polite"]
    assert free.completion.values == []


async def test_what_is_not_there_or_does_not_fit_is_an_error_of_the_request_and_starts_nothing(
    installation: Installation,
) -> None:
    alice = await installation.add_newcomer("alice")
    async with open_chat(alice, installation.stack.mcp_url) as client:
        for wrong in (
            client.read_resource("crm://nothing"),
            client.get_prompt("nothing"),
            client.get_prompt("letter", {"account_id": ACCOUNT, "tone": "rude"}),
        ):
            with pytest.raises(MCPError) as error_info:
                await wrong
            assert error_info.value.error.code == INVALID_PARAMS
        for tool in ("letter", "account"):
            with pytest.raises(MCPError, match="no tool"):
                await client.call_tool(tool, {"account_id": ACCOUNT})

    assert await installation.list_runs(alice) == []


async def test_a_client_of_2026_07_28_that_watches_a_resource_is_notified_when_a_run_changed_it(
    installation: Installation,
) -> None:
    alice = await installation.add_newcomer("alice")
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        open_chat(alice, installation.stack.mcp_url) as client,
        client.listen(resource_subscriptions=[ADDRESS]) as events,
    ):
        await client.call_tool("say_account_changed", {"account_id": "another"})
        await client.call_tool("say_account_changed", {"account_id": ACCOUNT})
        notification = await anext(events)

    assert notification == ResourceUpdated(ADDRESS)


async def test_a_session_that_watches_a_resource_is_notified_when_a_run_changed_it(
    installation: Installation,
) -> None:
    alice, notifications = await installation.add_newcomer("alice"), asyncio.Queue[str]()

    async def hears(message: IncomingMessage) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            await notifications.put(str(message.params.uri))

    async with open_chat(alice, installation.stack.mcp_url, mode="legacy", hears=hears) as client:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            await client.subscribe_resource(ADDRESS)
            with pytest.raises(MCPError, match="no such resource"):
                await client.subscribe_resource("crm://nothing")
            await client.call_tool("say_account_changed", {"account_id": ACCOUNT})
            async with asyncio.timeout(TIMEOUT_SECONDS):
                assert await notifications.get() == ADDRESS
            await client.subscribe_resource("crm://accounts/other")
            await client.unsubscribe_resource(ADDRESS)
        for account in (ACCOUNT, "other"):
            await client.call_tool("say_account_changed", {"account_id": account})
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert await notifications.get() == "crm://accounts/other"
