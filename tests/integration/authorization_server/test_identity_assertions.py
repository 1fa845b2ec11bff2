import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import pytest
import pytest_asyncio
from authlib.integrations.httpx_client import AsyncOAuth2Client
from joserfc import jwt
from joserfc.jwk import RSAKey
from mcp.client.auth.extensions.identity_assertion import IdentityAssertionOAuthProvider

from engine.settings import AssertionIssuerSettings
from examples.browser import Browser
from examples.chat import MemoryTokenStorage
from gateway.services import build_gateway_services
from gateway.toolsets import MCP_PATH
from tests.support.administration import SHELL, registered_clients_of, set_active
from tests.support.foreign.oidc_provider import OidcProvider, RegisteredClient, oidc_provider
from tests.support.page_server import PageServer, serve_pages

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ID_JAG = "urn:ietf:params:oauth:token-type:id-jag"
AT_THE_ASSISTANT = "http://127.0.0.1:45678/callback"

pytestmark = pytest.mark.asyncio(loop_scope="session")


@dataclass(frozen=True)
class Enterprise:
    """Byline, an identity provider that others wrote and Byline trusts, and an assistant that is known at both."""

    byline: PageServer
    provider: OidcProvider
    id: str
    secret: str

    def build_claims(self, **changes: object) -> dict[str, Any]:
        """What the provider says of Alice to the assistant, but for what is changed."""
        claims = {
            "iss": self.provider.issuer,
            "sub": "alice",
            "aud": self.byline.url,
            "client_id": self.id,
            "resource": f"{self.byline.url}/mcp",
            "scope": "mcp billing",
            "iat": int(time.time()),
            "exp": int(time.time()) + 300,
            "jti": secrets.token_hex(8),
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def sign_assertion(
        self, typ: str = "oauth-id-jag+jwt", key: RSAKey | None = None, **changes: object
    ) -> str:
        header = {"alg": "RS256", "typ": typ, "kid": self.provider.key.kid}
        return jwt.encode(header, self.build_claims(**changes), key or self.provider.key)

    async def exchange_assertion(
        self, assertion: str, client: tuple[str, str] | None = None, **form: str
    ) -> httpx2.Response:
        """Send an assertion as the assistant does, or as another client."""
        form_fields = {"grant_type": JWT_BEARER, "assertion": assertion, **form}
        async with httpx2.AsyncClient(
            base_url=self.byline.url, auth=client or (self.id, self.secret)
        ) as http:
            return await http.post("/token", data=form_fields)

    async def list_asserted_events(self) -> list[dict[str, Any]]:
        lines = await self.byline.services.trail.find_lines(limit=None)
        return [line.event for line in lines if line.kind == "client.asserted"]

    async def fetch_id_token(self, person: str) -> str:
        """What the provider says of a person who signs in to the assistant."""
        verifier = secrets.token_urlsafe(48)
        async with (
            AsyncOAuth2Client(
                "assistant",
                "assistant-secret",
                redirect_uri=AT_THE_ASSISTANT,
                scope="openid profile",
                code_challenge_method="S256",
            ) as client,
            Browser(stop_at=AT_THE_ASSISTANT) as browser,
        ):
            url, _ = client.create_authorization_url(f"{self.provider.issuer}/auth", code_verifier=verifier)
            page = await self.provider.let_in(await browser.open(url), person)
            code = dict(parse_qsl(urlsplit(page.url).query))["code"]
            token_response = await client.fetch_token(
                f"{self.provider.issuer}/token", code=code, code_verifier=verifier
            )
        return str(token_response["id_token"])

    async def fetch_id_jag(self, id_token: str, audience: str, resource: str) -> str:
        """The assertion that the provider gives the assistant for its person's ID token."""
        form = {
            "grant_type": TOKEN_EXCHANGE,
            "requested_token_type": ID_JAG,
            "subject_token": id_token,
            "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
            "audience": audience,
            "resource": resource,
            "client_at_audience": self.id,
        }
        async with httpx2.AsyncClient(auth=("assistant", "assistant-secret")) as http:
            token_response = (
                (await http.post(f"{self.provider.issuer}/token", data=form)).raise_for_status().json()
            )
        assert token_response["issued_token_type"] == ID_JAG
        return str(token_response["access_token"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def enterprise(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Enterprise]:
    folder = tmp_path_factory.mktemp("enterprise")
    grants = {"grant_types": ["authorization_code", TOKEN_EXCHANGE]}
    assistant = RegisteredClient("assistant", "assistant-secret", (AT_THE_ASSISTANT,), grants)
    with oidc_provider(folder, [assistant], ["mcp"]) as provider:
        trusted_issuer = AssertionIssuerSettings(issuer=provider.issuer)
        policy = "tools: {refund: {scope: billing}}"
        async with serve_pages(folder, assertion_issuers=(trusted_issuer,), policy=policy) as byline:
            client_id, secret = await registered_clients_of(byline.services).add_client(
                SHELL, "Assistant", [], is_confidential=True, may_assert=True
            )
            assert secret is not None
            yield Enterprise(byline, provider, client_id, secret)


async def test_a_stock_client_signs_in_with_an_assertion_of_the_provider_alone(
    enterprise: Enterprise,
) -> None:
    byline, memory = enterprise.byline, MemoryTokenStorage()
    id_token = await enterprise.fetch_id_token("bob")
    assertions: list[str] = []

    async def assertion(audience: str, resource: str) -> str:
        assertions.append(await enterprise.fetch_id_jag(id_token, audience, resource))
        return assertions[-1]

    provider = IdentityAssertionOAuthProvider(
        server_url=f"{byline.url}/mcp",
        storage=memory,
        client_id=enterprise.id,
        client_secret=enterprise.secret,
        issuer=byline.url,
        assertion_provider=assertion,
        token_endpoint_auth_method="client_secret_basic",
    )
    async with httpx2.AsyncClient(auth=provider) as http:
        resource_metadata = (await http.get(f"{byline.url}/mcp")).json()
        metadata = (await http.get(f"{byline.url}/.well-known/oauth-authorization-server")).json()
    replayed_response = await enterprise.exchange_assertion(assertions[0])

    bob = await byline.services.principals.find_by_subject(enterprise.provider.issuer, "bob")
    assert bob is not None
    assert resource_metadata["principal"] == bob.id
    assert resource_metadata["client"] == enterprise.id
    assert resource_metadata["scopes"] == ["mcp"]
    assert memory.tokens is not None
    assert memory.tokens.refresh_token is None
    assert metadata["authorization_grant_profiles_supported"] == [
        "urn:ietf:params:oauth:grant-profile:id-jag"
    ]
    assert JWT_BEARER in metadata["grant_types_supported"]
    assert replayed_response.json()["error"] == "invalid_grant"
    assert "used before" in replayed_response.json()["error_description"]
    (line,) = [
        event for event in await enterprise.list_asserted_events() if event["principal"]["sub"] == "bob"
    ]
    assert line["actor"] == {"kind": "mcp_client", "id": enterprise.id, "name": "Assistant"}
    assert enterprise.provider.issuer in line["message"]


async def test_an_asserted_token_is_its_persons_to_see_and_makes_nothing_that_lasts(
    enterprise: Enterprise,
) -> None:
    services = enterprise.byline.services
    token_response = (await enterprise.exchange_assertion(enterprise.sign_assertion(), scope="mcp")).json()
    more = (await enterprise.exchange_assertion(enterprise.sign_assertion())).json()
    bounded_response = (await enterprise.exchange_assertion(enterprise.sign_assertion(scope=None))).json()
    token = (
        await build_gateway_services(services)
        .token_verifiers[MCP_PATH]
        .verify_token(token_response["access_token"])
    )
    elsewhere = (
        await build_gateway_services(services)
        .token_verifiers["/api/v1"]
        .verify_token(token_response["access_token"])
    )
    assert token is not None
    alice = token.principal
    await set_active(services, alice.id, is_active=False)
    stopped_principal = (
        await build_gateway_services(services)
        .token_verifiers[MCP_PATH]
        .verify_token(token_response["access_token"])
    )
    brought = await enterprise.exchange_assertion(enterprise.sign_assertion())
    await set_active(services, alice.id, is_active=True)

    assert (token_response["scope"], more["scope"], bounded_response["scope"]) == (
        "mcp",
        "mcp billing",
        "mcp",
    )
    assert (alice.issuer, alice.subject) == (enterprise.provider.issuer, "alice")
    assert token.in_person is False
    assert elsewhere is None
    assert stopped_principal is None
    assert brought.json()["error"] == "invalid_grant"


REFUSED_ASSERTIONS: dict[str, tuple[Callable[[Enterprise], str], str]] = {
    "made for another server": (
        lambda setup: setup.sign_assertion(aud="https://other.example"),
        "invalid_grant",
    ),
    "made for a resource in the place of the server": (
        lambda setup: setup.sign_assertion(aud=f"{setup.byline.url}/mcp"),
        "invalid_grant",
    ),
    "another issuer's": (lambda setup: setup.sign_assertion(iss="https://evil.example"), "invalid_grant"),
    "signed by somebody else": (
        lambda setup: setup.sign_assertion(key=RSAKey.generate_key(2048)),
        "invalid_grant",
    ),
    "another kind of token": (lambda setup: setup.sign_assertion(typ="JWT"), "invalid_grant"),
    "an access token": (lambda setup: setup.sign_assertion(typ="at+jwt"), "invalid_grant"),
    "issued to another client": (lambda setup: setup.sign_assertion(client_id="another"), "invalid_grant"),
    "issued to nobody": (lambda setup: setup.sign_assertion(client_id=None), "invalid_grant"),
    "expired": (lambda setup: setup.sign_assertion(exp=int(time.time()) - 5), "invalid_grant"),
    "good for a day": (lambda setup: setup.sign_assertion(exp=int(time.time()) + 86_400), "invalid_grant"),
    "without an id": (lambda setup: setup.sign_assertion(jti=None), "invalid_grant"),
    "without a time": (lambda setup: setup.sign_assertion(iat=None), "invalid_grant"),
    "of nobody": (lambda setup: setup.sign_assertion(sub=None), "invalid_grant"),
    "nonsense": (lambda _: "a.b.c", "invalid_grant"),
    "for another resource": (
        lambda setup: setup.sign_assertion(resource="https://other.example/mcp"),
        "invalid_target",
    ),
    "for the API": (
        lambda setup: setup.sign_assertion(resource=f"{setup.byline.url}/api/v1"),
        "invalid_target",
    ),
    "for no resource": (lambda setup: setup.sign_assertion(resource=None), "invalid_target"),
    "for scopes that are none here": (lambda setup: setup.sign_assertion(scope="admin"), "invalid_scope"),
}


@pytest.mark.parametrize("kind", REFUSED_ASSERTIONS)
async def test_an_assertion_is_refused_that_is(kind: str, enterprise: Enterprise) -> None:
    build_assertion, error = REFUSED_ASSERTIONS[kind]
    before = len(await enterprise.list_asserted_events())
    response = await enterprise.exchange_assertion(build_assertion(enterprise))

    assert (response.status_code, response.json()["error"]) == (400, error)
    assert len(await enterprise.list_asserted_events()) == before


async def test_a_request_asks_for_no_more_than_its_assertion_says(enterprise: Enterprise) -> None:
    answers = [
        await enterprise.exchange_assertion(
            enterprise.sign_assertion(), resource="https://other.example/mcp"
        ),
        await enterprise.exchange_assertion(
            enterprise.sign_assertion(), resource=f"{enterprise.byline.url}/api/v1"
        ),
        await enterprise.exchange_assertion(enterprise.sign_assertion(scope="mcp"), scope="mcp billing"),
        await enterprise.exchange_assertion(enterprise.sign_assertion(), scope="admin"),
    ]

    assert [response.json()["error"] for response in answers] == [
        "invalid_target",
        "invalid_target",
        "invalid_scope",
        "invalid_scope",
    ]


async def test_no_other_client_brings_assertions(enterprise: Enterprise) -> None:
    clients = enterprise.byline.gateway_services.oauth_tables.registered_clients
    portal_id, portal_secret = await clients.add_client(
        SHELL, "Portal", ["https://portal.example/"], is_confidential=True, may_assert=False
    )
    backend = await clients.add_backend(SHELL, "Back end", ())
    async with httpx2.AsyncClient(base_url=enterprise.byline.url) as http:
        metadata = {"redirect_uris": [AT_THE_ASSISTANT], "token_endpoint_auth_method": "client_secret_basic"}
        itself = (await http.post("/register", json=metadata)).json()
    answers = [
        await enterprise.exchange_assertion(
            enterprise.sign_assertion(client_id=client_id), (client_id, str(secret))
        )
        for client_id, secret in (
            (portal_id, portal_secret),
            backend,
            (itself["client_id"], itself["client_secret"]),
        )
    ]
    wrong = [
        await enterprise.exchange_assertion(enterprise.sign_assertion(), (enterprise.id, "guessed")),
        await enterprise.exchange_assertion(enterprise.sign_assertion(), ("", "")),
    ]

    assert [(response.status_code, response.json()["error"]) for response in answers] == [
        (400, "unsupported_grant_type")
    ] * 3
    assert [(response.status_code, response.json()["error"]) for response in wrong] == [
        (401, "invalid_client")
    ] * 2


async def test_a_client_that_was_removed_is_let_in_no_more(enterprise: Enterprise) -> None:
    clients = registered_clients_of(enterprise.byline.services)
    client_id, secret = await clients.add_client(
        SHELL, "Other assistant", [], is_confidential=True, may_assert=True
    )
    client = (client_id, str(secret))
    token_response = await enterprise.exchange_assertion(
        enterprise.sign_assertion(client_id=client_id), client
    )
    await clients.remove_client(SHELL, client_id)
    again = await enterprise.exchange_assertion(enterprise.sign_assertion(client_id=client_id), client)

    assert token_response.status_code == 200
    assert (again.status_code, again.json()["error"]) == (401, "invalid_client")
