from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import update
from sqlmodel import col

from engine.authorization.requests import AuthorizationRequest
from engine.connections.connection import Connection
from engine.db.database import utc_now
from engine.db.tables import AuthorizationRequestRow
from engine.identity.model import Actor, Identity, Principal
from engine.waiting.waiters import ParkedAction
from engine.wire import IDENTITY_TYPE
from examples.browser import Browser, Page
from tests.support.foreign.process import free_port
from tests.support.page_server import PageServer, serve_pages
from tests.support.sandbox_systems import SandboxProcess, run_sandbox_system


@dataclass(frozen=True)
class ConnectSetup:
    """Byline's pages, a CRM to connect, and Alice, for whom a tool waits."""

    byline: PageServer
    crm: SandboxProcess
    alice: Principal

    async def ask(self, connection: str = "crm") -> AuthorizationRequest:
        """Let an action of Alice's park, and give the request that it made."""
        declaration = await self.byline.services.catalogue.get_connection(connection)
        identity = Identity(
            principal_id=self.alice.id,
            issuer=self.alice.issuer,
            subject=self.alice.subject,
            name=self.alice.name,
            actor=Actor("mcp_client", "chat", "Chat"),
            trigger="mcp",
            run_id="run-1",
            tool_name="resolve_billing_dispute",
            call_digest="call-1",
        )
        await self.byline.services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
        parked_action = ParkedAction("workflow-1", "run-of-workflow-1", connection)
        requirement = await self.byline.services.authorization_requests.require_authorization(
            identity, declaration, declaration.scopes, parked_action, run_id="run-1"
        )
        assert requirement is not None
        request = await self.byline.services.authorization_requests.find_request(requirement.request_id)
        assert request is not None
        return request

    async def read_state(self, request: AuthorizationRequest) -> str:
        stored_request = await self.byline.services.authorization_requests.find_request(request.id)
        assert stored_request is not None
        return stored_request.state

    def build_link(self, request: AuthorizationRequest) -> str:
        return f"{self.byline.url}/connect/{request.id}"

    async def sign_in_at_crm(self, page: Page) -> Page:
        """Sign in at the CRM as Alice."""
        assert page.url.startswith(self.crm.url)
        return await page.form(
            submit="Sign in", username=self.crm.find_account("alice"), password="alice-crm"
        )

    async def list_refusals(self) -> list[dict[str, Any]]:
        """What the trail says of refused authorizations."""
        return [
            line.event
            for line in await self.byline.services.trail.find_lines()
            if line.kind == "authorization.refused"
        ]


def declare_connection(name: str, title: str, crm: SandboxProcess) -> Connection:
    paths = crm.system.oauth
    return Connection.model_validate(
        {
            "name": name,
            "title": title,
            "system": "salesforce",
            "mode": "user",
            "base_url": crm.url,
            "scopes": ["api", "refresh_token"],
            "client_id": "byline",
            "client_secret": {"env": "CRM_CLIENT_SECRET"},
            "provider": {
                "issuer": crm.url,
                "authorization_endpoint": crm.url + paths.authorize,
                "token_endpoint": crm.url + paths.tokens,
                "userinfo_endpoint": crm.url + paths.userinfo,
            },
        }
    )


@pytest.fixture(scope="module")
def port() -> int:
    """Where every Byline of this module listens, one after the other: the CRM knows its callback from its own start."""
    return free_port()


@pytest.fixture(scope="module")
def crm(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    callback = f"http://127.0.0.1:{port}/oauth/callback"
    with run_sandbox_system(
        "crm", tmp_path_factory.mktemp("crm") / "crm.db", "--redirect-uri", callback
    ) as system:
        yield system


@pytest.fixture
async def connect_setup(tmp_path: Path, crm: SandboxProcess, port: int) -> AsyncIterator[ConnectSetup]:
    async with serve_pages(tmp_path, port=port, environment={"CRM_CLIENT_SECRET": crm.secret}) as byline:
        connections = [
            declare_connection("crm", "Acme CRM", crm),
            declare_connection("archive", "Acme Archive", crm),
        ]
        await byline.services.catalogue.store_connections(connections)
        async with Browser() as browser:
            await byline.sign_in(browser, "alice")
        (alice,) = await byline.services.principals.find_by_name("Alice Liddell")
        yield ConnectSetup(byline, crm, alice)


async def test_the_link_asks_who_is_there_first_and_then_says_what_is_asked(
    connect_setup: ConnectSetup,
) -> None:
    request = await connect_setup.ask()
    async with Browser() as browser:
        page = await browser.open(connect_setup.build_link(request))
        before = page.text
        page = await page.form(submit="Sign in", username="alice", password="alice-demo")

    assert "Acme CRM" not in before
    assert page.url == connect_setup.build_link(request)
    for part in ("Connect Acme CRM?", "salesforce", "<code>api</code>", "<code>refresh_token</code>", "UTC"):
        assert part in page.text


async def test_who_continues_signs_in_at_the_provider_and_the_grant_is_stored(
    connect_setup: ConnectSetup,
) -> None:
    request = await connect_setup.ask()
    async with Browser() as browser:
        await connect_setup.byline.sign_in(browser, "alice")
        page = await (await browser.open(connect_setup.build_link(request))).form(submit="Continue")
        page = await (await connect_setup.sign_in_at_crm(page)).form(submit="Allow")
        again = await browser.open(connect_setup.build_link(request))

    connection = await connect_setup.byline.services.catalogue.get_connection("crm")
    credential = await connect_setup.byline.services.grants.find_credential(
        connection, connect_setup.alice.id
    )
    assert page.url == connect_setup.build_link(request)
    assert "Acme CRM is connected" in page.text
    assert "You can go back to your chat" in page.text
    assert "Acme CRM is connected" in again.text
    assert await connect_setup.read_state(request) == "granted"
    assert credential is not None
    assert credential.account


async def test_the_result_leads_to_the_other_sign_ins_that_wait(connect_setup: ConnectSetup) -> None:
    request, other = await connect_setup.ask(), await connect_setup.ask("archive")
    async with Browser() as browser:
        await connect_setup.byline.sign_in(browser, "alice")
        page = await (await browser.open(connect_setup.build_link(request))).form(submit="Continue")
        page = await (await connect_setup.sign_in_at_crm(page)).form(submit="Allow")
        front = await browser.open(f"{connect_setup.byline.url}/")

    assert "1 more sign-in is waiting" in page.text
    assert f'<a href="/connect/{other.id}">Acme Archive</a>' in page.text
    assert "1 sign-in is waiting" in front.text
    assert f'<a href="/connect/{other.id}">Acme Archive</a>' in front.text


async def test_who_declines_is_not_sent_to_the_provider(connect_setup: ConnectSetup) -> None:
    request = await connect_setup.ask()
    async with Browser() as browser:
        await connect_setup.byline.sign_in(browser, "alice")
        page = await (await browser.open(connect_setup.build_link(request))).form(submit="Decline")

    assert "You declined Acme CRM" in page.text
    assert await connect_setup.read_state(request) == "denied"


async def test_who_declines_their_own_request_reads_of_no_tool(connect_setup: ConnectSetup) -> None:
    crm = await connect_setup.byline.services.catalogue.get_connection("crm")
    request = await connect_setup.byline.services.authorization_requests.open_request_ahead(
        connect_setup.alice, crm, crm.scopes
    )
    async with Browser() as browser:
        await connect_setup.byline.sign_in(browser, "alice")
        page = await (await browser.open(connect_setup.build_link(request))).form(submit="Decline")

    assert "Nothing was connected." in page.text
    assert "tool" not in page.text
    assert 'href="/connections"' in page.text


async def test_a_no_at_the_provider_is_a_no(connect_setup: ConnectSetup) -> None:
    request = await connect_setup.ask()
    async with Browser() as browser:
        await connect_setup.byline.sign_in(browser, "alice")
        page = await (await browser.open(connect_setup.build_link(request))).form(submit="Continue")
        page = await (await connect_setup.sign_in_at_crm(page)).form(submit="Deny")

    assert "You declined Acme CRM" in page.text
    assert "The tool was told." in page.text
    assert page.url == connect_setup.build_link(request)
    assert await connect_setup.read_state(request) == "denied"


async def test_somebody_else_is_refused_with_their_own_name_and_recorded(connect_setup: ConnectSetup) -> None:
    request = await connect_setup.ask()
    async with Browser() as browser:
        await connect_setup.byline.sign_in(browser, "bob")
        page = await browser.open(connect_setup.build_link(request))
        signed_out = await page.form(submit="Sign out")

    (refusal,) = await connect_setup.list_refusals()
    assert page.status == 403
    assert "signed in as <strong>Bob Baker" in page.text
    assert "Alice" not in page.text
    assert "Acme" not in page.text
    assert f"next=%2Fconnect%2F{request.id}" in signed_out.text
    assert refusal["principal"]["name"] == "Bob Baker"
    assert refusal["request_id"] == request.id
    assert await connect_setup.read_state(request) == "open"


async def test_somebody_else_cannot_answer_by_sending_the_form_themselves(
    connect_setup: ConnectSetup,
) -> None:
    request = await connect_setup.ask()
    async with Browser() as browser:
        page = await connect_setup.byline.sign_in(browser, "bob")
        token = page.text.split('name="csrf_token" value="')[1].split('"')[0]
        answers = [
            await browser._client.post(
                connect_setup.build_link(request), data={"csrf_token": token, "decision": decision}
            )
            for decision in ("continue", "decline")
        ]

    assert [answer.status_code for answer in answers] == [403, 403]
    assert len(await connect_setup.list_refusals()) == 2
    assert await connect_setup.read_state(request) == "open"


async def test_a_form_from_another_site_answers_nothing(connect_setup: ConnectSetup) -> None:
    request = await connect_setup.ask()
    async with Browser() as browser:
        await connect_setup.byline.sign_in(browser, "alice")
        answer = await browser._client.post(connect_setup.build_link(request), data={"decision": "decline"})

    assert answer.status_code == 403
    assert await connect_setup.read_state(request) == "open"


async def test_a_callback_carried_to_another_persons_browser_connects_nobody(
    connect_setup: ConnectSetup,
) -> None:
    request = await connect_setup.ask()
    callback = f"{connect_setup.byline.url}/oauth/callback"
    async with Browser(stop_at=callback) as hers, Browser() as his, Browser() as nobodys:
        await connect_setup.byline.sign_in(hers, "alice")
        page = await (await hers.open(connect_setup.build_link(request))).form(submit="Continue")
        page = await (await connect_setup.sign_in_at_crm(page)).form(submit="Allow")
        await connect_setup.byline.sign_in(his, "bob")
        carried_page = await his.open(page.url)
        unknown = await nobodys.open(page.url)

    assert page.url.startswith(callback)
    assert carried_page.status == 400
    assert "somebody else or in another browser" in carried_page.text
    assert unknown.status == 403
    assert await connect_setup.read_state(request) == "open"


async def test_a_callback_is_worth_something_once(connect_setup: ConnectSetup) -> None:
    request = await connect_setup.ask()
    callback = f"{connect_setup.byline.url}/oauth/callback"
    async with Browser(stop_at=callback) as browser:
        await connect_setup.byline.sign_in(browser, "alice")
        page = await (await browser.open(connect_setup.build_link(request))).form(submit="Continue")
        page = await (await connect_setup.sign_in_at_crm(page)).form(submit="Allow")
        first = await browser._client.get(page.url)
        second = await browser._client.get(page.url)

    assert first.status_code == 303
    assert first.headers["location"] == f"/connect/{request.id}"
    assert second.status_code == 400


@pytest.mark.parametrize(
    "query", ["", "code=x", "state=x", "state=x&code=y&error=z", "state=x&state=y&code=z", "state=&code=y"]
)
async def test_a_malformed_callback_is_reported_in_words(connect_setup: ConnectSetup, query: str) -> None:
    async with httpx2.AsyncClient() as client:
        response = await client.get(f"{connect_setup.byline.url}/oauth/callback?{query}")

    assert response.status_code == 400
    assert "This answer cannot be read" in response.text
    assert response.headers["referrer-policy"] == "no-referrer"


async def test_a_link_that_nobody_made_is_unknown(connect_setup: ConnectSetup) -> None:
    async with Browser() as browser:
        await connect_setup.byline.sign_in(browser, "alice")
        page = await browser.open(f"{connect_setup.byline.url}/connect/nothing")

    assert page.status == 404
    assert "Call the tool again" in page.text


async def test_an_expired_link_says_so_and_asks_nothing(connect_setup: ConnectSetup) -> None:
    request = await connect_setup.ask()
    past = update(AuthorizationRequestRow).where(col(AuthorizationRequestRow.id) == request.id)
    async with connect_setup.byline.services.database.open_write_session() as session:
        await session.exec(past.values(expires_at=utc_now() - timedelta(seconds=1)))
    async with Browser() as browser:
        await connect_setup.byline.sign_in(browser, "alice")
        page = await browser.open(connect_setup.build_link(request))

    assert page.status == 410
    assert "too old" in page.text
    assert "Continue" not in page.text


async def test_the_front_page_says_how_to_add_byline(connect_setup: ConnectSetup) -> None:
    await connect_setup.ask()
    async with Browser() as browser:
        page = await browser.open(f"{connect_setup.byline.url}/")

    assert f"claude mcp add --transport http byline {connect_setup.byline.url}/mcp" in page.text
    assert "Acme CRM" not in page.text
