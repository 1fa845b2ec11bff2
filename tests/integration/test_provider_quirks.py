import asyncio
import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from engine.connections.connection import Connection
from engine.connections.known_providers import load_known_provider
from engine.errors import AuthorizationRefused
from engine.oauth.client import TokenRefused
from engine.oauth.discovery import Discovery
from engine.oauth.tokens import UpstreamTokens
from engine.outgoing.client import OutgoingClient
from engine.settings import OutgoingSettings
from engine.sign_in.authorization_code import AuthorizationCodeSignIn
from examples.browser import Browser
from tests.platform import NORTHWIND, Platform
from tests.sandbox import CALLBACK as OF_THE_PLATFORM
from tests.signing_in import consent_page, resources

CALLBACK = "https://byline.example.com/oauth/callback"
ASKED = ("read", "write")


@dataclass
class Provider:
    """A provider with an answer to everything, which remembers what it was sent."""

    url: str = ""
    answer: dict[str, Any] = field(default_factory=dict)
    heads: list[str] = field(default_factory=list)
    bodies: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lengths = [
            line.split(":")[1] for line in head.splitlines() if line.lower().startswith("content-length")
        ]
        self.heads.append(head)
        self.bodies.append((await reader.readexactly(int(lengths[0]) if lengths else 0)).decode())
        body = json.dumps(self.answer).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        writer.close()


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    running = Provider()
    listener = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    running.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener:
        yield running


@pytest.fixture
async def discovery() -> AsyncIterator[Discovery]:
    async with OutgoingClient(OutgoingSettings(allow_http=True, allow_private=True)) as outgoing:
        yield Discovery(outgoing)


def client(provider: Provider, discovery: Discovery, **declared: object) -> AuthorizationCodeSignIn:
    endpoints = {
        "authorization_endpoint": f"{provider.url}/authorize",
        "token_endpoint": f"{provider.url}/token",
    }
    connection = Connection.model_validate(
        {
            "name": "odd",
            "title": "Odd",
            "system": "odd",
            "mode": "user",
            "base_url": "https://api.example.com",
            "client_id": "byline",
            "client_secret": {"env": "SECRET"},
            "provider": {**endpoints, **declared},
        }
    )
    return AuthorizationCodeSignIn(
        connection, resources(discovery.outgoing, {"SECRET": "of byline"}, discovery=discovery)
    )


def like(name: str) -> dict[str, Any]:
    """What the catalogue knows of a provider besides its addresses."""
    known = load_known_provider(name).provider
    return {key: value for key, value in known.items() if not key.endswith("_endpoint")}


async def asked(client: AuthorizationCodeSignIn) -> dict[str, list[str]]:
    """The words that a browser carries to the consent page."""
    address = await client.build_authorization_url(
        redirect_uri=CALLBACK, state="s", code_verifier="v" * 43, scopes=ASKED
    )
    return parse_qs(urlsplit(address).query)


async def exchanged(client: AuthorizationCodeSignIn) -> UpstreamTokens:
    return await client.exchange_code(
        authorization_code="c", redirect_uri=CALLBACK, code_verifier="v" * 43, requested_scopes=ASKED
    )


@pytest.mark.parametrize(
    ("declared", "parameter", "scopes"),
    [
        ({}, "scope", "read write"),
        ({"scope_separator": "comma"}, "scope", "read,write"),
        ({"added_scopes": ["write", "offline_access"]}, "scope", "read write offline_access"),
        (like("slack"), "user_scope", "read,write"),
    ],
)
async def test_scopes_are_asked_for_as_the_provider_parts_them(
    provider: Provider, discovery: Discovery, declared: dict[str, Any], parameter: str, scopes: str
) -> None:
    words = await asked(client(provider, discovery, **declared))

    assert words[parameter] == [scopes]
    assert {"scope", "user_scope"} & words.keys() == {parameter}


@pytest.mark.parametrize(
    ("declared", "scope", "granted"),
    [
        ({}, "read write:a,b", ("read", "write:a,b")),
        ({"scope_separator": "comma"}, "read,write", ("read", "write")),
        ({"granted_scope_separator": "comma"}, "read, write admin", ("read", "write", "admin")),
        ({}, ["read", "write"], ("read", "write")),
        ({}, None, ASKED),
        ({"scope_separator": "comma"}, "", ASKED),
        ({}, 7, ASKED),
    ],
)
async def test_scopes_are_granted_however_the_provider_parts_them(
    provider: Provider,
    discovery: Discovery,
    declared: dict[str, Any],
    scope: object,
    granted: tuple[str, ...],
) -> None:
    provider.answer = {"access_token": "a", "scope": scope}

    assert (await exchanged(client(provider, discovery, **declared))).scopes == granted


async def test_the_tokens_of_a_person_are_taken_and_not_those_of_the_app_beside_them(
    provider: Provider, discovery: Discovery
) -> None:
    slack = client(provider, discovery, **like("slack"))
    of_the_person = {
        "id": "U1",
        "access_token": "person",
        "refresh_token": "r1",
        "expires_in": 3600,
        "scope": "read,write",
    }
    provider.answer = {"ok": True, "access_token": "bot", "scope": "admin", "authed_user": of_the_person}
    first = await exchanged(slack)
    account = await slack.find_account(first)
    provider.answer = {"ok": True, "access_token": "renewed", "refresh_token": "r2", "expires_in": 3600}
    renewed = await slack.refresh_tokens(first)

    assert (first.access_token, first.refresh_token, first.scopes) == ("person", "r1", ASKED)
    assert first.expires_at is not None
    assert account == "U1"
    assert (renewed.access_token, renewed.refresh_token, renewed.scopes) == ("renewed", "r2", ASKED)


def id_token(**claims: object) -> str:
    return f"e30.{urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.c2ln"


@pytest.mark.parametrize(
    ("declared", "answer", "account"),
    [
        (like("asana"), {"data": {"email": "ann@example.com"}}, "ann@example.com"),
        (like("notion"), {"owner": {"user": {"person": {"email": "ann@example.com"}}}}, "ann@example.com"),
        (like("notion"), {"owner": {"workspace": True}}, ""),
        (like("strava"), {"athlete": {"id": 7}}, "7"),
        (like("stripe"), {"stripe_user_id": "acct_1"}, "acct_1"),
        (like("microsoft-365"), {"id_token": id_token(preferred_username="ann", sub="1")}, "ann"),
        (like("quickbooks"), {"id_token": id_token(sub="1")}, "1"),
        (like("quickbooks"), {"id_token": "none of these"}, ""),
        (like("quickbooks"), {}, ""),
    ],
)
async def test_an_account_is_read_where_the_provider_names_it(
    provider: Provider, discovery: Discovery, declared: dict[str, Any], answer: dict[str, Any], account: str
) -> None:
    odd = client(provider, discovery, **{**declared, "token_response": {}})
    provider.answer = {"access_token": "a", **answer}

    assert await odd.find_account(await exchanged(odd)) == account


@pytest.mark.parametrize(
    ("known", "of_a_code", "of_a_refresh_token"),
    [
        ("github", "bad_verification_code", "bad_refresh_token"),
        ("slack", "invalid_code", "invalid_refresh_token"),
    ],
)
async def test_what_its_provider_ended_is_known_as_that_whatever_the_provider_calls_it(
    provider: Provider, discovery: Discovery, known: str, of_a_code: str, of_a_refresh_token: str
) -> None:
    odd = client(provider, discovery, **like(known))

    provider.answer = {"error": of_a_code}
    with pytest.raises(TokenRefused) as refused:
        await exchanged(odd)
    provider.answer = {"ok": False, "error": of_a_refresh_token}
    with pytest.raises(TokenRefused) as ended:
        await odd.renew("ann", UpstreamTokens("a", "r", None, ASKED))

    assert (refused.value.error_code, ended.value.error_code) == ("invalid_grant", "invalid_grant")


async def test_an_account_is_read_at_a_pointer_into_what_userinfo_says(
    provider: Provider, discovery: Discovery
) -> None:
    webex = client(provider, discovery, userinfo_endpoint=f"{provider.url}/me", **like("webex"))
    provider.answer = {"emails": ["ann@example.com", "second@example.com"]}

    assert await webex.find_account(UpstreamTokens("a", None, None, ())) == "ann@example.com"


async def test_a_challenge_is_sent_as_the_provider_spells_it_and_left_out_only_where_it_takes_none(
    provider: Provider, discovery: Discovery
) -> None:
    provider.answer = {"access_token": "a"}
    with_it, without = client(provider, discovery), client(provider, discovery, pkce=False)

    odd = client(provider, discovery, authorization_parameters={"code_challenge_method": "s256"})

    assert (await asked(with_it))["code_challenge_method"] == ["S256"]
    assert (await asked(odd))["code_challenge_method"] == ["s256"]
    assert not {"code_challenge", "code_challenge_method"} & (await asked(without)).keys()
    await exchanged(with_it)
    await exchanged(without)
    assert ["code_verifier" in body for body in provider.bodies] == [True, False]


async def test_a_token_request_is_json_where_the_provider_takes_no_form(
    provider: Provider, discovery: Discovery
) -> None:
    provider.answer = {"access_token": "a", "refresh_token": "r"}
    zendesk, notion = (
        client(provider, discovery, **like("zendesk")),
        client(provider, discovery, **like("notion")),
    )
    await zendesk.refresh_tokens(await exchanged(zendesk))
    await exchanged(notion)

    code, refresh, of_notion = (json.loads(body) for body in provider.bodies)
    assert (code["code"], code["client_id"], code["client_secret"]) == ("c", "byline", "of byline")
    assert (refresh["grant_type"], refresh["refresh_token"]) == ("refresh_token", "r")
    assert "client_secret" not in of_notion
    assert "authorization: basic " in provider.heads[2].lower()


async def test_a_bare_token_goes_into_the_header_that_an_upstream_reads(platform: Platform) -> None:
    crm = await platform.services.catalogue.get_connection("crm")
    await platform.redeclare("crm", provider=crm.provider.model_copy(update={"token_header": "X-Token"}))
    tokens = await platform.grant("crm", platform.alice)
    run = await platform.start("read_once", {"account_id": NORTHWIND}, platform.alice)
    await platform.parked(run)

    # The CRM reads the usual header alone, so that it refuses a token that came in another one.
    assert tokens.access_token
    assert [line["verdict"] for line in await platform.trail("action.ended")][:1] == ["unauthenticated"]


async def test_an_answer_that_leaves_out_its_issuer_is_taken_only_where_that_is_declared(
    platform: Platform,
) -> None:
    run = await platform.start("read_once", {"account_id": NORTHWIND}, platform.alice)
    (request,) = await platform.parked(run)
    crm = await platform.services.catalogue.get_connection("crm")
    services, system = platform.services, platform.systems["crm"]

    async def answered(iss: str | None, *, required: bool) -> None:
        provider = crm.provider.model_copy(update={"iss_required": required})
        await platform.redeclare("crm", provider=provider)
        session = secrets.token_urlsafe()
        async with Browser(stop_at=OF_THE_PLATFORM) as browser:
            page = await browser.open(await consent_page(services, request, session))
            account = system.account(platform.alice.subject)
            page = await page.form(submit="Sign in", username=account, password="alice-crm")
            page = await page.form(submit="Allow")
        words = {key: value for key, value in parse_qsl(urlsplit(page.url).query) if key != "iss"}
        await services.sign_ins.finish_redirect(
            {**words, **({"iss": iss} if iss else {})}, platform.alice, session
        )

    for iss, required in ((None, True), ("https://evil.example", False)):
        with pytest.raises(AuthorizationRefused, match="did not come from"):
            await answered(iss, required=required)
    assert await platform.services.grants.list_grants(platform.alice.id) == []

    await answered(None, required=False)
    assert [
        grant.connection_name for grant in await platform.services.grants.list_grants(platform.alice.id)
    ] == ["crm"]
