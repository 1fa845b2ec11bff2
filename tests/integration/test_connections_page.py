from collections.abc import AsyncIterator
from dataclasses import replace

import httpx2
import pytest

from engine.identity.model import Principal
from examples.browser import Browser, Page
from gateway.people import People
from tests.pages import PASSWORDS
from tests.platform import Platform
from tests.rest import Rest, serving


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    async with serving(platform) as rest:
        await People(platform.services.database).add_demo()
        yield rest


async def known(rest: Rest, name: str) -> Principal:
    """Somebody as the built-in sign-in knows them."""
    person = await People(rest.services.database).authenticate(name, PASSWORDS[name])
    assert person is not None
    principal = await rest.services.principals.resolve(rest.url, *person)
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
    declared = await platform.services.catalogue.get("crm")
    gone = {"revocation_endpoint": "http://127.0.0.1:9/revoke"}
    provider = declared.provider.model_validate({**declared.provider.model_dump(), **gone})
    page = await signed_in(rest, "alice")
    await platform.redeclare("crm", provider=provider)
    told = await page.form(submit="Disconnect Acme CRM")

    assert told.status == 503
    assert 'role="alert"' in told.text
    assert "You have connected nothing yet." in told.text
    (removed,) = await platform.trail("grant.removed")
    assert removed["error"] == "upstream_unavailable"
