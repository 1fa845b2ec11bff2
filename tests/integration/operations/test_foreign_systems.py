"""Holds the systems that others wrote to what the tests of Byline take for granted of them; Byline has no part here."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import uvicorn
from authlib.common.security import generate_token
from authlib.integrations.httpx_client import AsyncOAuth2Client
from joserfc import jwt
from joserfc.jwk import KeySet
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ElicitRequest, ElicitRequestURLParams, ElicitResult, InputRequiredResult
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from examples.browser import Browser
from tests.support.foreign.kinto import Kinto, build_user_id, kinto_server
from tests.support.foreign.mcp_client import Implementation, tool_call
from tests.support.foreign.oidc_provider import OidcProvider, RegisteredClient, oidc_provider
from tests.support.foreign.postgres import Postgres, postgres_server

CALLBACK = "http://127.0.0.1:1/callback"
CLIENT = RegisteredClient("byline", "a secret of the client", (CALLBACK,))
RESOURCE = "https://byline.example/mcp"
PAGE = "https://crm.example/authorize"
PROTOCOLS = [(Implementation.CLIENT_2, "2026-07-28"), (Implementation.SDK_1, "2025-11-25")]
ACCOUNTS = "/buckets/crm/collections/accounts/records"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcProvider]:
    with oidc_provider(tmp_path_factory.mktemp("oidc"), [CLIENT], ["tools"]) as running:
        yield running


@pytest.fixture(scope="module")
def kinto(tmp_path_factory: pytest.TempPathFactory, provider: OidcProvider) -> Iterator[Kinto]:
    with kinto_server(tmp_path_factory.mktemp("kinto"), provider.issuer) as running:
        running.add_collection("crm", "accounts")
        yield running


@asynccontextmanager
async def sign_in(
    provider: OidcProvider, person: str, scope: str = "openid profile", resource: str | None = None
) -> AsyncIterator[AsyncOAuth2Client]:
    """A client of the provider that holds this person's tokens, after a code flow in the person's browser."""
    async with AsyncOAuth2Client(
        CLIENT.id, CLIENT.secret, scope=scope, redirect_uri=CALLBACK, code_challenge_method="S256"
    ) as client:
        verifier = generate_token(48)
        extra = {} if resource is None else {"resource": resource}
        url, _ = client.create_authorization_url(f"{provider.issuer}/auth", code_verifier=verifier, **extra)
        async with Browser(stop_at=CALLBACK) as browser:
            page = await provider.let_in(await browser.open(url), person)
        await client.fetch_token(
            f"{provider.issuer}/token", authorization_response=page.url, code_verifier=verifier
        )
        yield client


async def test_each_test_has_a_fresh_postgresql_database(postgres: Postgres) -> None:
    for _ in range(2):
        async with postgres.create_database() as url:
            database = create_async_engine(url)
            async with database.begin() as connection:
                await connection.execute(text("create table here (id int primary key)"))
                version = (await connection.execute(text("show server_version"))).scalar_one()
            await database.dispose()
        assert version.startswith("18.")


async def test_the_provider_names_the_person_who_signed_in(provider: OidcProvider) -> None:
    async with sign_in(provider, "alice") as client:
        userinfo = (await client.get(f"{provider.issuer}/me")).json()
    assert userinfo == {"sub": "alice", "name": "Alice Example"}


async def test_an_access_token_for_a_resource_is_a_jwt_for_that_audience_alone(
    provider: OidcProvider,
) -> None:
    async with sign_in(provider, "bob", "openid tools", RESOURCE) as client, httpx2.AsyncClient() as http:
        configuration = (await http.get(f"{provider.issuer}/.well-known/openid-configuration")).json()
        keys = KeySet.import_key_set((await http.get(configuration["jwks_uri"])).json())
        claims = jwt.decode(client.token["access_token"], keys).claims
    assert (claims["iss"], claims["sub"], claims["aud"]) == (provider.issuer, "bob", RESOURCE)
    assert (claims["client_id"], claims["scope"]) == (CLIENT.id, "tools")


async def test_a_refresh_token_is_replaced_and_its_second_use_ends_the_grant(provider: OidcProvider) -> None:
    async with sign_in(provider, "alice") as client:
        first = client.token["refresh_token"]
        second = (await client.refresh_token(f"{provider.issuer}/token", first))["refresh_token"]
        assert second != first
        for spent_token in (first, second):
            answer = await _refresh(provider, spent_token)
            assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


async def test_a_revoked_grant_serves_no_more(provider: OidcProvider) -> None:
    async with sign_in(provider, "alice") as client:
        refresh_token = client.token["refresh_token"]
        await client.revoke_token(f"{provider.issuer}/token/revocation", refresh_token, "refresh_token")
        assert (await client.get(f"{provider.issuer}/me")).status_code == 401
    assert (await _refresh(provider, refresh_token)).json()["error"] == "invalid_grant"


async def test_a_client_can_register_itself(provider: OidcProvider) -> None:
    client_metadata = {"redirect_uris": [CALLBACK], "token_endpoint_auth_method": "none"}
    async with httpx2.AsyncClient() as http:
        answer = await http.post(f"{provider.issuer}/reg", json=client_metadata)
    assert answer.status_code == 201
    assert answer.json()["client_id"]


async def test_kinto_obeys_one_person_refuses_another_and_writes_down_who_it_was(
    provider: OidcProvider, kinto: Kinto
) -> None:
    record = f"{ACCOUNTS}/acme"
    kinto.add_record(record, {"tier": "silver"}, readers=["bob"], writers=["alice"])
    address = f"{kinto.url}{record}"
    async with sign_in(provider, "alice") as alice, sign_in(provider, "bob") as bob:
        assert (await alice.patch(address, json={"data": {"tier": "gold"}})).status_code == 200
        refusal = await bob.patch(address, json={"data": {"tier": "lead"}})
        assert (refusal.status_code, refusal.json()["errno"]) == (403, 121)
        assert (await bob.get(address)).json()["data"]["tier"] == "gold"
    newest, oldest = kinto.list_history(record)
    assert (newest["action"], newest["user_id"]) == ("update", build_user_id("alice"))
    assert newest["target"]["data"]["tier"] == "gold"
    assert oldest["action"] == "create"


async def test_kinto_knows_a_revoked_token_at_once(provider: OidcProvider, kinto: Kinto) -> None:
    record = f"{ACCOUNTS}/globex"
    kinto.add_record(record, {"tier": "silver"}, writers=["alice"])
    async with sign_in(provider, "alice") as alice:
        assert (await alice.get(f"{kinto.url}{record}")).status_code == 200
        await alice.revoke_token(f"{provider.issuer}/token/revocation", alice.token["access_token"])
        assert (await alice.get(f"{kinto.url}{record}")).status_code == 401


@asynccontextmanager
async def mcp_server() -> AsyncIterator[str]:
    """An MCP server whose only tool sends a person to a page once, if the client can do that."""
    server = MCPServer("foreign")

    @server.tool()
    async def greet(greeting: str, context: Context[Any, Any]) -> str | InputRequiredResult:
        elicitation = context.client_capabilities and context.client_capabilities.elicitation
        answer_text = "unasked"
        if elicitation and elicitation.url:
            page = ElicitRequestURLParams(message="Sign in", url=PAGE)
            if context.protocol_version == "2025-11-25":
                answer_text = (await context.elicit_url(page.message, page.url, "crm")).action
            elif context.input_responses is None:
                return InputRequiredResult(input_requests={"crm": ElicitRequest(params=page)})
            else:
                answer_text = ElicitResult.model_validate(context.input_responses["crm"].model_dump()).action
        return f"{greeting}, {(context.headers or {})['authorization']}: {answer_text}"

    with socket.create_server(("127.0.0.1", 0)) as listener:
        web = uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="warning"))
        serving = asyncio.create_task(web.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        finally:
            web.should_exit = True
            await serving


@pytest.mark.parametrize(("client", "protocol"), PROTOCOLS)
async def test_a_typescript_client_reports_a_url_elicitation_and_goes_on(
    client: Implementation, protocol: str
) -> None:
    async with (
        mcp_server() as url,
        tool_call(url, "token-of-alice", "greet", {"greeting": "hello"}, elicitation=True, by=client) as call,
    ):
        assert await call.read_protocol() == protocol
        assert await call.read_link() == PAGE
        result = await call.read_result()
    assert result["content"] == [{"type": "text", "text": "hello, Bearer token-of-alice: accept"}]


@pytest.mark.parametrize(("client", "protocol"), PROTOCOLS)
async def test_a_typescript_client_without_elicitation_is_not_asked_to_open_a_page(
    client: Implementation, protocol: str
) -> None:
    async with (
        mcp_server() as url,
        tool_call(url, "token-of-bob", "greet", {"greeting": "hello"}, elicitation=False, by=client) as call,
    ):
        assert await call.read_protocol() == protocol
        result = await call.read_result()
    assert result["content"] == [{"type": "text", "text": "hello, Bearer token-of-bob: unasked"}]


async def _refresh(provider: OidcProvider, refresh_token: str) -> httpx2.Response:
    async with httpx2.AsyncClient(auth=(CLIENT.id, CLIENT.secret)) as http:
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        return await http.post(f"{provider.issuer}/token", data=form)
