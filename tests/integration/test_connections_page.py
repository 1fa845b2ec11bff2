from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import urlsplit

import httpx2
import pytest

from engine.identity.model import Principal
from engine.runs.outcome import Finished
from examples.browser import Browser, Page
from gateway.sign_in.built_in_people import BuiltInPeople
from tests.pages import PASSWORDS
from tests.platform import CONTOSO, DISPUTE, NORTHWIND, Platform
from tests.rest import Rest, serving
from tests.sandbox import CALLBACK


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    async with serving(platform) as rest:
        await BuiltInPeople(platform.services.database).add_demo_people()
        yield rest


async def known(rest: Rest, name: str) -> Principal:
    """Somebody as the built-in sign-in knows them."""
    person = await BuiltInPeople(rest.services.database).authenticate_person(name, PASSWORDS[name])
    assert person is not None
    principal = await rest.services.principals.resolve_principal(rest.url, *person)
    # The sandbox's accounts go by name.
    return replace(principal, subject=name)


async def signed_in(rest: Rest, name: str) -> Page:
    """Somebody's own connections, in a browser of theirs."""
    page = await Browser().open(f"{rest.url}/connections")
    return await page.form(submit="Sign in", username=name, password=PASSWORDS[name])


async def test_only_ones_own_connections_are_shown_and_only_their_form_ends_one(
    rest: Rest, platform: Platform
) -> None:
    await platform.grant("crm", await known(rest, "alice"))
    hers, his = await signed_in(rest, "alice"), await signed_in(rest, "bob")
    assert "Acme CRM" in hers.text
    assert "Acme CRM" not in his.text

    async with httpx2.AsyncClient(base_url=rest.url) as stranger:
        forged = await stranger.post("/connections/crm", data={"csrf_token": "made up"})
    assert forged.status_code == 403
    left = await hers.form(submit="Disconnect Acme CRM")
    again = await hers.form(submit="Disconnect Acme CRM")

    assert "You have connected nothing yet." in left.text
    assert (again.status, again.text) == (left.status, left.text)
    (removed,) = await platform.trail("grant.removed")
    assert removed["principal"]["name"] == "Alice Liddell"


async def test_a_connection_whose_system_does_not_answer_is_forgotten_and_that_is_told(
    rest: Rest, platform: Platform
) -> None:
    await platform.grant("crm", await known(rest, "alice"))
    declared = await platform.services.catalogue.get_connection("crm")
    gone = {"revocation_endpoint": "http://127.0.0.1:9/revoke"}
    provider = declared.provider.model_validate({**declared.provider.model_dump(), **gone})
    page = await signed_in(rest, "alice")
    await platform.redeclare("crm", provider=provider)
    told = await page.form(submit="Disconnect Acme CRM")

    assert told.status == 503
    assert 'role="alert"' in told.text
    assert "You have connected nothing yet." in told.text
    assert len(await platform.trail("grant.removed")) == 1
    (revoked,) = await platform.trail("grant.revoked")
    assert revoked["error"] == "upstream_unavailable"


async def connected_twice(rest: Rest, platform: Platform) -> Principal:
    """Alice with two accounts at the CRM, her own and Bob's."""
    alice = await known(rest, "alice")
    for account in ("alice", "bob"):
        await platform.grant("crm", alice, account=account)
    return alice


async def test_each_account_is_shown_chosen_and_disconnected_by_itself(
    rest: Rest, platform: Platform
) -> None:
    alice = await connected_twice(rest, platform)
    grants = {grant.account: grant.id for grant in await platform.services.grants.list_grants(alice.id)}
    hers, bobs = (platform.systems["crm"].account(name) for name in ("alice", "bob"))

    page = await signed_in(rest, "alice")
    page = await page.form(
        submit="Use these", **{"for_all": grants[hers], "for_tool:read_once": grants[bobs]}
    )
    chosen = (await platform.services.accounts.list_choices(alice.id))["crm"]
    page = await page.form(submit="Use these", **{"for_all": grants[hers], "for_tool:read_once": ""})
    left = await page.form(submit=f"Disconnect Acme CRM: {hers}")

    assert chosen == {"": hers, "read_once": bobs}
    assert (await platform.services.accounts.list_choices(alice.id))["crm"] == {"": hers}
    assert f"{hers} (not connected any more)" in left.text
    assert [grant.account for grant in await platform.services.grants.list_grants(alice.id)] == [bobs]
    (removed,) = await platform.trail("grant.removed")
    assert removed["account"] == hers


async def test_an_account_is_chosen_on_the_page_that_a_waiting_tool_links_to(
    rest: Rest, platform: Platform
) -> None:
    alice = await connected_twice(rest, platform)
    bobs = platform.systems["crm"].account("bob")
    grants = {grant.account: grant.id for grant in await platform.services.grants.list_grants(alice.id)}
    run = await platform.start("read_once", {"account_id": CONTOSO}, alice)
    (request,) = await platform.parked(run)

    page = await Browser().open(f"{rest.url}/connect/{request.id}")
    page = await page.form(submit="Sign in", username="alice", password=PASSWORDS["alice"])
    wrong = await page.form(submit="Use this account", account="made up")
    done = await page.form(submit="Use this account", account=grants[bobs], reach="tool")

    assert "Which account at Acme CRM?" in page.text
    assert (wrong.status, "Choose one of the accounts." in wrong.text) == (422, True)
    assert "Acme CRM is connected" in done.text
    assert isinstance(await platform.outcome(run), Finished)
    assert (await platform.services.accounts.list_choices(alice.id))["crm"] == {"read_once": bobs}
    assert [request["account"] for request in platform.requests("crm")] == [bobs]


async def test_all_that_a_tool_needs_is_connected_from_one_page_before_it_is_called(
    rest: Rest, platform: Platform
) -> None:
    await platform.redeclare("support", scopes=("tickets:read",))
    alice, here = await known(rest, "alice"), f"{rest.url}/connect/tools/read_account_then_ticket"
    async with Browser(stop_at=CALLBACK) as browser:
        page = await browser.open(here)
        page = await page.form(submit="Sign in", username="alice", password=PASSWORDS["alice"])
        assert page.text.count("not connected yet") == 2
        for name, title in (("crm", "Acme CRM"), ("support", "Acme Support")):
            page = await page.form(submit=f"Connect {title}")
            account = platform.systems[name].account("alice")
            page = await page.form(submit="Sign in", username=account, password=f"alice-{name}")
            page = await page.form(submit="Allow")
            page = await browser.open(f"{rest.url}/oauth/callback?{urlsplit(page.url).query}")
            assert "It is there for your tools now." in page.text
            assert 'href="/connect/tools/read_account_then_ticket"' in page.text
            page = await browser.open(here)
        nowhere = await browser.open(f"{rest.url}/connect/tools/nothing")

    assert "Everything is connected." in page.text
    assert (nowhere.status, "There is no tool" in nowhere.text) == (404, True)
    assert await platform.services.authorization_requests.list_open_requests(alice.id) == []
    run = await platform.start(
        "read_account_then_ticket", {"account_id": NORTHWIND, "ticket_id": DISPUTE}, alice
    )
    assert isinstance(await platform.outcome(run), Finished)
    assert await platform.trail("authorization.requested", run) == []


async def test_the_page_of_a_tool_widens_the_account_in_use_and_lets_choose_between_several(
    rest: Rest, platform: Platform
) -> None:
    await platform.redeclare("support", scopes=("tickets:read",))
    alice = await known(rest, "alice")
    await platform.grant("support", alice)
    hers, bobs = (platform.systems["support"].account(name) for name in ("alice", "bob"))
    here = f"{rest.url}/connect/tools/comment_on_ticket"
    async with Browser(stop_at=CALLBACK) as browser:
        page = await browser.open(here)
        page = await page.form(submit="Sign in", username="alice", password=PASSWORDS["alice"])
        page = await page.form(submit="Allow that at Acme Support")
        page = await page.form(submit="Sign in", username=bobs, password="bob-support")
        page = await page.form(submit="Allow")
        other = await browser.open(f"{rest.url}/oauth/callback?{urlsplit(page.url).query}")
        unclear = await browser.open(here)
        grants = {grant.account: grant for grant in await platform.services.grants.list_grants(alice.id)}
        chosen = await unclear.form(
            submit="Use this account at Acme Support", account=grants[bobs].id, reach="tool"
        )

    assert (other.status, "That is another account" in other.text) == (409, True)
    assert f"signed in to Acme Support as &#39;{bobs}&#39;" in other.text
    assert grants[hers].scopes == ("tickets:read",)
    assert set(grants[bobs].scopes) == {"tickets:read", "tickets:write"}
    assert "more than one account" in unclear.text
    assert "Everything is connected." in chosen.text
    assert (await platform.services.accounts.list_choices(alice.id))["support"] == {"comment_on_ticket": bobs}
