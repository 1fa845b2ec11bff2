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
from tests.support.foreign.chromium import chromium
from tests.support.foreign.oidc_provider import OidcProvider, RegisteredClient, oidc_provider
from tests.support.hostile_server import build_answer, run_hostile_server
from tests.support.page_server import PageServer, serve_pages
from tests.support.samples import TOOL, build_identity, build_tokens

DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
SECRET = secrets.token_urlsafe(24)
CLIENTS = [
    RegisteredClient("byline", SECRET, (), {"grant_types": [DEVICE, "refresh_token"], "response_types": []}),
    RegisteredClient("no-devices", SECRET, ("http://127.0.0.1:1/oauth/callback",)),
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
class DeviceSetup:
    """Byline's pages, and Alice in front of one."""

    byline: PageServer
    browser: Browser
    alice: Principal

    async def ask(self, connection: Connection) -> AuthorizationRequest:
        """Let an action of Alice's park."""
        services = self.byline.services
        await services.catalogue.store_connections([connection])
        identity = build_identity(self.alice)
        await services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
        requirement = await services.authorization_requests.require_authorization(
            identity, connection, connection.scopes, ParkedAction("w", "r", "k"), run_id="run-1"
        )
        assert requirement is not None
        return await self.read_request(requirement.request_id)

    async def read_request(self, request_id: str) -> AuthorizationRequest:
        stored_request = await self.byline.services.authorization_requests.find_request(request_id)
        assert stored_request is not None
        return stored_request

    async def open_question_page(self, request: AuthorizationRequest) -> Page:
        return await self.browser.open(f"{self.byline.url}/connect/{request.id}")

    async def open_device_page(self, request: AuthorizationRequest) -> Page:
        """Look at the page once the provider may be asked again."""
        async with self.byline.services.database.open_write_session() as session:
            turn = update(DeviceSignInRow).where(col(DeviceSignInRow.request_id) == request.id)
            await session.exec(turn.values(poll_after=utc_now()))
        return await self.browser.open(f"{self.byline.url}/connect/{request.id}/device")

    async def read_row(self) -> DeviceSignInRow | None:
        async with self.byline.services.database.open_read_session() as session:
            return (await session.exec(select(DeviceSignInRow))).one_or_none()


@pytest.fixture
async def device_setup(tmp_path: Path) -> AsyncIterator[DeviceSetup]:
    async with serve_pages(tmp_path, environment={"SECRET": SECRET}) as byline, Browser() as browser:
        await byline.sign_in(browser, "alice")
        (alice,) = await byline.services.principals.find_by_name("Alice Liddell")
        yield DeviceSetup(byline, browser, alice)


def declare_connection(client: str = "byline", **provider: Any) -> Connection:
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
    device_setup: DeviceSetup, provider: OidcProvider
) -> None:
    request = await device_setup.ask(declare_connection(issuer=provider.issuer))
    page = await (await device_setup.open_question_page(request)).form(submit="Use another device")
    early = await device_setup.open_device_page(request)
    row = await device_setup.read_row()
    assert row is not None
    code = page.text.split('class="code">')[1].split("<")[0]
    address = page.text.split('href="')[1:]
    link = next(part.split('"')[0] for part in address if part.startswith(provider.issuer))
    await provider.confirm(link.replace("&amp;", "&"), "bob")
    result_page = await device_setup.open_device_page(request)

    (grant,) = await device_setup.byline.services.grants.list_grants(device_setup.alice.id)
    assert page.url.endswith(f"/connect/{request.id}/device")
    assert early.url == page.url
    assert code in page.text
    assert link.endswith(f"user_code={code}")
    assert code.encode() not in row.sealed_code
    assert "Acme CRM is connected" in result_page.text
    assert result_page.url.endswith(f"/connect/{request.id}")
    assert (grant.account, grant.scopes) == ("bob", ("openid", "profile"))
    assert await device_setup.read_row() is None


def find_device_link(page: Page, provider: OidcProvider) -> str:
    """Where the page sends people to confirm its code."""
    links = (part.split('"')[0] for part in page.text.split('href="')[1:])
    return next(part for part in links if part.startswith(provider.issuer)).replace("&amp;", "&")


async def test_a_code_confirmed_with_another_account_than_the_one_asked_for_answers_nothing(
    device_setup: DeviceSetup, provider: OidcProvider
) -> None:
    services, connection = device_setup.byline.services, declare_connection(issuer=provider.issuer)
    await services.catalogue.store_connections([connection])
    request = await services.authorization_requests.open_request_ahead(
        device_setup.alice, connection, connection.scopes, account="alice"
    )
    page = await (await device_setup.open_question_page(request)).form(submit="Use another device")
    await provider.confirm(find_device_link(page, provider), "bob")
    result_page = await device_setup.open_device_page(request)

    (grant,) = await services.grants.list_grants(device_setup.alice.id)
    *_, refused_event = await services.trail.find_lines()
    assert (result_page.status, grant.account) == (409, "bob")
    assert "That is another account" in result_page.text
    assert (await device_setup.read_request(request.id)).is_open
    assert (refused_event.kind, refused_event.event["error"]) == (
        "authorization.refused",
        "account_mismatched",
    )
    assert await device_setup.read_row() is None


async def test_a_code_connects_an_account_for_the_tool_that_waits_for_a_choice(
    device_setup: DeviceSetup, provider: OidcProvider
) -> None:
    services, connection = device_setup.byline.services, declare_connection(issuer=provider.issuer)
    async with services.database.open_write_session() as session:
        for account in ("alice", "her other"):
            issued_tokens = build_tokens(*connection.scopes)
            await services.grants.store_grant(
                session, connection, device_setup.alice.id, issued_tokens, account
            )
    request = await device_setup.ask(connection)
    question = await device_setup.open_question_page(request)
    page = await question.form(submit="Connect another on another device", reach="tool")
    await provider.confirm(find_device_link(page, provider), "bob")
    result_page = await device_setup.open_device_page(request)

    assert request.request_kind == "choice"
    assert "Acme CRM is connected" in result_page.text
    assert await services.accounts.list_choices(device_setup.alice.id) == {"crm": {TOOL: "bob"}}


async def test_a_no_on_the_other_device_is_a_no(device_setup: DeviceSetup, provider: OidcProvider) -> None:
    request = await device_setup.ask(declare_connection(issuer=provider.issuer))
    page = await (await device_setup.open_question_page(request)).form(submit="Use another device")
    await provider.confirm(find_device_link(page, provider), "alice", submit="Abort")

    result_page = await device_setup.open_device_page(request)

    assert "You declined Acme CRM" in result_page.text
    assert (await device_setup.read_request(request.id)).state == "denied"


async def test_another_device_is_offered_where_the_provider_and_the_connection_take_it(
    device_setup: DeviceSetup, provider: OidcProvider
) -> None:
    question_page = await device_setup.open_question_page(
        await device_setup.ask(declare_connection(issuer=provider.issuer))
    )
    switched_off = await device_setup.open_question_page(
        await device_setup.ask(declare_connection(issuer=provider.issuer, device=False))
    )
    request_without_devices = await device_setup.ask(declare_connection("no-devices", issuer=provider.issuer))
    result_page = await (await device_setup.open_question_page(request_without_devices)).form(
        submit="Use another device"
    )
    nobody = await device_setup.browser.open(
        f"{device_setup.byline.url}/connect/{request_without_devices.id}/device"
    )

    assert ("Use another device" in question_page.text, "Use another device" in switched_off.text) == (
        True,
        False,
    )
    assert "Continue" in switched_off.text
    assert result_page.status == 503
    assert "gives no code that could be typed elsewhere (" in result_page.text
    assert nobody.url.endswith(f"/connect/{request_without_devices.id}")


async def test_the_provider_is_asked_no_more_often_than_it_wants_by_however_many(
    device_setup: DeviceSetup,
) -> None:
    pending = build_answer(b'{"error": "authorization_pending"}', JSON, status=400)
    slower = build_answer(b'{"error": "slow_down"}', JSON, status=400)
    async with run_hostile_server() as server:
        code = build_answer(json.dumps({**CODE, "interval": 60}).encode(), JSON)
        server.answers = [code, slower, build_answer(b"", status=503), pending]
        request = await device_setup.ask(build_connection(server.url))
        await (await device_setup.open_question_page(request)).form(submit="Use another device")
        devices = device_setup.byline.services.sign_ins
        impatient = await asyncio.gather(*(devices.poll_code(request, device_setup.alice) for _ in range(10)))
        early_requests = len(server.requests)
        await device_setup.open_device_page(request)
        device_row = await device_setup.read_row()
        page = await device_setup.open_device_page(request)
        many = await asyncio.gather(*(devices.poll_code(request, device_setup.alice) for _ in range(10)))

    assert early_requests == 1
    assert {wait.poll_again_seconds for wait in impatient if wait is not None} == {61}
    assert device_row is not None
    assert device_row.interval_seconds == 60
    assert "WDJB-MJHT" in page.text
    assert "planted" not in page.text
    assert None not in many
    assert len(server.requests) == 3
    assert "planted" not in repr(many)


def build_connection(url: str) -> Connection:
    endpoints = ("device_authorization_endpoint", "token_endpoint")
    return declare_connection(**dict.fromkeys(endpoints, url))


@pytest.mark.parametrize("error", ["expired_token", "invalid_grant", "<script>"])
async def test_an_expired_code_is_reported_and_the_question_stays_open(
    device_setup: DeviceSetup, error: str
) -> None:
    async with run_hostile_server() as server:
        over = build_answer(json.dumps({"error": error}).encode(), JSON, status=400)
        server.answers = [build_answer(json.dumps(CODE).encode(), JSON), over]
        request = await device_setup.ask(build_connection(server.url))
        question = await device_setup.open_question_page(request)
        result_page = await question.form(submit="Use another device")

    assert "Continue" not in question.text
    assert result_page.status == 410
    assert "This code is no good any more" in result_page.text
    assert "<script>" not in result_page.text
    assert (await device_setup.read_request(request.id)).is_open
    assert await device_setup.read_row() is None
    refusals = [
        (line.event["request_id"], line.event["error"])
        for line in await device_setup.byline.services.trail.find_lines()
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
async def test_an_answer_without_a_code_is_refused(
    device_setup: DeviceSetup, change: dict[str, object]
) -> None:
    async with run_hostile_server() as server:
        server.answers = [build_answer(json.dumps({**CODE, **change}).encode(), JSON)]
        request = await device_setup.ask(build_connection(server.url))
        with pytest.raises(AuthorizationRefused, match="gives no code"):
            await device_setup.byline.services.sign_ins.begin_sign_in(request, "code")

    assert await device_setup.read_row() is None


async def test_a_code_runs_out_by_the_clock_and_answers_nobody_else(device_setup: DeviceSetup) -> None:
    async with run_hostile_server() as server:
        server.answers = [build_answer(json.dumps({**CODE, "interval": 60}).encode(), JSON)]
        request = await device_setup.ask(build_connection(server.url))
        devices = device_setup.byline.services.sign_ins
        await devices.begin_sign_in(request, "code")
        async with Browser() as his:
            await device_setup.byline.sign_in(his, "bob")
            carried_page = await his.open(f"{device_setup.byline.url}/connect/{request.id}/device")
        (bob,) = await device_setup.byline.services.principals.find_by_name("Bob Baker")
        nothing = await devices.poll_code(request, bob)
        async with device_setup.byline.services.database.open_write_session() as session:
            await session.exec(update(DeviceSignInRow).values(expires_at=utc_now()))
        with pytest.raises(AuthorizationExpired, match="Get a new one"):
            await devices.poll_code(request, device_setup.alice)

    assert (carried_page.status, nothing) == (403, None)
    assert "WDJB" not in carried_page.text
    assert len(server.requests) == 1


async def test_the_pages_of_a_code_and_of_a_key_read_well_in_a_real_browser(
    device_setup: DeviceSetup,
) -> None:
    creation_url = "https://desk.example.com/settings/keys"
    desk = {
        "name": "desk",
        "title": "Acme Desk",
        "system": "desk",
        "mode": "user",
        "base_url": "https://desk.example.com",
        "sign_in": "basic",
        "key": {"made_at": creation_url},
    }
    async with (
        run_hostile_server() as server,
        chromium(device_setup.byline.url) as browser,
        browser.open_window() as window,
    ):
        server.answers = [build_answer(json.dumps({**CODE, "interval": 300}).encode(), JSON)]
        code = await device_setup.ask(build_connection(server.url))
        key = await device_setup.ask(Connection.model_validate(desk))
        await window.open(f"/connect/{code.id}")
        await window.sign_in("alice", "alice-demo")
        await window.check_page("Connect Acme CRM?")
        await window.press("Use another device")
        await window.check_page("Connect Acme CRM on another device")
        await window.press("Look now")
        await window.check_page("Connect Acme CRM on another device")
        assert "WDJB-MJHT" in await window.read_text()
        await window.open(f"/connect/{key.id}")
        await window.check_page("Connect Acme Desk?")
        await window.page.get_by_label("Username").fill("al:ice")
        await window.page.get_by_label("Password").fill("planted")
        await window.press("Connect")
        await window.page.get_by_role("alert").wait_for()
        await window.check_page("Connect Acme Desk?")
        await window.page.get_by_label("Username").fill("alice")
        await window.page.get_by_label("Password").fill("planted")
        await window.page.keyboard.press("Enter")
        await window.check_page("Acme Desk is connected")
