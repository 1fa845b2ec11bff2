"""Holds the sign-in with a code that is typed on another device, against a provider that others wrote."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from engine.authorization.requests import AuthorizationRequest
from engine.connections.connection import Connection
from engine.db.database import utc_now
from engine.db.tables import DeviceSignInRow
from engine.errors import AuthorizationExpired, AuthorizationRefused
from engine.identity.model import Principal
from engine.waiting.waiters import ParkedAction
from engine.wire import IDENTITY_TYPE
from examples.browser import Browser, Page
from tests.data.samples import TOOL, identity_of, tokens
from tests.foreign.chromium import chromium
from tests.foreign.oidc_provider import Client, OidcProvider, oidc_provider
from tests.hostile import answer, hostile
from tests.pages import Byline, serving

DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
SECRET = secrets.token_urlsafe(24)
CLIENTS = [
    Client("byline", SECRET, (), {"grant_types": [DEVICE, "refresh_token"], "response_types": []}),
    Client("no-devices", SECRET, ("http://127.0.0.1:1/oauth/callback",)),
]
JSON = "Content-Type: application/json"
CODE = {
    "device_code": "planted-device-code",
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://example.com/device",
    "expires_in": 600,
    "interval": 0,
}


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcProvider]:
    with oidc_provider(tmp_path_factory.mktemp("oidc"), CLIENTS) as running:
        yield running


@dataclass(frozen=True)
class Stage:
    """Byline's pages, and Alice in front of one."""

    byline: Byline
    browser: Browser
    alice: Principal

    async def asked(self, connection: Connection) -> AuthorizationRequest:
        """Let an action of Alice's park."""
        services = self.byline.services
        await services.catalogue.store_connections([connection])
        identity = identity_of(self.alice)
        await services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
        required = await services.authorization_requests.require_authorization(
            identity, connection, connection.scopes, ParkedAction("w", "r", "k"), run_id="run-1"
        )
        assert required is not None
        return await self.now(required.request_id)

    async def now(self, request_id: str) -> AuthorizationRequest:
        found = await self.byline.services.authorization_requests.find_request(request_id)
        assert found is not None
        return found

    async def question(self, request: AuthorizationRequest) -> Page:
        return await self.browser.open(f"{self.byline.url}/connect/{request.id}")

    async def look(self, request: AuthorizationRequest) -> Page:
        """Look at the page once the provider may be asked again."""
        async with self.byline.services.database.open_write_session() as session:
            turn = update(DeviceSignInRow).where(col(DeviceSignInRow.request_id) == request.id)
            await session.exec(turn.values(poll_after=utc_now()))
        return await self.browser.open(f"{self.byline.url}/connect/{request.id}/device")

    async def row(self) -> DeviceSignInRow | None:
        async with self.byline.services.database.open_read_session() as session:
            return (await session.exec(select(DeviceSignInRow))).one_or_none()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with serving(tmp_path, environment={"SECRET": SECRET}) as byline, Browser() as browser:
        await byline.signed_in(browser, "alice")
        (alice,) = await byline.services.principals.find_by_name("Alice Liddell")
        yield Stage(byline, browser, alice)


def declared(client: str = "byline", **provider: Any) -> Connection:
    return Connection.model_validate(
        {
            "name": "crm",
            "title": "Acme CRM",
            "system": "salesforce",
            "mode": "user",
            "base_url": "https://api.example.com",
            "scopes": ["openid", "profile"],
            "client_id": client,
            "client_secret": {"env": "SECRET"},
            "provider": {"account_claim": "sub", **provider},
        }
    )


async def test_who_confirms_the_code_elsewhere_is_signed_in_here(
    stage: Stage, provider: OidcProvider
) -> None:
    request = await stage.asked(declared(issuer=provider.issuer))
    page = await (await stage.question(request)).form(submit="Use another device")
    early = await stage.look(request)
    row = await stage.row()
    assert row is not None
    code = page.text.split('class="code">')[1].split("<")[0]
    address = page.text.split('href="')[1:]
    link = next(each.split('"')[0] for each in address if each.startswith(provider.issuer))
    await provider.confirm(link.replace("&amp;", "&"), "bob")
    done = await stage.look(request)

    (grant,) = await stage.byline.services.grants.list_grants(stage.alice.id)
    assert page.url.endswith(f"/connect/{request.id}/device")
    assert early.url == page.url
    assert code in page.text
    assert link.endswith(f"user_code={code}")
    assert code.encode() not in row.sealed_code
    assert "Acme CRM is connected" in done.text
    assert done.url.endswith(f"/connect/{request.id}")
    assert (grant.account, grant.scopes) == ("bob", ("openid", "profile"))
    assert await stage.row() is None


def device_link(page: Page, provider: OidcProvider) -> str:
    """Where the page sends people to confirm its code."""
    links = (each.split('"')[0] for each in page.text.split('href="')[1:])
    return next(each for each in links if each.startswith(provider.issuer)).replace("&amp;", "&")


async def test_a_code_confirmed_with_another_account_than_the_one_asked_for_answers_nothing(
    stage: Stage, provider: OidcProvider
) -> None:
    services, connection = stage.byline.services, declared(issuer=provider.issuer)
    await services.catalogue.store_connections([connection])
    request = await services.authorization_requests.open_request_ahead(
        stage.alice, connection, connection.scopes, account="alice"
    )
    page = await (await stage.question(request)).form(submit="Use another device")
    await provider.confirm(device_link(page, provider), "bob")
    told = await stage.look(request)

    (grant,) = await services.grants.list_grants(stage.alice.id)
    *_, refused = await services.trail.find_lines()
    assert (told.status, grant.account) == (409, "bob")
    assert "That is another account" in told.text
    assert (await stage.now(request.id)).is_open
    assert (refused.kind, refused.event["error"]) == ("authorization.refused", "account_mismatched")
    assert await stage.row() is None


async def test_a_code_connects_an_account_for_the_tool_that_waits_for_a_choice(
    stage: Stage, provider: OidcProvider
) -> None:
    services, connection = stage.byline.services, declared(issuer=provider.issuer)
    async with services.database.open_write_session() as session:
        for account in ("alice", "her other"):
            issued = tokens(*connection.scopes)
            await services.grants.store_grant(session, connection, stage.alice.id, issued, account)
    request = await stage.asked(connection)
    question = await stage.question(request)
    page = await question.form(submit="Connect another on another device", reach="tool")
    await provider.confirm(device_link(page, provider), "bob")
    done = await stage.look(request)

    assert request.request_kind == "choice"
    assert "Acme CRM is connected" in done.text
    assert await services.accounts.list_choices(stage.alice.id) == {"crm": {TOOL: "bob"}}


async def test_a_no_on_the_other_device_is_a_no(stage: Stage, provider: OidcProvider) -> None:
    request = await stage.asked(declared(issuer=provider.issuer))
    page = await (await stage.question(request)).form(submit="Use another device")
    await provider.confirm(device_link(page, provider), "alice", submit="Abort")

    told = await stage.look(request)

    assert "You declined Acme CRM" in told.text
    assert (await stage.now(request.id)).state == "denied"


async def test_another_device_is_offered_where_the_provider_and_the_connection_take_it(
    stage: Stage, provider: OidcProvider
) -> None:
    offered = await stage.question(await stage.asked(declared(issuer=provider.issuer)))
    switched_off = await stage.question(await stage.asked(declared(issuer=provider.issuer, device=False)))
    refused = await stage.asked(declared("no-devices", issuer=provider.issuer))
    told = await (await stage.question(refused)).form(submit="Use another device")
    nobody = await stage.browser.open(f"{stage.byline.url}/connect/{refused.id}/device")

    assert ("Use another device" in offered.text, "Use another device" in switched_off.text) == (True, False)
    assert "Continue" in switched_off.text
    assert told.status == 503
    assert "gives no code that could be typed elsewhere (" in told.text
    assert nobody.url.endswith(f"/connect/{refused.id}")


async def test_the_provider_is_asked_no_more_often_than_it_wants_by_however_many(stage: Stage) -> None:
    pending = answer(b'{"error": "authorization_pending"}', JSON, status=400)
    slower = answer(b'{"error": "slow_down"}', JSON, status=400)
    async with hostile() as server:
        code = answer(json.dumps({**CODE, "interval": 60}).encode(), JSON)
        server.answers = [code, slower, answer(b"", status=503), pending]
        request = await stage.asked(at(server.url))
        await (await stage.question(request)).form(submit="Use another device")
        devices = stage.byline.services.sign_ins
        impatient = await asyncio.gather(*(devices.poll_code(request, stage.alice) for _ in range(10)))
        asked_early = len(server.heard)
        await stage.look(request)
        slowed = await stage.row()
        page = await stage.look(request)
        many = await asyncio.gather(*(devices.poll_code(request, stage.alice) for _ in range(10)))

    assert asked_early == 1
    assert {wait.poll_again_seconds for wait in impatient if wait is not None} == {61}
    assert slowed is not None
    assert slowed.interval_seconds == 60
    assert "WDJB-MJHT" in page.text
    assert "planted" not in page.text
    assert None not in many
    assert len(server.heard) == 3
    assert "planted" not in repr(many)


def at(url: str) -> Connection:
    endpoints = ("device_authorization_endpoint", "token_endpoint")
    return declared(**dict.fromkeys(endpoints, url))


@pytest.mark.parametrize("error", ["expired_token", "invalid_grant", "<script>"])
async def test_a_code_that_is_good_no_more_is_told_and_the_question_stays_open(
    stage: Stage, error: str
) -> None:
    async with hostile() as server:
        over = answer(json.dumps({"error": error}).encode(), JSON, status=400)
        server.answers = [answer(json.dumps(CODE).encode(), JSON), over]
        request = await stage.asked(at(server.url))
        question = await stage.question(request)
        told = await question.form(submit="Use another device")

    assert "Continue" not in question.text
    assert told.status == 410
    assert "This code is no good any more" in told.text
    assert "<script>" not in told.text
    assert (await stage.now(request.id)).is_open
    assert await stage.row() is None
    refusals = [
        (line.event["request_id"], line.event["error"])
        for line in await stage.byline.services.trail.find_lines()
        if line.kind == "authorization.refused"
    ]
    withdrawn = [] if error == "expired_token" else [(request.id, "authorization_refused")]
    assert refusals == withdrawn


@pytest.mark.parametrize(
    "change",
    [
        {"device_code": ""},
        {"user_code": None},
        {"verification_uri": "javascript:alert(1)"},
        {"expires_in": -1},
        {"interval": "soon"},
    ],
)
async def test_an_answer_without_a_code_is_told_as_one(stage: Stage, change: dict[str, object]) -> None:
    async with hostile() as server:
        server.answers = [answer(json.dumps({**CODE, **change}).encode(), JSON)]
        request = await stage.asked(at(server.url))
        with pytest.raises(AuthorizationRefused, match="gives no code"):
            await stage.byline.services.sign_ins.begin_sign_in(request, "code")

    assert await stage.row() is None


async def test_a_code_runs_out_by_the_clock_and_answers_nobody_else(stage: Stage) -> None:
    async with hostile() as server:
        server.answers = [answer(json.dumps({**CODE, "interval": 60}).encode(), JSON)]
        request = await stage.asked(at(server.url))
        devices = stage.byline.services.sign_ins
        await devices.begin_sign_in(request, "code")
        async with Browser() as his:
            await stage.byline.signed_in(his, "bob")
            carried = await his.open(f"{stage.byline.url}/connect/{request.id}/device")
        (bob,) = await stage.byline.services.principals.find_by_name("Bob Baker")
        nothing = await devices.poll_code(request, bob)
        async with stage.byline.services.database.open_write_session() as session:
            await session.exec(update(DeviceSignInRow).values(expires_at=utc_now()))
        with pytest.raises(AuthorizationExpired, match="Get a new one"):
            await devices.poll_code(request, stage.alice)

    assert (carried.status, nothing) == (403, None)
    assert "WDJB" not in carried.text
    assert len(server.heard) == 1


async def test_the_pages_of_a_code_and_of_a_key_read_well_in_a_real_browser(stage: Stage) -> None:
    made_at = "https://desk.example.com/settings/keys"
    desk = {
        "name": "desk",
        "title": "Acme Desk",
        "system": "desk",
        "mode": "user",
        "base_url": "https://desk.example.com",
        "sign_in": "basic",
        "key": {"made_at": made_at},
    }
    async with hostile() as server, chromium(stage.byline.url) as browser, browser.window() as window:
        server.answers = [answer(json.dumps({**CODE, "interval": 300}).encode(), JSON)]
        code = await stage.asked(at(server.url))
        key = await stage.asked(Connection.model_validate(desk))
        await window.open(f"/connect/{code.id}")
        await window.sign_in("alice", "alice-demo")
        await window.shows("Connect Acme CRM?")
        await window.press("Use another device")
        await window.shows("Connect Acme CRM on another device")
        await window.press("Look now")
        await window.shows("Connect Acme CRM on another device")
        assert "WDJB-MJHT" in await window.text()
        await window.open(f"/connect/{key.id}")
        await window.shows("Connect Acme Desk?")
        await window.page.get_by_label("Username").fill("al:ice")
        await window.page.get_by_label("Password").fill("planted")
        await window.press("Connect")
        await window.page.get_by_role("alert").wait_for()
        await window.shows("Connect Acme Desk?")
        await window.page.get_by_label("Username").fill("alice")
        await window.page.get_by_label("Password").fill("planted")
        await window.page.keyboard.press("Enter")
        await window.shows("Acme Desk is connected")
