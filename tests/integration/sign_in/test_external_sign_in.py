import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
from authlib.integrations.httpx_client import AsyncOAuth2Client
from pydantic import SecretStr

from engine.settings import IssuerSettings
from examples.browser import Browser
from tests.support.administration import set_active
from tests.support.foreign.oidc_provider import OidcProvider, RegisteredClient, oidc_provider
from tests.support.foreign.process import free_port
from tests.support.page_server import PageServer, serve_pages

RESOURCE = "https://byline.example/mcp"
CHAT_CALLBACK = "http://127.0.0.1:45678/callback"


@dataclass(frozen=True)
class ExternalSignInSetup:
    """Byline, with a provider that others wrote as its sign-in."""

    byline: PageServer
    provider: OidcProvider

    async def fetch_access_token(self, person: str, **resource: str) -> dict[str, str]:
        """What the provider issues to a chat client that a person signs in to."""
        verifier = secrets.token_urlsafe(48)
        async with (
            AsyncOAuth2Client(
                "chat",
                "chat-secret",
                redirect_uri=CHAT_CALLBACK,
                scope="openid",
                code_challenge_method="S256",
            ) as client,
            Browser(stop_at=CHAT_CALLBACK) as browser,
        ):
            url, _ = client.create_authorization_url(
                f"{self.provider.issuer}/auth", code_verifier=verifier, **resource
            )
            page = await self.provider.let_in(await browser.open(url), person)
            code = dict(parse_qsl(urlsplit(page.url).query))["code"]
            tokens: dict[str, str] = await client.fetch_token(
                f"{self.provider.issuer}/token", code=code, code_verifier=verifier, **resource
            )
        return tokens


@pytest.fixture
async def sign_in_setup(tmp_path: Path) -> AsyncIterator[ExternalSignInSetup]:
    port = free_port()
    clients = (
        RegisteredClient("byline", "byline-secret", (f"http://127.0.0.1:{port}/sign-in/callback",)),
        RegisteredClient("chat", "chat-secret", (CHAT_CALLBACK,)),
    )
    with oidc_provider(tmp_path, clients, ("mcp",)) as provider:
        issuer = IssuerSettings(
            issuer=provider.issuer,
            audience=RESOURCE,
            client_id="byline",
            client_secret=SecretStr("byline-secret"),
        )
        async with serve_pages(tmp_path, port=port, issuer=issuer) as byline:
            yield ExternalSignInSetup(byline, provider)


async def test_a_person_signs_in_at_the_external_issuer_and_goes_on(
    sign_in_setup: ExternalSignInSetup,
) -> None:
    async with Browser() as browser:
        page = await browser.open(f"{sign_in_setup.byline.url}/connect/unknown")
        page = await sign_in_setup.provider.let_in(page, "alice")

    alice = await sign_in_setup.byline.services.principals.find_by_subject(
        sign_in_setup.provider.issuer, "alice"
    )
    assert page.url == f"{sign_in_setup.byline.url}/connect/unknown"
    assert "Signed in as <strong>Alice Example" in page.text
    assert alice is not None
    assert alice.name == "Alice Example"


async def test_signing_out_lets_somebody_else_sign_in(sign_in_setup: ExternalSignInSetup) -> None:
    async with Browser() as browser:
        page = await sign_in_setup.provider.let_in(
            await browser.open(f"{sign_in_setup.byline.url}/sign-in"), "alice"
        )
        await page.form(submit="Sign out")
        page = await browser.open(f"{sign_in_setup.byline.url}/sign-in?afresh=1")
        page = await sign_in_setup.provider.let_in(page, "bob")

    assert "Signed in as <strong>Bob Example" in page.text


@pytest.mark.parametrize(
    "answer",
    [
        "code=guessed&state=guessed",
        "error=access_denied&state=guessed",
        "",
    ],
)
async def test_an_answer_that_nobody_asked_for_signs_nobody_in(
    sign_in_setup: ExternalSignInSetup, answer: str
) -> None:
    async with httpx2.AsyncClient(base_url=sign_in_setup.byline.url) as client:
        alone = await client.get(f"/sign-in/callback?{answer}")
        await client.get("/sign-in")
        callback_response = await client.get(f"/sign-in/callback?{answer}")
        page = await client.get("/")

    assert alone.status_code == callback_response.status_code == 400
    assert "Signed in as" not in page.text


async def test_an_answer_from_another_issuer_signs_nobody_in(sign_in_setup: ExternalSignInSetup) -> None:
    async with httpx2.AsyncClient(base_url=sign_in_setup.byline.url) as client:
        sign_in_parameters = dict(
            parse_qsl(urlsplit((await client.get("/sign-in")).headers["location"]).query)
        )
        parameters = {"code": "guessed", "state": sign_in_parameters["state"], "iss": "https://evil.example"}
        refusal = await client.get("/sign-in/callback", params=parameters)

    assert sign_in_parameters["code_challenge_method"] == "S256"
    assert sign_in_parameters["nonce"]
    assert refusal.status_code == 400
    assert "did not come from" in refusal.text


async def test_a_deactivated_person_reads_so_although_the_issuer_signs_them_in(
    sign_in_setup: ExternalSignInSetup,
) -> None:
    bob = await sign_in_setup.byline.services.principals.resolve_principal(
        sign_in_setup.provider.issuer, "bob", "Bob Example"
    )
    await set_active(sign_in_setup.byline.services, bob.id, is_active=False)
    async with Browser() as browser:
        page = await sign_in_setup.provider.let_in(
            await browser.open(f"{sign_in_setup.byline.url}/sign-in"), "bob"
        )

    assert page.status == 403
    assert "was deactivated" in page.text


async def test_the_issuers_access_tokens_for_this_server_are_taken(
    sign_in_setup: ExternalSignInSetup,
) -> None:
    tokens = await sign_in_setup.fetch_access_token("alice", resource=RESOURCE)
    whoami_response = await sign_in_setup.byline.fetch_whoami(tokens["access_token"])
    alice = await sign_in_setup.byline.services.principals.find_by_subject(
        sign_in_setup.provider.issuer, "alice"
    )

    assert alice is not None
    assert whoami_response.json()["principal"] == alice.id
    assert whoami_response.json()["client"] == "chat"


async def test_the_issuers_other_tokens_are_not_taken(sign_in_setup: ExternalSignInSetup) -> None:
    for_another = await sign_in_setup.fetch_access_token("alice", resource="https://other.example/mcp")
    for_itself = await sign_in_setup.fetch_access_token("alice")
    other_tokens = [for_another["access_token"], for_itself["access_token"], for_itself["id_token"]]

    assert [(await sign_in_setup.byline.fetch_whoami(token)).status_code for token in other_tokens] == [
        401,
        401,
        401,
    ]
    assert await sign_in_setup.byline.list_trail_events("attempt.refused") == []
    alice = await sign_in_setup.byline.services.principals.resolve_principal(
        sign_in_setup.provider.issuer, "alice", "Alice Example"
    )
    assert [(await sign_in_setup.byline.fetch_whoami(token)).status_code for token in other_tokens] == [
        401,
        401,
        401,
    ]
    (attempt,) = await sign_in_setup.byline.list_trail_events("attempt.refused")
    assert (attempt["error"], attempt["principal"]["id"]) == ("token_misdirected", alice.id)
    assert attempt["actor"]["id"] == "chat"


async def test_clients_are_sent_to_the_external_issuer_and_the_built_in_server_is_off(
    sign_in_setup: ExternalSignInSetup,
) -> None:
    async with httpx2.AsyncClient(base_url=sign_in_setup.byline.url) as client:
        resource = await client.get("/.well-known/oauth-protected-resource/mcp")
        responses = [
            await client.get(path) for path in ("/.well-known/oauth-authorization-server", "/authorize")
        ]

    assert resource.json()["authorization_servers"] == [sign_in_setup.provider.issuer]
    assert [response.status_code for response in responses] == [404, 404]


async def test_an_issuer_that_does_not_answer_is_reported_in_words(tmp_path: Path) -> None:
    issuer = IssuerSettings(issuer=f"http://127.0.0.1:{free_port()}", audience=RESOURCE, client_id="byline")
    async with serve_pages(tmp_path, issuer=issuer) as byline, httpx2.AsyncClient() as client:
        response = await client.get(f"{byline.url}/sign-in")

    assert response.status_code == 503
    assert "does not answer" in response.text
