"""Holds that a company vouches for its own people alone: nobody is asked, and where it does not, the link is shown."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from authlib.integrations.httpx_client import AsyncOAuth2Client
from pydantic import HttpUrl, SecretStr
from starlette.responses import JSONResponse

from engine.connections.connection import Connection
from engine.identity.claims import read_unverified_claims
from engine.identity.model import Principal
from engine.oauth.discovery import Discovery
from engine.outgoing.addresses import resolve_host
from engine.outgoing.client import OutgoingClient
from engine.settings import IssuerSettings
from engine.sign_in.identity_provider import IdentityProvider
from engine.sign_in.idp_assertions import IdpAssertions
from engine.sign_in.methods import SignInMethods
from engine.waiting.waiters import ParkedAction
from engine.wire import IDENTITY_TYPE
from examples.browser import Browser
from tests.support.foreign.oidc_provider import OidcProvider, RegisteredClient, oidc_provider
from tests.support.foreign.process import free_port
from tests.support.page_server import PageServer, serve_pages
from tests.support.platform import NORTHWIND, Platform
from tests.support.receivers import run_receiver
from tests.support.samples import build_identity, build_tokens
from tests.support.sign_ins import resources

ELSEWHERE = "http://127.0.0.1:1/callback"
SECRET = secrets.token_urlsafe(24)
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
STATEMENT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
PORT = free_port()


@dataclass(frozen=True)
class Issuers:
    """The company that signs people in, and the authorization server of the desk, which takes its word."""

    identity_provider: OidcProvider
    desk: OidcProvider

    def build_settings(self, *, asserts_identity: bool = True) -> IssuerSettings:
        return IssuerSettings(
            issuer=self.identity_provider.issuer,
            audience="https://byline.example/mcp",
            client_id="byline-at-company",
            client_secret=SecretStr(SECRET),
            vouches=asserts_identity,
        )

    def declare_desk(self, sign_in: str, issuer: str = "") -> Connection:
        return Connection.model_validate(
            {
                "name": "crm",
                "title": "Acme Desk",
                "system": "desk",
                "mode": "user",
                "base_url": "https://desk.example.com",
                "sign_in": sign_in,
                "scopes": ["openid", "profile"],
                "client_id": "byline",
                "client_secret": {"env": "SECRET"},
                "provider": {"issuer": issuer or self.desk.issuer, "account_claim": "sub"},
            }
        )

    async def verify_sign_in(self, person: str) -> dict[str, str]:
        """What the company gives Byline when this person signs in."""
        verifier = secrets.token_urlsafe(48)
        async with (
            AsyncOAuth2Client(
                "byline-at-company",
                SECRET,
                redirect_uri=ELSEWHERE,
                scope="openid profile",
                code_challenge_method="S256",
            ) as client,
            Browser(stop_at=ELSEWHERE) as browser,
        ):
            url, _ = client.create_authorization_url(
                f"{self.identity_provider.issuer}/auth", code_verifier=verifier
            )
            page = await self.identity_provider.let_in(await browser.open(url), person)
            code = dict(parse_qsl(urlsplit(page.url).query))["code"]
            tokens: dict[str, str] = await client.fetch_token(
                f"{self.identity_provider.issuer}/token", code=code, code_verifier=verifier
            )
        return tokens


@pytest.fixture(scope="module")
def issuers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuers]:
    byline_at_idp = RegisteredClient(
        "byline-at-company",
        SECRET,
        (f"http://127.0.0.1:{PORT}/sign-in/callback", ELSEWHERE),
        {"grant_types": ["authorization_code", "refresh_token", EXCHANGE]},
    )
    at_desk = RegisteredClient(
        "byline",
        SECRET,
        (f"http://127.0.0.1:{PORT}/oauth/callback",),
        {"grant_types": ["authorization_code", EXCHANGE, STATEMENT]},
    )
    desk_port = free_port()
    asserted_clients = {f"http://127.0.0.1:{desk_port}": "byline"}
    with oidc_provider(
        tmp_path_factory.mktemp("company"), [byline_at_idp], vouches=asserted_clients
    ) as identity_provider:
        trusts = {identity_provider.issuer: "byline-at-company"}
        with oidc_provider(tmp_path_factory.mktemp("desk"), [at_desk], port=desk_port, trusts=trusts) as desk:
            yield Issuers(identity_provider, desk)


@pytest.fixture
async def byline(tmp_path: Path, issuers: Issuers) -> AsyncIterator[PageServer]:
    environment = {"SECRET": SECRET}
    async with serve_pages(
        tmp_path, port=PORT, issuer=issuers.build_settings(), environment=environment
    ) as here:
        yield here


async def sign_in_person(byline: PageServer, issuers: Issuers, person: str, browser: Browser) -> Principal:
    """Somebody who signed in to Byline at their company."""
    await issuers.identity_provider.let_in(await browser.open(f"{byline.url}/sign-in"), person)
    principal = await byline.services.principals.find_by_subject(issuers.identity_provider.issuer, person)
    assert principal is not None
    return principal


async def list_accounts(byline: PageServer, person: Principal) -> dict[str, bool]:
    """Whose accounts they are, and whether each has lapsed."""
    return {grant.account: grant.has_lapsed for grant in await byline.services.grants.list_grants(person.id)}


async def lapse_grant(byline: PageServer, connection: Connection, person: Principal) -> None:
    """Let the upstream refuse the only grant there is."""
    credential = await byline.services.grants.find_credential(connection, person.id)
    assert credential is not None
    await byline.services.grants.lapse_grant(credential)


@pytest.mark.parametrize("sign_in", ["identity_assertion", "token_exchange"])
async def test_an_idp_assertion_grants_its_person_without_a_sign_in_and_nobody_else(
    byline: PageServer, issuers: Issuers, sign_in: str
) -> None:
    services, connection = byline.services, issuers.declare_desk(sign_in)
    async with Browser() as browser:
        alice = await sign_in_person(byline, issuers, "alice", browser)
    bob = await services.principals.resolve_principal(issuers.identity_provider.issuer, "bob", "Bob Example")

    hers = await services.idp_assertions.obtain_asserted_grant(
        connection, alice.id, connection.scopes, run_id="run-1"
    )
    his = await services.idp_assertions.obtain_asserted_grant(connection, bob.id, connection.scopes)

    (granted_event,) = [
        line.event for line in await services.trail.find_lines() if line.kind == "authorization.granted"
    ]
    (grant,) = await services.grants.list_grants(alice.id)
    idp_session = await services.idp_sessions.find_session(alice.id)
    assert (hers, his) == (True, False)
    assert (grant.account, await services.grants.list_grants(bob.id)) == ("alice", [])
    assert (granted_event["principal"]["id"], granted_event["run_id"], granted_event["account"]) == (
        alice.id,
        "run-1",
        "alice",
    )
    assert idp_session is not None
    stored_bytes = Path(str(services.database.url.database)).read_bytes()
    assert idp_session.id_token.encode() not in stored_bytes
    assert idp_session.id_token not in repr(idp_session)


async def test_an_id_token_that_ran_out_is_renewed_once_by_however_many(
    byline: PageServer, issuers: Issuers
) -> None:
    services = byline.services
    async with Browser() as browser:
        alice = await sign_in_person(byline, issuers, "alice", browser)
    idp_session = await services.idp_sessions.find_session(alice.id)
    assert idp_session is not None
    await services.idp_sessions.store_session(
        alice.id, idp_session.id_token, idp_session.refresh_token, time.time() - 1
    )
    others = [
        IdentityProvider(issuers.build_settings(), Discovery(services.outgoing), services.idp_sessions)
        for _ in range(2)
    ]

    id_tokens = await asyncio.gather(*(idp.find_id_token(alice.id) for idp in others for _ in range(10)))

    renewed_session = await services.idp_sessions.find_session(alice.id)
    assert renewed_session is not None
    assert set(id_tokens) == {renewed_session.id_token}
    assert renewed_session.version == idp_session.version + 2
    assert renewed_session.refresh_token != idp_session.refresh_token
    assert read_unverified_claims(renewed_session.id_token)["sub"] == "alice"


async def test_who_did_not_sign_in_lately_is_shown_the_ordinary_link(
    byline: PageServer, issuers: Issuers
) -> None:
    services, connection = byline.services, issuers.declare_desk("identity_assertion")
    await services.catalogue.store_connections([connection])
    async with Browser() as browser:
        alice = await sign_in_person(byline, issuers, "alice", browser)
        idp_session = await services.idp_sessions.find_session(alice.id)
        assert idp_session is not None
        await services.idp_sessions.store_session(alice.id, idp_session.id_token, None, time.time() - 1)
        silent = await services.idp_assertions.obtain_asserted_grant(connection, alice.id, connection.scopes)
        identity = build_identity(alice)
        await services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
        requirement = await services.authorization_requests.require_authorization(
            identity, connection, connection.scopes, ParkedAction("w", "r", "k"), run_id="run-1"
        )
        assert requirement is not None
        question = await browser.open(f"{byline.url}/connect/{requirement.request_id}")
        page = await question.form(submit="Continue")
        asked_at = page.url
        result_page = await issuers.desk.let_in(page, "alice")

    assert not silent
    assert asked_at.startswith(issuers.desk.issuer)
    assert "Acme Desk is connected" in result_page.text


async def test_signing_in_again_answers_the_question_that_was_open(
    byline: PageServer, issuers: Issuers
) -> None:
    services, connection = byline.services, issuers.declare_desk("token_exchange")
    await services.catalogue.store_connections([connection])
    alice = await services.principals.resolve_principal(
        issuers.identity_provider.issuer, "alice", "Alice Example"
    )
    identity = build_identity(alice)
    await services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
    requirement = await services.authorization_requests.require_authorization(
        identity, connection, connection.scopes, ParkedAction("w", "r", "k"), run_id="run-1"
    )
    assert requirement is not None
    async with Browser() as browser:
        page = await browser.open(f"{byline.url}/connect/{requirement.request_id}")
        question = await issuers.identity_provider.let_in(page, "alice")
        result_page = await question.form(submit="Continue")

    assert "Acme Desk is connected" in result_page.text


async def test_a_revoked_grant_is_not_obtained_again_unless_its_owner_asks(
    byline: PageServer, issuers: Issuers
) -> None:
    services, connection = byline.services, issuers.declare_desk("identity_assertion")
    async with Browser() as browser:
        alice = await sign_in_person(byline, issuers, "alice", browser)
    idp_assertions = services.idp_assertions
    assert await idp_assertions.obtain_asserted_grant(connection, alice.id, connection.scopes)
    await services.grant_removal.remove_own_grant(connection, alice)

    assert not await idp_assertions.obtain_asserted_grant(connection, alice.id, connection.scopes)
    assert await services.grants.list_grants(alice.id) == []
    request_ahead = await services.authorization_requests.open_request_ahead(
        alice, connection, connection.scopes
    )
    assert await idp_assertions.answer_request(request_ahead, connection)
    assert await list_accounts(byline, alice) == {"alice": False}
    await lapse_grant(byline, connection, alice)
    assert await list_accounts(byline, alice) == {"alice": True}
    assert await idp_assertions.obtain_asserted_grant(connection, alice.id, connection.scopes)
    assert await list_accounts(byline, alice) == {"alice": False}


async def test_a_grant_that_is_revoked_while_the_idp_is_asked_stays_revoked(
    byline: PageServer, issuers: Issuers
) -> None:
    services, connection = byline.services, issuers.declare_desk("token_exchange")
    async with Browser() as browser:
        alice = await sign_in_person(byline, issuers, "alice", browser)
    assert await services.idp_assertions.obtain_asserted_grant(connection, alice.id, connection.scopes)
    taken_back: list[str] = []

    async def meanwhile(host: str, port: int) -> list[str]:
        if not taken_back:
            taken_back.append("alice")
            assert await services.grant_removal.remove_own_grant(connection, alice)
        return await resolve_host(host, port)

    async with OutgoingClient(services.settings.outgoing, resolver=meanwhile) as outgoing:
        identity_provider = IdentityProvider(
            issuers.build_settings(), Discovery(outgoing), services.idp_sessions
        )
        idp_assertions = IdpAssertions(
            services.database,
            services.principals,
            services.grants,
            services.authorization_requests,
            services.answer_recorder,
            services.trail,
            SignInMethods(resources(outgoing, {"SECRET": SECRET}, identity_provider)),
        )
        was_granted = await idp_assertions.obtain_asserted_grant(
            connection, alice.id, ("openid", "profile", "email")
        )

    assert taken_back == ["alice"]
    assert not was_granted
    assert await services.grants.list_grants(alice.id) == []


async def test_the_account_that_an_idp_asserts_replaces_no_other(
    byline: PageServer, issuers: Issuers
) -> None:
    services, connection = byline.services, issuers.declare_desk("token_exchange")
    idp_assertions = services.idp_assertions
    async with Browser() as browser:
        alice = await sign_in_person(byline, issuers, "alice", browser)
    async with services.database.open_write_session() as session:
        await services.grants.store_grant(
            session, connection, alice.id, build_tokens("openid", "profile"), "hers alone"
        )
    await lapse_grant(byline, connection, alice)

    assert not await idp_assertions.obtain_asserted_grant(
        connection, alice.id, connection.scopes, tool_name="report"
    )
    for_hers = await services.authorization_requests.open_request_ahead(
        alice, connection, connection.scopes, account="hers alone"
    )
    assert not await idp_assertions.answer_request(for_hers, connection)
    assert await list_accounts(byline, alice) == {"hers alone": True}

    another = await services.authorization_requests.open_request_ahead(
        alice, connection, connection.scopes, tool_name="report"
    )
    assert await idp_assertions.answer_request(another, connection)
    assert not await idp_assertions.answer_request(another, connection), (
        "it is connected already, and is not another"
    )
    assert await list_accounts(byline, alice) == {"hers alone": True, "alice": False}
    assert await services.accounts.list_choices(alice.id) == {connection.name: {"": "alice"}}


async def test_an_idp_that_refuses_an_assertion_is_recorded_and_gives_no_grant(
    byline: PageServer, issuers: Issuers
) -> None:
    services = byline.services
    unknown = issuers.declare_desk("identity_assertion", issuer=issuers.identity_provider.issuer)
    async with Browser() as browser:
        alice = await sign_in_person(byline, issuers, "alice", browser)

    assert not await services.idp_assertions.obtain_asserted_grant(unknown, alice.id, ("profile",))
    assert not await services.idp_assertions.obtain_asserted_grant(
        issuers.declare_desk("authorization_code"), alice.id, ()
    )
    (refused_event,) = [
        line.event for line in await services.trail.find_lines() if line.kind == "authorization.refused"
    ]
    assert (refused_event["error"], refused_event["principal"]["id"]) == ("token_refused", alice.id)
    assert "access_denied" in refused_event["message"]


async def test_a_sign_in_that_comes_back_as_somebody_elses_is_dropped(
    byline: PageServer, issuers: Issuers
) -> None:
    services = byline.services
    alice = await services.principals.resolve_principal(
        issuers.identity_provider.issuer, "alice", "Alice Example"
    )
    hers, his = await issuers.verify_sign_in("alice"), await issuers.verify_sign_in("bob")
    await services.idp_sessions.store_session(
        alice.id, hers["id_token"], his["refresh_token"], time.time() - 1
    )

    assert not await services.idp_assertions.obtain_asserted_grant(
        issuers.declare_desk("token_exchange"), alice.id, ("profile",)
    )
    assert await services.idp_sessions.find_session(alice.id) is None
    assert await services.grants.list_grants(alice.id) == []


async def test_no_session_is_stored_of_an_issuer_that_asserts_nobody(
    tmp_path: Path, issuers: Issuers
) -> None:
    async with serve_pages(
        tmp_path, port=PORT, issuer=issuers.build_settings(asserts_identity=False)
    ) as byline:
        async with Browser() as browser:
            alice = await sign_in_person(byline, issuers, "alice", browser)
        assert await byline.services.idp_sessions.find_session(alice.id) is None


async def test_a_run_goes_on_without_a_sign_in_by_its_persons_idp_assertion(
    idle_platform: Platform, issuers: Issuers
) -> None:
    services, sign_in_tokens = idle_platform.services, await issuers.verify_sign_in("alice")
    identity_provider = IdentityProvider(
        issuers.build_settings(), Discovery(services.outgoing), services.idp_sessions
    )
    sign_ins = SignInMethods(resources(services.outgoing, {"SECRET": SECRET}, identity_provider))
    idp_assertions = IdpAssertions(
        services.database,
        services.principals,
        services.grants,
        services.authorization_requests,
        services.answer_recorder,
        services.trail,
        sign_ins,
    )
    await services.idp_sessions.store_session(
        idle_platform.alice.id, sign_in_tokens["id_token"], None, time.time() + 3000
    )
    account = JSONResponse({"Id": NORTHWIND, "Name": "Northwind", "Type": "Customer"})
    async with run_receiver([account] * 3) as desk:
        connection = issuers.declare_desk("identity_assertion").model_copy(
            update={"base_url": HttpUrl(f"http://127.0.0.1:{desk.port}")}
        )
        await services.catalogue.store_connections([connection])
        async with (
            idle_platform.run_worker(idp_assertions=idp_assertions),
            idle_platform.run_wake_up_delivery(),
        ):
            hers = await idle_platform.start_run("read_once", {"account_id": NORTHWIND}, idle_platform.alice)
            await idle_platform.wait_for_outcome(hers)
            his = await idle_platform.start_run("read_once", {"account_id": NORTHWIND}, idle_platform.bob)
            await idle_platform.wait_until_parked(his)

    (request,) = desk.posts
    (ended_event,) = await idle_platform.list_trail_events("action.ended", hers)
    assert request.headers["authorization"].startswith("Bearer ")
    assert (ended_event["account"], ended_event["verdict"]) == ("alice", "allowed")
    assert await idle_platform.list_waiters(hers) == []
    await idle_platform.temporal.get_workflow_handle(his).terminate()
