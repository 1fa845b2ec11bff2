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
from tests.support.platform import NORTHWIND, Platform
from tests.support.sandbox_systems import CALLBACK as OF_THE_PLATFORM
from tests.support.sign_ins import consent_page, resources

CALLBACK = "https://byline.example.com/oauth/callback"
SCOPES = ("read", "write")


@dataclass
class QuirkyProvider:
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
async def provider() -> AsyncIterator[QuirkyProvider]:
    running = QuirkyProvider()
    listener = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    running.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener:
        yield running


@pytest.fixture
async def discovery() -> AsyncIterator[Discovery]:
    async with OutgoingClient(OutgoingSettings(allow_http=True, allow_private=True)) as outgoing:
        yield Discovery(outgoing)


def build_client(
    provider: QuirkyProvider, discovery: Discovery, **declaration: object
) -> AuthorizationCodeSignIn:
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
            "provider": {**endpoints, **declaration},
        }
    )
    return AuthorizationCodeSignIn(
        connection, resources(discovery.outgoing, {"SECRET": "of byline"}, discovery=discovery)
    )


def declare_like(name: str) -> dict[str, Any]:
    """What the catalogue knows of a provider besides its addresses."""
    known_provider = load_known_provider(name).provider
    return {key: value for key, value in known_provider.items() if not key.endswith("_endpoint")}


async def read_question(client: AuthorizationCodeSignIn) -> dict[str, list[str]]:
    """The words that a browser carries to the consent page."""
    address = await client.build_authorization_url(
        redirect_uri=CALLBACK, state="s", code_verifier="v" * 43, scopes=SCOPES
    )
    return parse_qs(urlsplit(address).query)


async def exchange_code(client: AuthorizationCodeSignIn) -> UpstreamTokens:
    return await client.exchange_code(
        authorization_code="c", redirect_uri=CALLBACK, code_verifier="v" * 43, requested_scopes=SCOPES
    )


@pytest.mark.parametrize(
    ("declaration", "parameter", "scopes"),
    [
        ({}, "scope", "read write"),
        ({"scope_separator": "comma"}, "scope", "read,write"),
        ({"added_scopes": ["write", "offline_access"]}, "scope", "read write offline_access"),
        (declare_like("slack"), "user_scope", "read,write"),
    ],
)
async def test_scopes_are_asked_for_as_the_provider_parts_them(
    provider: QuirkyProvider, discovery: Discovery, declaration: dict[str, Any], parameter: str, scopes: str
) -> None:
    words = await read_question(build_client(provider, discovery, **declaration))

    assert words[parameter] == [scopes]
    assert {"scope", "user_scope"} & words.keys() == {parameter}


@pytest.mark.parametrize(
    ("declaration", "scope", "expected_scopes"),
    [
        ({}, "read write:a,b", ("read", "write:a,b")),
        ({"scope_separator": "comma"}, "read,write", ("read", "write")),
        ({"granted_scope_separator": "comma"}, "read, write admin", ("read", "write", "admin")),
        ({}, ["read", "write"], ("read", "write")),
        ({}, None, SCOPES),
        ({"scope_separator": "comma"}, "", SCOPES),
        ({}, 7, SCOPES),
    ],
)
async def test_scopes_are_granted_however_the_provider_parts_them(
    provider: QuirkyProvider,
    discovery: Discovery,
    declaration: dict[str, Any],
    scope: object,
    expected_scopes: tuple[str, ...],
) -> None:
    provider.answer = {"access_token": "a", "scope": scope}

    assert (await exchange_code(build_client(provider, discovery, **declaration))).scopes == expected_scopes


async def test_the_tokens_of_a_person_are_taken_and_not_those_of_the_app_beside_them(
    provider: QuirkyProvider, discovery: Discovery
) -> None:
    slack = build_client(provider, discovery, **declare_like("slack"))
    of_the_person = {
        "id": "U1",
        "access_token": "person",
        "refresh_token": "r1",
        "expires_in": 3600,
        "scope": "read,write",
    }
    provider.answer = {"ok": True, "access_token": "bot", "scope": "admin", "authed_user": of_the_person}
    first = await exchange_code(slack)
    account = await slack.find_account(first)
    provider.answer = {"ok": True, "access_token": "renewed", "refresh_token": "r2", "expires_in": 3600}
    renewed_tokens = await slack.refresh_tokens(first)

    assert (first.access_token, first.refresh_token, first.scopes) == ("person", "r1", SCOPES)
    assert first.expires_at is not None
    assert account == "U1"
    assert (renewed_tokens.access_token, renewed_tokens.refresh_token, renewed_tokens.scopes) == (
        "renewed",
        "r2",
        SCOPES,
    )


def id_token(**claims: object) -> str:
    return f"e30.{urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.c2ln"


@pytest.mark.parametrize(
    ("declaration", "answer", "account"),
    [
        (declare_like("asana"), {"data": {"email": "ann@example.com"}}, "ann@example.com"),
        (
            declare_like("notion"),
            {"owner": {"user": {"person": {"email": "ann@example.com"}}}},
            "ann@example.com",
        ),
        (declare_like("notion"), {"owner": {"workspace": True}}, ""),
        (declare_like("strava"), {"athlete": {"id": 7}}, "7"),
        (declare_like("stripe"), {"stripe_user_id": "acct_1"}, "acct_1"),
        (declare_like("microsoft-365"), {"id_token": id_token(preferred_username="ann", sub="1")}, "ann"),
        (declare_like("quickbooks"), {"id_token": id_token(sub="1")}, "1"),
        (declare_like("quickbooks"), {"id_token": "none of these"}, ""),
        (declare_like("quickbooks"), {}, ""),
    ],
)
async def test_an_account_is_read_where_the_provider_names_it(
    provider: QuirkyProvider,
    discovery: Discovery,
    declaration: dict[str, Any],
    answer: dict[str, Any],
    account: str,
) -> None:
    odd = build_client(provider, discovery, **{**declaration, "token_response": {}})
    provider.answer = {"access_token": "a", **answer}

    assert await odd.find_account(await exchange_code(odd)) == account


@pytest.mark.parametrize(
    ("provider_name", "of_a_code", "of_a_refresh_token"),
    [
        ("github", "bad_verification_code", "bad_refresh_token"),
        ("slack", "invalid_code", "invalid_refresh_token"),
    ],
)
async def test_what_its_provider_ended_is_known_as_that_whatever_the_provider_calls_it(
    provider: QuirkyProvider,
    discovery: Discovery,
    provider_name: str,
    of_a_code: str,
    of_a_refresh_token: str,
) -> None:
    odd = build_client(provider, discovery, **declare_like(provider_name))

    provider.answer = {"error": of_a_code}
    with pytest.raises(TokenRefused) as code_error_info:
        await exchange_code(odd)
    provider.answer = {"ok": False, "error": of_a_refresh_token}
    with pytest.raises(TokenRefused) as refresh_error_info:
        await odd.renew("ann", UpstreamTokens("a", "r", None, SCOPES))

    assert (code_error_info.value.error_code, refresh_error_info.value.error_code) == (
        "invalid_grant",
        "invalid_grant",
    )


async def test_an_account_is_read_at_a_pointer_into_what_userinfo_says(
    provider: QuirkyProvider, discovery: Discovery
) -> None:
    webex = build_client(provider, discovery, userinfo_endpoint=f"{provider.url}/me", **declare_like("webex"))
    provider.answer = {"emails": ["ann@example.com", "second@example.com"]}

    assert await webex.find_account(UpstreamTokens("a", None, None, ())) == "ann@example.com"


async def test_a_challenge_is_sent_as_the_provider_spells_it_and_left_out_only_where_it_takes_none(
    provider: QuirkyProvider, discovery: Discovery
) -> None:
    provider.answer = {"access_token": "a"}
    with_it, without = build_client(provider, discovery), build_client(provider, discovery, pkce=False)

    odd = build_client(provider, discovery, authorization_parameters={"code_challenge_method": "s256"})

    assert (await read_question(with_it))["code_challenge_method"] == ["S256"]
    assert (await read_question(odd))["code_challenge_method"] == ["s256"]
    assert not {"code_challenge", "code_challenge_method"} & (await read_question(without)).keys()
    await exchange_code(with_it)
    await exchange_code(without)
    assert ["code_verifier" in body for body in provider.bodies] == [True, False]


async def test_a_token_request_is_json_where_the_provider_takes_no_form(
    provider: QuirkyProvider, discovery: Discovery
) -> None:
    provider.answer = {"access_token": "a", "refresh_token": "r"}
    zendesk, notion = (
        build_client(provider, discovery, **declare_like("zendesk")),
        build_client(provider, discovery, **declare_like("notion")),
    )
    await zendesk.refresh_tokens(await exchange_code(zendesk))
    await exchange_code(notion)

    code, refresh, of_notion = (json.loads(body) for body in provider.bodies)
    assert (code["code"], code["client_id"], code["client_secret"]) == ("c", "byline", "of byline")
    assert (refresh["grant_type"], refresh["refresh_token"]) == ("refresh_token", "r")
    assert "client_secret" not in of_notion
    assert "authorization: basic " in provider.heads[2].lower()


async def test_a_bare_token_goes_into_the_header_that_an_upstream_reads(platform: Platform) -> None:
    crm = await platform.services.catalogue.get_connection("crm")
    await platform.redeclare("crm", provider=crm.provider.model_copy(update={"token_header": "X-Token"}))
    tokens = await platform.give_grant("crm", platform.alice)
    run = await platform.start_run("read_once", {"account_id": NORTHWIND}, platform.alice)
    await platform.wait_until_parked(run)

    # The CRM reads the usual header alone, so that it refuses a token that came in another one.
    assert tokens.access_token
    assert [line["verdict"] for line in await platform.list_trail_events("action.ended")][:1] == [
        "unauthenticated"
    ]


async def test_an_answer_that_leaves_out_its_issuer_is_taken_only_where_that_is_declared(
    platform: Platform,
) -> None:
    run = await platform.start_run("read_once", {"account_id": NORTHWIND}, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    crm = await platform.services.catalogue.get_connection("crm")
    services, system = platform.services, platform.systems["crm"]

    async def complete_sign_in(iss: str | None, *, is_required: bool) -> None:
        provider = crm.provider.model_copy(update={"iss_required": is_required})
        await platform.redeclare("crm", provider=provider)
        session = secrets.token_urlsafe()
        async with Browser(stop_at=OF_THE_PLATFORM) as browser:
            page = await browser.open(await consent_page(services, request, session))
            account = system.find_account(platform.alice.subject)
            page = await page.form(submit="Sign in", username=account, password="alice-crm")
            page = await page.form(submit="Allow")
        words = {key: value for key, value in parse_qsl(urlsplit(page.url).query) if key != "iss"}
        await services.sign_ins.finish_redirect(
            {**words, **({"iss": iss} if iss else {})}, platform.alice, session
        )

    for iss, is_required in ((None, True), ("https://evil.example", False)):
        with pytest.raises(AuthorizationRefused, match="did not come from"):
            await complete_sign_in(iss, is_required=is_required)
    assert await platform.services.grants.list_grants(platform.alice.id) == []

    await complete_sign_in(None, is_required=False)
    assert [
        grant.connection_name for grant in await platform.services.grants.list_grants(platform.alice.id)
    ] == ["crm"]
