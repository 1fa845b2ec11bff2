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
from gateway.grants import remove_own_grant
from tests.data.samples import identity_of, tokens
from tests.foreign.oidc_provider import Client, OidcProvider, oidc_provider
from tests.foreign.process import free_port
from tests.listeners import receiver
from tests.pages import Byline, serving
from tests.platform import NORTHWIND, Platform
from tests.signing_in import resources

ELSEWHERE = "http://127.0.0.1:1/callback"
SECRET = secrets.token_urlsafe(24)
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
STATEMENT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
PORT = free_port()


@dataclass(frozen=True)
class Issuers:
    """The company that signs people in, and the authorization server of the desk, which takes its word."""

    company: OidcProvider
    desk: OidcProvider

    def settings(self, *, vouches: bool = True) -> IssuerSettings:
        return IssuerSettings(
            issuer=self.company.issuer,
            audience="https://byline.example/mcp",
            client_id="byline-at-company",
            client_secret=SecretStr(SECRET),
            vouches=vouches,
        )

    def desk_by(self, sign_in: str, issuer: str = "") -> Connection:
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

    async def signed_in(self, person: str) -> dict[str, str]:
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
            url, _ = client.create_authorization_url(f"{self.company.issuer}/auth", code_verifier=verifier)
            page = await self.company.let_in(await browser.open(url), person)
            code = dict(parse_qsl(urlsplit(page.url).query))["code"]
            tokens: dict[str, str] = await client.fetch_token(
                f"{self.company.issuer}/token", code=code, code_verifier=verifier
            )
        return tokens


@pytest.fixture(scope="module")
def issuers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuers]:
    at_company = Client(
        "byline-at-company",
        SECRET,
        (f"http://127.0.0.1:{PORT}/sign-in/callback", ELSEWHERE),
        {"grant_types": ["authorization_code", "refresh_token", EXCHANGE]},
    )
    at_desk = Client(
        "byline",
        SECRET,
        (f"http://127.0.0.1:{PORT}/oauth/callback",),
        {"grant_types": ["authorization_code", EXCHANGE, STATEMENT]},
    )
    desk_port = free_port()
    vouches = {f"http://127.0.0.1:{desk_port}": "byline"}
    with oidc_provider(tmp_path_factory.mktemp("company"), [at_company], vouches=vouches) as company:
        trusts = {company.issuer: "byline-at-company"}
        with oidc_provider(tmp_path_factory.mktemp("desk"), [at_desk], port=desk_port, trusts=trusts) as desk:
            yield Issuers(company, desk)


@pytest.fixture
async def byline(tmp_path: Path, issuers: Issuers) -> AsyncIterator[Byline]:
    environment = {"SECRET": SECRET}
    async with serving(tmp_path, port=PORT, issuer=issuers.settings(), environment=environment) as here:
        yield here


async def signed_in(byline: Byline, issuers: Issuers, person: str, browser: Browser) -> Principal:
    """Somebody who signed in to Byline at their company."""
    await issuers.company.let_in(await browser.open(f"{byline.url}/sign-in"), person)
    found = await byline.services.principals.find_by_subject(issuers.company.issuer, person)
    assert found is not None
    return found


async def accounts(byline: Byline, person: Principal) -> dict[str, bool]:
    """Whose accounts they are, and whether each has lapsed."""
    return {grant.account: grant.has_lapsed for grant in await byline.services.grants.list_grants(person.id)}


async def lapse(byline: Byline, connection: Connection, person: Principal) -> None:
    """Let the upstream refuse the only grant there is."""
    found = await byline.services.grants.find_credential(connection, person.id)
    assert found is not None
    await byline.services.grants.lapse_grant(found)


@pytest.mark.parametrize("sign_in", ["identity_assertion", "token_exchange"])
async def test_a_person_whose_company_vouches_for_them_is_never_asked_and_nobody_else_profits(
    byline: Byline, issuers: Issuers, sign_in: str
) -> None:
    services, connection = byline.services, issuers.desk_by(sign_in)
    async with Browser() as browser:
        alice = await signed_in(byline, issuers, "alice", browser)
    bob = await services.principals.resolve_principal(issuers.company.issuer, "bob", "Bob Example")

    hers = await services.idp_assertions.obtain_asserted_grant(
        connection, alice.id, connection.scopes, run_id="run-1"
    )
    his = await services.idp_assertions.obtain_asserted_grant(connection, bob.id, connection.scopes)

    (granted,) = [
        line.event for line in await services.trail.find_lines() if line.kind == "authorization.granted"
    ]
    (grant,) = await services.grants.list_grants(alice.id)
    kept = await services.idp_sessions.find_session(alice.id)
    assert (hers, his) == (True, False)
    assert (grant.account, await services.grants.list_grants(bob.id)) == ("alice", [])
    assert (granted["principal"]["id"], granted["run_id"], granted["account"]) == (alice.id, "run-1", "alice")
    assert kept is not None
    stored = Path(str(services.database.url.database)).read_bytes()
    assert kept.id_token.encode() not in stored
    assert kept.id_token not in repr(kept)


async def test_an_id_token_that_ran_out_is_renewed_once_by_however_many(
    byline: Byline, issuers: Issuers
) -> None:
    services = byline.services
    async with Browser() as browser:
        alice = await signed_in(byline, issuers, "alice", browser)
    kept = await services.idp_sessions.find_session(alice.id)
    assert kept is not None
    await services.idp_sessions.store_session(alice.id, kept.id_token, kept.refresh_token, time.time() - 1)
    others = [
        IdentityProvider(issuers.settings(), Discovery(services.outgoing), services.idp_sessions)
        for _ in range(2)
    ]

    found = await asyncio.gather(*(company.find_id_token(alice.id) for company in others for _ in range(10)))

    renewed = await services.idp_sessions.find_session(alice.id)
    assert renewed is not None
    assert set(found) == {renewed.id_token}
    assert renewed.version == kept.version + 2
    assert renewed.refresh_token != kept.refresh_token
    assert read_unverified_claims(renewed.id_token)["sub"] == "alice"


async def test_who_did_not_sign_in_lately_is_shown_the_ordinary_link(
    byline: Byline, issuers: Issuers
) -> None:
    services, connection = byline.services, issuers.desk_by("identity_assertion")
    await services.catalogue.store_connections([connection])
    async with Browser() as browser:
        alice = await signed_in(byline, issuers, "alice", browser)
        kept = await services.idp_sessions.find_session(alice.id)
        assert kept is not None
        await services.idp_sessions.store_session(alice.id, kept.id_token, None, time.time() - 1)
        silent = await services.idp_assertions.obtain_asserted_grant(connection, alice.id, connection.scopes)
        identity = identity_of(alice)
        await services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
        required = await services.authorization_requests.require_authorization(
            identity, connection, connection.scopes, ParkedAction("w", "r", "k"), run_id="run-1"
        )
        assert required is not None
        question = await browser.open(f"{byline.url}/connect/{required.request_id}")
        page = await question.form(submit="Continue")
        asked_at = page.url
        done = await issuers.desk.let_in(page, "alice")

    assert not silent
    assert asked_at.startswith(issuers.desk.issuer)
    assert "Acme Desk is connected" in done.text


async def test_signing_in_again_answers_the_question_that_was_open(byline: Byline, issuers: Issuers) -> None:
    services, connection = byline.services, issuers.desk_by("token_exchange")
    await services.catalogue.store_connections([connection])
    alice = await services.principals.resolve_principal(issuers.company.issuer, "alice", "Alice Example")
    identity = identity_of(alice)
    await services.signing_keys.sign_claims(identity.to_claims(), IDENTITY_TYPE)
    required = await services.authorization_requests.require_authorization(
        identity, connection, connection.scopes, ParkedAction("w", "r", "k"), run_id="run-1"
    )
    assert required is not None
    async with Browser() as browser:
        page = await browser.open(f"{byline.url}/connect/{required.request_id}")
        question = await issuers.company.let_in(page, "alice")
        done = await question.form(submit="Continue")

    assert "Acme Desk is connected" in done.text


async def test_what_was_given_up_is_not_come_by_again_unless_its_owner_asks(
    byline: Byline, issuers: Issuers
) -> None:
    services, connection = byline.services, issuers.desk_by("identity_assertion")
    async with Browser() as browser:
        alice = await signed_in(byline, issuers, "alice", browser)
    vouching = services.idp_assertions
    assert await vouching.obtain_asserted_grant(connection, alice.id, connection.scopes)
    await remove_own_grant(services, connection, alice)

    assert not await vouching.obtain_asserted_grant(connection, alice.id, connection.scopes)
    assert await services.grants.list_grants(alice.id) == []
    asked = await services.authorization_requests.open_request_ahead(alice, connection, connection.scopes)
    assert await vouching.answer_request(asked, connection)
    assert await accounts(byline, alice) == {"alice": False}
    await lapse(byline, connection, alice)
    assert await accounts(byline, alice) == {"alice": True}
    assert await vouching.obtain_asserted_grant(connection, alice.id, connection.scopes)
    assert await accounts(byline, alice) == {"alice": False}


async def test_what_is_given_up_while_the_company_is_asked_stays_given_up(
    byline: Byline, issuers: Issuers
) -> None:
    services, connection = byline.services, issuers.desk_by("token_exchange")
    async with Browser() as browser:
        alice = await signed_in(byline, issuers, "alice", browser)
    assert await services.idp_assertions.obtain_asserted_grant(connection, alice.id, connection.scopes)
    taken_back: list[str] = []

    async def meanwhile(host: str, port: int) -> list[str]:
        if not taken_back:
            taken_back.append("alice")
            assert await remove_own_grant(services, connection, alice)
        return await resolve_host(host, port)

    async with OutgoingClient(services.settings.outgoing, resolver=meanwhile) as outgoing:
        company = IdentityProvider(issuers.settings(), Discovery(outgoing), services.idp_sessions)
        vouching = IdpAssertions(
            services.database,
            services.principals,
            services.grants,
            services.authorization_requests,
            services.answer_recorder,
            services.trail,
            SignInMethods(resources(outgoing, {"SECRET": SECRET}, company)),
        )
        vouched = await vouching.obtain_asserted_grant(connection, alice.id, ("openid", "profile", "email"))

    assert taken_back == ["alice"]
    assert not vouched
    assert await services.grants.list_grants(alice.id) == []


async def test_the_account_that_a_company_vouches_for_is_used_in_the_place_of_no_other(
    byline: Byline, issuers: Issuers
) -> None:
    services, connection = byline.services, issuers.desk_by("token_exchange")
    vouching = services.idp_assertions
    async with Browser() as browser:
        alice = await signed_in(byline, issuers, "alice", browser)
    async with services.database.open_write_session() as session:
        await services.grants.store_grant(
            session, connection, alice.id, tokens("openid", "profile"), "hers alone"
        )
    await lapse(byline, connection, alice)

    assert not await vouching.obtain_asserted_grant(
        connection, alice.id, connection.scopes, tool_name="report"
    )
    for_hers = await services.authorization_requests.open_request_ahead(
        alice, connection, connection.scopes, account="hers alone"
    )
    assert not await vouching.answer_request(for_hers, connection)
    assert await accounts(byline, alice) == {"hers alone": True}

    another = await services.authorization_requests.open_request_ahead(
        alice, connection, connection.scopes, tool_name="report"
    )
    assert await vouching.answer_request(another, connection)
    assert not await vouching.answer_request(another, connection), (
        "it is connected already, and is not another"
    )
    assert await accounts(byline, alice) == {"hers alone": True, "alice": False}
    assert await services.accounts.list_choices(alice.id) == {connection.name: {"": "alice"}}


async def test_a_company_that_does_not_vouch_there_is_recorded_and_gives_nothing(
    byline: Byline, issuers: Issuers
) -> None:
    services = byline.services
    unknown = issuers.desk_by("identity_assertion", issuer=issuers.company.issuer)
    async with Browser() as browser:
        alice = await signed_in(byline, issuers, "alice", browser)

    assert not await services.idp_assertions.obtain_asserted_grant(unknown, alice.id, ("profile",))
    assert not await services.idp_assertions.obtain_asserted_grant(
        issuers.desk_by("authorization_code"), alice.id, ()
    )
    (refused,) = [
        line.event for line in await services.trail.find_lines() if line.kind == "authorization.refused"
    ]
    assert (refused["error"], refused["principal"]["id"]) == ("token_refused", alice.id)
    assert "access_denied" in refused["message"]


async def test_a_sign_in_that_comes_back_as_somebody_elses_is_dropped(
    byline: Byline, issuers: Issuers
) -> None:
    services = byline.services
    alice = await services.principals.resolve_principal(issuers.company.issuer, "alice", "Alice Example")
    hers, his = await issuers.signed_in("alice"), await issuers.signed_in("bob")
    await services.idp_sessions.store_session(
        alice.id, hers["id_token"], his["refresh_token"], time.time() - 1
    )

    assert not await services.idp_assertions.obtain_asserted_grant(
        issuers.desk_by("token_exchange"), alice.id, ("profile",)
    )
    assert await services.idp_sessions.find_session(alice.id) is None
    assert await services.grants.list_grants(alice.id) == []


async def test_nothing_is_kept_of_a_sign_in_at_an_issuer_that_is_not_to_vouch(
    tmp_path: Path, issuers: Issuers
) -> None:
    async with serving(tmp_path, port=PORT, issuer=issuers.settings(vouches=False)) as byline:
        async with Browser() as browser:
            alice = await signed_in(byline, issuers, "alice", browser)
        assert await byline.services.idp_sessions.find_session(alice.id) is None


async def test_a_run_goes_on_unasked_with_what_its_persons_company_vouched_for(
    idle: Platform, issuers: Issuers
) -> None:
    services, at_company = idle.services, await issuers.signed_in("alice")
    company = IdentityProvider(issuers.settings(), Discovery(services.outgoing), services.idp_sessions)
    sign_ins = SignInMethods(resources(services.outgoing, {"SECRET": SECRET}, company))
    vouching = IdpAssertions(
        services.database,
        services.principals,
        services.grants,
        services.authorization_requests,
        services.answer_recorder,
        services.trail,
        sign_ins,
    )
    await services.idp_sessions.store_session(idle.alice.id, at_company["id_token"], None, time.time() + 3000)
    account = JSONResponse({"Id": NORTHWIND, "Name": "Northwind", "Type": "Customer"})
    async with receiver([account] * 3) as desk:
        connection = issuers.desk_by("identity_assertion").model_copy(
            update={"base_url": HttpUrl(f"http://127.0.0.1:{desk.port}")}
        )
        await services.catalogue.store_connections([connection])
        async with idle.working(idp_assertions=vouching), idle.delivering():
            hers = await idle.start("read_once", {"account_id": NORTHWIND}, idle.alice)
            await idle.outcome(hers)
            his = await idle.start("read_once", {"account_id": NORTHWIND}, idle.bob)
            await idle.parked(his)

    (request,) = desk.posts
    (ended,) = await idle.trail("action.ended", hers)
    assert request.headers["authorization"].startswith("Bearer ")
    assert (ended["account"], ended["verdict"]) == ("alice", "allowed")
    assert await idle.waiters(hers) == []
    await idle.temporal.get_workflow_handle(his).terminate()
