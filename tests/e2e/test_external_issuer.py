import asyncio
import base64
import hmac
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from joserfc import jwt
from joserfc.jwk import RSAKey
from mcp.shared.auth import OAuthClientInformationFull
from pydantic import AnyUrl
from typing_extensions import override

from examples.browser import Page
from examples.chat import Person, open_chat
from gateway.dev.stack import EmbeddedStack
from tests.e2e.installation import (
    BUILDER,
    BYLINE,
    COLLECT,
    TOOL,
    choose_ports,
    install_package,
    next_link,
    read_result,
    run_command,
)
from tests.support.foreign.kinto import Kinto, build_user_id, kinto_server
from tests.support.foreign.oidc_provider import OidcProvider, RegisteredClient, oidc_provider
from tests.support.mcp_requests import call_tool

RECORD = "crm/accounts/acme"
SCOPED_TOOL = "resolve_billing_dispute"
BACK = "http://127.0.0.1:9/back-to-the-client"
# One that registers itself there gets no more scopes than it registered for.
CHAT = OAuthClientInformationFull(
    client_id="chat", redirect_uris=[AnyUrl(BACK)], token_endpoint_auth_method="none"
)
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
PATH = "/buckets/crm/collections/accounts/records/acme"


@dataclass(frozen=True)
class ExternalIssuerSetup:
    """Byline as nothing but a resource server of a provider that others wrote, at which people sign in to Kinto too."""

    stack: EmbeddedStack
    provider: OidcProvider
    kinto: Kinto

    def build_claims(self, **changes: object) -> dict[str, Any]:
        """What the provider says of Alice in a token for this gateway, but for what is changed."""
        now = int(time.time())
        return {
            "iss": self.provider.issuer,
            "aud": self.stack.mcp_url,
            "sub": "alice",
            "client_id": "a chat client",
            "scope": "mcp",
            "iat": now - 900,
            "exp": now + 600,
            "jti": secrets.token_hex(8),
            **changes,
        }

    def sign_claims(self, claims: dict[str, Any], key: RSAKey | None = None) -> str:
        """A token as the provider signs it, or as somebody with another key would."""
        header = {"alg": "RS256", "typ": "at+jwt", "kid": self.provider.key.kid}
        return jwt.encode(header, claims, key or self.provider.key)

    async def call_tool(self, token: str) -> httpx2.Response:
        """What the gateway makes of a token."""
        return await call_tool(self.stack.mcp_url, token, COLLECT, {"run_id": "none"})


@dataclass(kw_only=True)
class ProviderPerson(Person):
    """Somebody whom Byline knows through the provider alone."""

    provider: OidcProvider

    @override
    async def sign_in(self, url: str) -> str:
        assert url.startswith(f"{self.provider.issuer}/")
        return (await self.open(url)).url

    @override
    async def open(self, url: str) -> Page:
        return await self.provider.let_in(await self.browser.open(url), self.username)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def issuer_setup(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ExternalIssuerSetup]:
    folder = tmp_path_factory.mktemp("external")
    of_sign_in, of_kinto = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    policy = folder / "policy.yml"
    policy.write_text(f"tools: {{{SCOPED_TOOL}: {{scope: crm}}}}\n")
    environment = {
        **os.environ,
        **choose_ports(),
        "BYLINE_POLICY_FILE": str(policy),
        "BYLINE_GATEWAY__ISSUER__SCOPES": '["mcp"]',
        "PYTHONPATH": await install_package(BUILDER, folder / "site"),
        "BYLINE_CONNECTIONS_FILE": str(BUILDER / "connections.yml"),
        "KINTO_CLIENT_SECRET": of_kinto,
    }
    async with EmbeddedStack(
        folder / "data", environment=environment, report_progress=lambda _: None
    ) as stack:
        clients = (
            RegisteredClient("byline-sign-in", of_sign_in, (f"{stack.gateway_url}/sign-in/callback",)),
            RegisteredClient(CHAT.client_id, "", (BACK,), {"token_endpoint_auth_method": "none"}),
            RegisteredClient("byline", of_kinto, (f"{stack.gateway_url}/oauth/callback",)),
        )
        with (
            oidc_provider(folder, clients, ["mcp", "crm"]) as provider,
            kinto_server(folder, provider.issuer) as kinto,
        ):
            kinto.add_collection("crm", "accounts")
            environment |= {
                "BYLINE_GATEWAY__ISSUER__ISSUER": provider.issuer,
                "BYLINE_GATEWAY__ISSUER__AUDIENCE": stack.mcp_url,
                "BYLINE_GATEWAY__ISSUER__CLIENT_ID": "byline-sign-in",
                "BYLINE_GATEWAY__ISSUER__CLIENT_SECRET": of_sign_in,
                "KINTO_URL": kinto.url,
                "KINTO_ISSUER": provider.issuer,
            }
            for name in BYLINE:
                await stack.start_service(name)
                await stack.wait_until_ready(name)
            yield ExternalIssuerSetup(stack, provider, kinto)


async def test_a_person_of_the_provider_is_discovered_signed_in_and_obeyed(
    issuer_setup: ExternalIssuerSetup,
) -> None:
    issuer_setup.kinto.add_record(PATH, {}, writers=["alice"])
    alice = ProviderPerson("alice", "", provider=issuer_setup.provider)
    async with open_chat(alice, issuer_setup.stack.mcp_url) as client, asyncio.TaskGroup() as group:
        calling = group.create_task(client.call_tool(TOOL, {"record": RECORD, "note": "pays on time"}))
        question = await alice.open(await next_link(alice))
        page = await issuer_setup.provider.let_in(await question.form(submit="Continue"), "alice")
        alice.has_signed_in.set()

    trail = (sys.executable, "-m", "gateway.cli", "audit", "--record", f"kinto:record/{RECORD}", "--writes")
    audit_output = await run_command(trail, issuer_setup.stack.build_environment("gateway"))
    assert alice.tokens.tokens is not None
    token_claims = jwt.decode(alice.tokens.tokens.access_token, issuer_setup.provider.key).claims
    assert (token_claims["iss"], token_claims["aud"]) == (
        issuer_setup.provider.issuer,
        issuer_setup.stack.mcp_url,
    )
    assert "Signed in as <strong>" in question.text
    assert "Kinto is connected" in page.text
    assert read_result(calling.result()) == {"record": RECORD, "notes": ["pays on time"]}
    assert issuer_setup.kinto.list_history(PATH)[0]["user_id"] == build_user_id("alice")
    assert f"(alice at {issuer_setup.provider.issuer})" in audit_output
    assert "account    alice" in audit_output


async def test_a_tool_that_takes_more_scope_has_the_client_ask_the_provider_for_it(
    issuer_setup: ExternalIssuerSetup,
) -> None:
    bob = ProviderPerson("bob", "", provider=issuer_setup.provider)
    bob.tokens.client = CHAT
    async with open_chat(bob, issuer_setup.stack.mcp_url, elicitation=False) as client:
        await client.list_tools()
        assert bob.tokens.tokens is not None
        first = jwt.decode(bob.tokens.tokens.access_token, issuer_setup.provider.key).claims["scope"]
        call_result = read_result(await client.call_tool(SCOPED_TOOL, {"account_id": "of no form"}))
        then = jwt.decode(bob.tokens.tokens.access_token, issuer_setup.provider.key).claims["scope"]
    of_the_api = await issuer_setup.call_tool(
        issuer_setup.sign_claims(issuer_setup.build_claims(aud=f"{issuer_setup.stack.gateway_url}/api/v1"))
    )
    without = await issuer_setup.call_tool(
        issuer_setup.sign_claims(issuer_setup.build_claims(scope="openid"))
    )

    assert (first, then) == ("mcp", "mcp crm")
    assert call_result["error"] == "arguments_invalid"
    assert of_the_api.status_code == 401
    assert without.status_code == 403
    assert 'scope="openid mcp"' in without.headers["www-authenticate"]


async def test_a_link_that_another_person_of_the_provider_opens_is_refused(
    issuer_setup: ExternalIssuerSetup,
) -> None:
    issuer_setup.kinto.add_record(PATH, {}, writers=["alice"])
    bob = ProviderPerson("bob", "", provider=issuer_setup.provider)
    async with open_chat(bob, issuer_setup.stack.mcp_url, elicitation=False) as client:
        waits = read_result(await client.call_tool(TOOL, {"record": RECORD, "note": "x"}))
    somebody_else = ProviderPerson("alice", "", provider=issuer_setup.provider)
    page = await somebody_else.open(waits["links"][0]["url"])

    assert page.status == 403
    assert "This link was made for somebody else" in page.text


async def test_the_provider_alone_issues_tokens(issuer_setup: ExternalIssuerSetup) -> None:
    refusal = await call_tool(issuer_setup.stack.mcp_url, None, COLLECT, {})
    place = f"{issuer_setup.stack.gateway_url}/.well-known/oauth-protected-resource/mcp"
    async with httpx2.AsyncClient(base_url=issuer_setup.stack.gateway_url) as http:
        metadata = (await http.get(place)).json()
        at_the_root = (await http.get("/.well-known/oauth-protected-resource")).json()
        built_in = [
            (await http.get(path)).status_code
            for path in (
                "/.well-known/oauth-authorization-server",
                "/authorize",
                "/authorize/1",
                "/sign-in?next=/",
            )
        ]
        status_by_path = {
            path: (await http.post(path)).status_code for path in ("/register", "/revoke", "/sign-in")
        }
        code = await http.post("/token", data={"grant_type": "authorization_code", "code": "x"})
        assertion = await http.post("/token", data={"grant_type": JWT_BEARER, "assertion": "x"})

    assert refusal.status_code == 401
    assert f'resource_metadata="{place}"' in refusal.headers["www-authenticate"]
    assert metadata["resource"] == issuer_setup.stack.mcp_url
    assert metadata["authorization_servers"] == [issuer_setup.provider.issuer]
    assert metadata["scopes_supported"] == ["mcp", "crm"]
    assert at_the_root == metadata
    assert 'scope="mcp"' in refusal.headers["www-authenticate"]
    assert built_in == [404, 404, 404, 303]
    assert status_by_path == {"/register": 404, "/revoke": 404, "/sign-in": 404}
    assert {code.json()["error"], assertion.json()["error"]} == {"unsupported_grant_type"}


async def test_a_token_that_the_provider_signed_for_this_gateway_is_taken(
    issuer_setup: ExternalIssuerSetup,
) -> None:
    call_response = await issuer_setup.call_tool(issuer_setup.sign_claims(issuer_setup.build_claims()))
    among_others = await issuer_setup.call_tool(
        issuer_setup.sign_claims(
            issuer_setup.build_claims(aud=["https://other.example", issuer_setup.stack.mcp_url])
        )
    )

    assert (call_response.status_code, among_others.status_code) == (200, 200)
    assert "You have no run" in call_response.text


def _sign_without(claim: str) -> Callable[[ExternalIssuerSetup], str]:
    def sign(issuer_setup: ExternalIssuerSetup) -> str:
        claims = issuer_setup.build_claims()
        del claims[claim]
        return issuer_setup.sign_claims(claims)

    return sign


def _sign_by_hand(header: dict[str, str | None], claims: dict[str, Any], secret: bytes | None) -> str:
    """A token that no sensible library writes."""
    parts = [json.dumps(part).encode() for part in (header, claims)]
    body = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = b"" if secret is None else hmac.digest(secret, body, "sha256")
    return f"{body.decode()}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def _sign_with_public_key_as_secret(issuer_setup: ExternalIssuerSetup) -> str:
    key = issuer_setup.provider.key
    return _sign_by_hand(
        {"alg": "HS256", "typ": "at+jwt", "kid": key.kid},
        issuer_setup.build_claims(),
        key.as_pem(private=False),
    )


def _remove_signature(issuer_setup: ExternalIssuerSetup) -> str:
    return _sign_by_hand(
        {"alg": "none", "typ": "at+jwt", "kid": issuer_setup.provider.key.kid},
        issuer_setup.build_claims(),
        None,
    )


def _alter_payload(issuer_setup: ExternalIssuerSetup) -> str:
    header, _, signature = issuer_setup.sign_claims(issuer_setup.build_claims()).split(".")
    _, claims, _ = issuer_setup.sign_claims(issuer_setup.build_claims(sub="bob")).split(".")
    return f"{header}.{claims}.{signature}"


def _issue_by_built_in_server(issuer_setup: ExternalIssuerSetup) -> str:
    return issuer_setup.sign_claims(issuer_setup.build_claims(iss=issuer_setup.stack.gateway_url))


REFUSED_TOKENS: dict[str, Callable[[ExternalIssuerSetup], str]] = {
    "made for another server": lambda issuer_setup: issuer_setup.sign_claims(
        issuer_setup.build_claims(aud="https://other.example/mcp")
    ),
    "made for the origin": lambda issuer_setup: issuer_setup.sign_claims(
        issuer_setup.build_claims(aud=issuer_setup.stack.gateway_url)
    ),
    "made for a client": lambda issuer_setup: issuer_setup.sign_claims(
        issuer_setup.build_claims(aud="byline-sign-in")
    ),
    "expired": lambda issuer_setup: issuer_setup.sign_claims(
        issuer_setup.build_claims(exp=int(time.time()) - 120)
    ),
    "not valid yet": lambda issuer_setup: issuer_setup.sign_claims(
        issuer_setup.build_claims(nbf=int(time.time()) + 600)
    ),
    "another issuer's": lambda issuer_setup: issuer_setup.sign_claims(
        issuer_setup.build_claims(iss="https://evil.example")
    ),
    "the built-in issuer's": _issue_by_built_in_server,
    "another key's": lambda issuer_setup: issuer_setup.sign_claims(
        issuer_setup.build_claims(), RSAKey.generate_key(2048)
    ),
    "signed with the public key as a secret": _sign_with_public_key_as_secret,
    "not signed": _remove_signature,
    "altered": _alter_payload,
    "for nobody": _sign_without("sub"),
    "for no server": _sign_without("aud"),
    "for ever": _sign_without("exp"),
    "no token at all": lambda _: "invented",
}


@pytest.mark.parametrize("kind", REFUSED_TOKENS)
async def test_a_token_is_refused_that_is(kind: str, issuer_setup: ExternalIssuerSetup) -> None:
    refusal = await issuer_setup.call_tool(REFUSED_TOKENS[kind](issuer_setup))

    assert refusal.status_code == 401
    assert 'error="invalid_token"' in refusal.headers["www-authenticate"]
