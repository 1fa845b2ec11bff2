from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import urlsplit

import httpx2
import pytest

from engine.identity.model import Principal
from engine.runs.outcome import Finished
from examples.browser import Browser, Page
from gateway.sign_in.built_in_people import BuiltInPeople
from tests.support.api_server import ApiServer, serve_api
from tests.support.page_server import PASSWORDS
from tests.support.platform import CONTOSO, DISPUTE, NORTHWIND, Platform
from tests.support.sandbox_systems import CALLBACK


@pytest.fixture
async def api_server(platform: Platform) -> AsyncIterator[ApiServer]:
    async with serve_api(platform) as api_server:
        await BuiltInPeople(platform.services.database).add_demo_people()
        yield api_server


async def find_principal(api_server: ApiServer, name: str) -> Principal:
    """Somebody as the built-in sign-in knows them."""
    person = await BuiltInPeople(api_server.services.database).authenticate_person(name, PASSWORDS[name])
    assert person is not None
    principal = await api_server.services.principals.resolve_principal(api_server.url, *person)
    # The sandbox's accounts go by name.
    return replace(principal, subject=name)


async def sign_in(api_server: ApiServer, name: str) -> Page:
    """Somebody's own connections, in a browser of theirs."""
    page = await Browser().open(f"{api_server.url}/connections")
    return await page.form(submit="Sign in", username=name, password=PASSWORDS[name])


async def test_only_ones_own_connections_are_shown_and_only_their_form_ends_one(
    api_server: ApiServer, platform: Platform
) -> None:
    await platform.give_grant("crm", await find_principal(api_server, "alice"))
    hers, his = await sign_in(api_server, "alice"), await sign_in(api_server, "bob")
    assert "Acme CRM" in hers.text
    assert "Acme CRM" not in his.text

    async with httpx2.AsyncClient(base_url=api_server.url) as stranger:
        forged_response = await stranger.post("/connections/crm", data={"csrf_token": "made up"})
    assert forged_response.status_code == 403
    left = await hers.form(submit="Disconnect Acme CRM")
    again = await hers.form(submit="Disconnect Acme CRM")

    assert "You have connected nothing yet." in left.text
    assert (again.status, again.text) == (left.status, left.text)
    (removed_event,) = await platform.list_trail_events("grant.removed")
    assert removed_event["principal"]["name"] == "Alice Liddell"


async def test_a_connection_whose_system_does_not_answer_is_forgotten_and_the_page_says_so(
    api_server: ApiServer, platform: Platform
) -> None:
    await platform.give_grant("crm", await find_principal(api_server, "alice"))
    declaration = await platform.services.catalogue.get_connection("crm")
    unreachable_endpoints = {"revocation_endpoint": "http://127.0.0.1:9/revoke"}
    provider = declaration.provider.model_validate(
        {**declaration.provider.model_dump(), **unreachable_endpoints}
    )
    page = await sign_in(api_server, "alice")
    await platform.redeclare("crm", provider=provider)
    result_page = await page.form(submit="Disconnect Acme CRM")

    assert result_page.status == 503
    assert 'role="alert"' in result_page.text
    assert "You have connected nothing yet." in result_page.text
    assert len(await platform.list_trail_events("grant.removed")) == 1
    (revoked,) = await platform.list_trail_events("grant.revoked")
    assert revoked["error"] == "upstream_unavailable"


async def connect_twice(api_server: ApiServer, platform: Platform) -> Principal:
    """Alice with two accounts at the CRM, her own and Bob's."""
    alice = await find_principal(api_server, "alice")
    for account in ("alice", "bob"):
        await platform.give_grant("crm", alice, account=account)
    return alice


async def test_each_account_is_shown_chosen_and_disconnected_by_itself(
    api_server: ApiServer, platform: Platform
) -> None:
    alice = await connect_twice(api_server, platform)
    grants = {grant.account: grant.id for grant in await platform.services.grants.list_grants(alice.id)}
    hers, bobs = (platform.systems["crm"].find_account(name) for name in ("alice", "bob"))

    page = await sign_in(api_server, "alice")
    page = await page.form(
        submit="Use these", **{"for_all": grants[hers], "for_tool:read_once": grants[bobs]}
    )
    choice = (await platform.services.accounts.list_choices(alice.id))["crm"]
    page = await page.form(submit="Use these", **{"for_all": grants[hers], "for_tool:read_once": ""})
    left = await page.form(submit=f"Disconnect Acme CRM: {hers}")

    assert choice == {"": hers, "read_once": bobs}
    assert (await platform.services.accounts.list_choices(alice.id))["crm"] == {"": hers}
    assert f"{hers} (not connected any more)" in left.text
    assert [grant.account for grant in await platform.services.grants.list_grants(alice.id)] == [bobs]
    (removed_event,) = await platform.list_trail_events("grant.removed")
    assert removed_event["account"] == hers


async def test_an_account_is_chosen_on_the_page_that_a_waiting_tool_links_to(
    api_server: ApiServer, platform: Platform
) -> None:
    alice = await connect_twice(api_server, platform)
    bobs = platform.systems["crm"].find_account("bob")
    grants = {grant.account: grant.id for grant in await platform.services.grants.list_grants(alice.id)}
    run = await platform.start_run("read_once", {"account_id": CONTOSO}, alice)
    (request,) = await platform.wait_until_parked(run)

    page = await Browser().open(f"{api_server.url}/connect/{request.id}")
    page = await page.form(submit="Sign in", username="alice", password=PASSWORDS["alice"])
    wrong = await page.form(submit="Use this account", account="made up")
    result_page = await page.form(submit="Use this account", account=grants[bobs], reach="tool")

    assert "Which account at Acme CRM?" in page.text
    assert (wrong.status, "Choose one of the accounts." in wrong.text) == (422, True)
    assert "Acme CRM is connected" in result_page.text
    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert (await platform.services.accounts.list_choices(alice.id))["crm"] == {"read_once": bobs}
    assert [request["account"] for request in platform.list_requests("crm")] == [bobs]


async def test_all_that_a_tool_needs_is_connected_from_one_page_before_it_is_called(
    api_server: ApiServer, platform: Platform
) -> None:
    await platform.redeclare("support", scopes=("tickets:read",))
    alice, here = (
        await find_principal(api_server, "alice"),
        f"{api_server.url}/connect/tools/read_account_then_ticket",
    )
    async with Browser(stop_at=CALLBACK) as browser:
        page = await browser.open(here)
        page = await page.form(submit="Sign in", username="alice", password=PASSWORDS["alice"])
        assert page.text.count("not connected yet") == 2
        for name, title in (("crm", "Acme CRM"), ("support", "Acme Support")):
            page = await page.form(submit=f"Connect {title}")
            account = platform.systems[name].find_account("alice")
            page = await page.form(submit="Sign in", username=account, password=f"alice-{name}")
            page = await page.form(submit="Allow")
            page = await browser.open(f"{api_server.url}/oauth/callback?{urlsplit(page.url).query}")
            assert "It is there for your tools now." in page.text
            assert 'href="/connect/tools/read_account_then_ticket"' in page.text
            page = await browser.open(here)
        nowhere = await browser.open(f"{api_server.url}/connect/tools/nothing")

    assert "Everything is connected." in page.text
    assert (nowhere.status, "There is no tool" in nowhere.text) == (404, True)
    assert await platform.services.authorization_requests.list_open_requests(alice.id) == []
    run = await platform.start_run(
        "read_account_then_ticket", {"account_id": NORTHWIND, "ticket_id": DISPUTE}, alice
    )
    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert await platform.list_trail_events("authorization.requested", run) == []


async def test_the_page_of_a_tool_widens_the_account_in_use_and_lets_choose_between_several(
    api_server: ApiServer, platform: Platform
) -> None:
    await platform.redeclare("support", scopes=("tickets:read",))
    alice = await find_principal(api_server, "alice")
    await platform.give_grant("support", alice)
    hers, bobs = (platform.systems["support"].find_account(name) for name in ("alice", "bob"))
    here = f"{api_server.url}/connect/tools/comment_on_ticket"
    async with Browser(stop_at=CALLBACK) as browser:
        page = await browser.open(here)
        page = await page.form(submit="Sign in", username="alice", password=PASSWORDS["alice"])
        page = await page.form(submit="Allow that at Acme Support")
        page = await page.form(submit="Sign in", username=bobs, password="bob-support")
        page = await page.form(submit="Allow")
        other = await browser.open(f"{api_server.url}/oauth/callback?{urlsplit(page.url).query}")
        unclear = await browser.open(here)
        grants = {grant.account: grant for grant in await platform.services.grants.list_grants(alice.id)}
        chosen_page = await unclear.form(
            submit="Use this account at Acme Support", account=grants[bobs].id, reach="tool"
        )

    assert (other.status, "That is another account" in other.text) == (409, True)
    assert f"signed in to Acme Support as &#39;{bobs}&#39;" in other.text
    assert grants[hers].scopes == ("tickets:read",)
    assert set(grants[bobs].scopes) == {"tickets:read", "tickets:write"}
    assert "more than one account" in unclear.text
    assert "Everything is connected." in chosen_page.text
    assert (await platform.services.accounts.list_choices(alice.id))["support"] == {"comment_on_ticket": bobs}
