import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from joserfc import jwt
from pydantic import SecretStr

from engine.identity.model import Actor, Principal
from engine.settings import IssuerSettings
from engine.vault.resealing import reseal_column
from engine.wire import ACCESS_TOKEN_TYPE, IDENTITY_TYPE
from gateway.authorization_server.claims import FAMILY_CLAIM
from gateway.authorization_server.clients import ClientInformation
from gateway.authorization_server.consents import ClientConsents
from gateway.authorization_server.registered_clients import TOKEN_EXCHANGE_GRANT_TYPE, RegisteredClients
from gateway.bearer.principal_token import PrincipalToken
from gateway.protected_resource import API_PATH
from gateway.toolsets import MCP_PATH
from tests.foreign.oidc_provider import Client as ClientThere
from tests.foreign.oidc_provider import OidcProvider, oidc_provider
from tests.foreign.process import free_port
from tests.pages import Byline, serving
from tests.rest import consented

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"


@dataclass(frozen=True)
class Portal:
    """A back end that an administrator registered, and its user Alice."""

    byline: Byline
    id: str
    secret: str
    alice: Principal

    def claims(self, **changed: object) -> dict[str, Any]:
        """What the built-in server says of Alice in a token for the API, but for what is changed."""
        return {
            "iss": self.byline.url,
            "aud": f"{self.byline.url}{API_PATH}",
            "sub": self.alice.subject,
            "client_id": "a web page",
            "scope": "mcp",
            "exp": int(time.time()) + 3600,
            FAMILY_CLAIM: "family",
            **changed,
        }

    async def signed(self, typ: str = ACCESS_TOKEN_TYPE, **changed: object) -> str:
        claims = {name: value for name, value in self.claims(**changed).items() if value is not None}
        return await self.byline.services.signing_keys.sign_claims(claims, typ)

    async def exchange(self, subject_token: str, **changed: str) -> httpx2.Response:
        """Ask for a token with this one."""
        return await exchange(self.byline, (self.id, self.secret), subject_token, **changed)

    async def seen(self, token: str, path: str = API_PATH) -> PrincipalToken | None:
        """What a resource makes of a token."""
        return await self.byline.gateway_services.token_verifiers[path].verify_token(token)

    async def trail(self) -> list[dict[str, Any]]:
        lines = await self.byline.services.trail.find_lines()
        return [line.event for line in lines if line.kind == "token.exchanged"]


async def exchange(
    byline: Byline, client: tuple[str, str] | None, subject_token: str, **changed: str
) -> httpx2.Response:
    form = {
        "grant_type": TOKEN_EXCHANGE_GRANT_TYPE,
        "subject_token": subject_token,
        "subject_token_type": ACCESS_TOKEN,
        **changed,
    }
    async with httpx2.AsyncClient(base_url=byline.url, auth=client) as http:
        return await http.post("/token", data=form)


@pytest.fixture
async def portal(tmp_path: Path) -> AsyncIterator[Portal]:
    async with serving(tmp_path) as byline:
        client_id, secret = await byline.gateway_services.oauth_tables.registered_clients.add_backend(
            "Portal", ()
        )
        alice = await byline.services.principals.resolve_principal(
            byline.url, "alice's subject", "Alice Liddell"
        )
        web_page = ClientInformation(client_id="a web page", redirect_uris=None)
        consent = replace(consented(alice, web_page, f"{byline.url}{API_PATH}"), id="family")
        await ClientConsents(byline.services.database).store_consent(consent)
        yield Portal(byline, client_id, secret, alice)


@pytest.mark.parametrize("path", [API_PATH, MCP_PATH])
async def test_a_back_end_acts_for_its_user_and_both_are_named(portal: Portal, path: str) -> None:
    asked = f"{portal.byline.url}{path}"
    response = await portal.exchange(await portal.signed(), resource=asked)

    issued = response.json()
    assert response.status_code == 200, response.text
    assert response.headers["Cache-Control"] == "no-store"
    assert (issued["issued_token_type"], issued["token_type"]) == (ACCESS_TOKEN, "Bearer")
    assert 0 < issued["expires_in"] <= 300
    assert "refresh_token" not in issued
    token = await portal.seen(issued["access_token"], path)
    assert token is not None
    assert token.principal == portal.alice
    assert token.actor == Actor("api_client", portal.id, "Portal")
    assert not token.in_person
    assert await portal.seen(issued["access_token"], MCP_PATH if path == API_PATH else API_PATH) is None
    (line,) = await portal.trail()
    assert line["principal"]["id"] == portal.alice.id
    assert line["actor"] == {"kind": "api_client", "id": portal.id, "name": "Portal"}


async def test_the_api_takes_an_exchanged_token_and_a_challenge_tells_clients_where(portal: Portal) -> None:
    issued = (await portal.exchange(await portal.signed(), audience=f"{portal.byline.url}/mcp")).json()

    seen = await portal.byline.whoami(issued["access_token"])

    assert seen.json()["principal"] == portal.alice.id
    assert seen.json()["client"] == portal.id
    async with httpx2.AsyncClient(base_url=portal.byline.url) as http:
        metadata = (await http.get("/.well-known/oauth-authorization-server")).json()
    assert TOKEN_EXCHANGE_GRANT_TYPE in metadata["grant_types_supported"]


async def test_an_exchanged_token_does_not_outlive_the_token_it_came_of(portal: Portal) -> None:
    issued = (await portal.exchange(await portal.signed(exp=int(time.time()) + 60))).json()

    assert issued["expires_in"] <= 60


@pytest.mark.parametrize(
    "changed",
    [
        {"aud": "https://elsewhere.example/api"},
        {"aud": None},
        {"iss": "https://elsewhere.example"},
        {"sub": "nobody known here"},
        {"exp": 1_700_000_000},
        {"exp": None},
        {"client_id": None},
        {"act": {"sub": "another back end"}},
        {"may_act": {"sub": "another back end"}},
        {"may_act": "anybody"},
        {"typ": IDENTITY_TYPE},
        {FAMILY_CLAIM: "withdrawn"},
        {FAMILY_CLAIM: None},
    ],
    ids=str,
)
async def test_a_subject_token_is_refused_that_is_not_as_it_should_be(
    portal: Portal, changed: dict[str, Any]
) -> None:
    response = await portal.exchange(await portal.signed(**changed))

    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")
    assert await portal.trail() == []


async def test_no_other_kind_of_token_is_taken_for_a_subject(portal: Portal) -> None:
    api_token = await portal.byline.services.api_tokens.create_token(portal.alice, "reports")
    issued = (await portal.exchange(await portal.signed())).json()["access_token"]
    other = await portal.byline.gateway_services.oauth_tables.registered_clients.add_backend("Unrelated", ())
    service = await portal.byline.services.service_principals.add_service("nightly")
    header, body, signature = (await portal.signed()).split(".")

    refused = [
        await portal.exchange(api_token.token_text),
        await portal.exchange(issued),
        await exchange(portal.byline, other, issued),
        await portal.exchange(await portal.signed(sub=service.subject)),
        await portal.exchange(f"{header}.{body}.{signature[::-1]}"),
        await portal.exchange(f"{header}.{body}."),
        await portal.exchange("nonsense"),
        await portal.exchange(""),
        await portal.exchange(await portal.signed(), subject_token_type=ID_TOKEN),
        await portal.exchange(await portal.signed(), subject_token_type="anything"),
        await portal.exchange(await portal.signed(), actor_token="mine"),
        await portal.exchange(await portal.signed(), requested_token_type=ID_TOKEN),
    ]

    assert {(each.status_code, each.json()["error"]) for each in refused} == {(400, "invalid_request")}


async def test_a_user_who_was_stopped_is_acted_for_no_more(portal: Portal) -> None:
    issued = (await portal.exchange(await portal.signed())).json()["access_token"]
    await portal.byline.services.principals.set_active(portal.alice.id, is_active=False)

    assert await portal.seen(issued) is None
    assert (await portal.exchange(await portal.signed())).json()["error"] == "invalid_request"


async def test_a_back_end_that_was_removed_acts_for_nobody(portal: Portal) -> None:
    issued = (await portal.exchange(await portal.signed())).json()["access_token"]
    await portal.byline.gateway_services.oauth_tables.registered_clients.remove_client(portal.id)

    assert await portal.seen(issued) is None
    response = await portal.exchange(await portal.signed())
    assert (response.status_code, response.json()["error"]) == (401, "invalid_client")


@pytest.mark.parametrize("target", ["resource", "audience"])
async def test_a_token_for_another_resource_is_not_issued(portal: Portal, target: str) -> None:
    answers = [
        await portal.exchange(await portal.signed(), **{target: "https://elsewhere.example/api"}),
        await portal.exchange(await portal.signed(), **{target: portal.byline.url}),
        await portal.exchange(
            await portal.signed(),
            resource=f"{portal.byline.url}{API_PATH}",
            audience=f"{portal.byline.url}{MCP_PATH}",
        ),
    ]

    assert {(each.status_code, each.json()["error"]) for each in answers} == {(400, "invalid_target")}


async def test_only_a_back_end_that_an_administrator_registered_exchanges_tokens(portal: Portal) -> None:
    stated = {
        "redirect_uris": ["http://127.0.0.1:45678/callback"],
        "grant_types": ["authorization_code", TOKEN_EXCHANGE_GRANT_TYPE],
        "token_endpoint_auth_method": "client_secret_basic",
        "client_name": "Portal",
        "backend": {"audiences": []},
        "byline_backend": {"audiences": []},
    }
    async with httpx2.AsyncClient(base_url=portal.byline.url) as http:
        registered = (await http.post("/register", json=stated)).raise_for_status().json()
    subject = await portal.signed()

    himself = await exchange(portal.byline, (registered["client_id"], registered["client_secret"]), subject)
    wrong = [
        await exchange(portal.byline, (portal.id, "guessed"), subject),
        await exchange(portal.byline, (portal.id, ""), subject),
        await exchange(portal.byline, ("unknown", portal.secret), subject),
        await exchange(portal.byline, ("", ""), subject),
        await exchange(portal.byline, None, subject),
        await exchange(portal.byline, None, subject, client_id=portal.id, client_secret=portal.secret),
    ]

    assert (himself.status_code, himself.json()["error"]) == (400, "unauthorized_client")
    assert {(each.status_code, each.json()["error"]) for each in wrong} == {(401, "invalid_client")}
    assert all(each.headers["WWW-Authenticate"].startswith("Basic") for each in wrong)
    assert [
        client.client_name
        for client in await portal.byline.gateway_services.oauth_tables.registered_clients.list_clients()
    ] == ["Portal"]


async def test_a_back_end_gets_no_token_in_any_other_way(portal: Portal) -> None:
    async with httpx2.AsyncClient(base_url=portal.byline.url, auth=(portal.id, portal.secret)) as http:
        answers = [
            await http.post("/token", data={"grant_type": "client_credentials"}),
            await http.post("/token", data={"grant_type": "refresh_token", "refresh_token": "x"}),
        ]
        asked = await http.get("/authorize", params={"client_id": portal.id, "response_type": "code"})

    assert all(each.status_code in {400, 401} and "access_token" not in each.text for each in answers)
    assert asked.status_code == 400


async def test_a_secret_of_a_back_end_is_sealed_again_with_every_other(portal: Portal) -> None:
    services = portal.byline.services
    await services.data_keys.rotate_key()

    assert (
        await reseal_column(
            services.database,
            services.vault,
            RegisteredClients(services.database, services.vault).sealed_column,
            lambda *_: None,
        )
        == 1
    )
    assert (await portal.exchange(await portal.signed())).status_code == 200


@dataclass(frozen=True)
class Foreign:
    """A back end of an installation whose people an external provider signs in."""

    byline: Byline
    provider: OidcProvider
    client: tuple[str, str]

    def signed(self, typ: str | None = "JWT", **changed: object) -> str:
        """What the provider says of Alice to the back end, but for what is changed."""
        claims = {
            "iss": self.provider.issuer,
            "aud": "portal",
            "sub": "alice",
            "name": "Alice Example",
            "iat": int(time.time()),
            "exp": int(time.time()) + 600,
            **changed,
        }
        header = {"alg": "RS256", "kid": self.provider.key.kid, **({} if typ is None else {"typ": typ})}
        return jwt.encode(header, claims, self.provider.key)

    async def exchange(self, subject_token: str, kind: str = ID_TOKEN) -> httpx2.Response:
        return await exchange(self.byline, self.client, subject_token, subject_token_type=kind)


@pytest.fixture
async def foreign(tmp_path: Path) -> AsyncIterator[Foreign]:
    port = free_port()
    callback = f"http://127.0.0.1:{port}/sign-in/callback"
    with oidc_provider(tmp_path, [ClientThere("byline", "byline-secret", (callback,))], ["mcp"]) as provider:
        issuer = IssuerSettings(
            issuer=provider.issuer,
            audience=f"http://127.0.0.1:{port}/mcp",
            client_id="byline",
            client_secret=SecretStr("byline-secret"),
        )
        async with serving(tmp_path, port=port, issuer=issuer) as byline:
            client = await byline.gateway_services.oauth_tables.registered_clients.add_backend(
                "Portal", ["portal", "portal-api"]
            )
            yield Foreign(byline, provider, client)


async def test_with_an_external_issuer_a_back_end_brings_what_was_issued_to_it(foreign: Foreign) -> None:
    by_id_token = await foreign.exchange(foreign.signed(typ=None))
    by_access_token = await foreign.exchange(foreign.signed(typ="at+jwt", aud="portal-api"), ACCESS_TOKEN)

    alice = await foreign.byline.services.principals.find_by_subject(foreign.provider.issuer, "alice")
    assert alice is not None
    for response in (by_id_token, by_access_token):
        assert response.status_code == 200, response.text
        token = await foreign.byline.gateway_services.token_verifiers[API_PATH].verify_token(
            response.json()["access_token"]
        )
        assert token is not None
        assert (token.principal, token.actor.name) == (alice, "Portal")
    lines = [
        line for line in await foreign.byline.services.trail.find_lines() if line.kind == "token.exchanged"
    ]
    assert {line.event["principal"]["name"] for line in lines} == {"Alice Example"}


async def test_with_an_external_issuer_nothing_is_taken_that_was_issued_for_somebody_else(
    foreign: Foreign,
) -> None:
    gateway = f"{foreign.byline.url}/mcp"
    unrelated = await foreign.byline.gateway_services.oauth_tables.registered_clients.add_backend(
        "Unrelated", ["unrelated"]
    )
    refused = [
        await foreign.exchange(foreign.signed(aud="another client")),
        await foreign.exchange(foreign.signed(aud=gateway), ACCESS_TOKEN),
        await foreign.exchange(foreign.signed(aud=["portal", "x"], azp="x")),
        await foreign.exchange(foreign.signed(exp=int(time.time()) - 5)),
        await foreign.exchange(foreign.signed(typ="logout+jwt")),
        await foreign.exchange(foreign.signed(events={"back-channel logout": {}})),
        await foreign.exchange(foreign.signed(act={"sub": "x"}), ACCESS_TOKEN),
        await foreign.exchange(foreign.signed(may_act={"sub": "x"})),
        await foreign.exchange(foreign.signed(typ="at+jwt")),
        await exchange(foreign.byline, unrelated, foreign.signed(), subject_token_type=ID_TOKEN),
    ]

    assert {(each.status_code, each.json()["error"]) for each in refused} == {(400, "invalid_request")}
    assert await foreign.byline.services.principals.find_by_subject(foreign.provider.issuer, "alice") is None


async def test_with_an_external_issuer_the_token_endpoint_serves_back_ends_alone(foreign: Foreign) -> None:
    async with httpx2.AsyncClient(base_url=foreign.byline.url) as http:
        other = await http.post("/token", data={"grant_type": "authorization_code", "code": "x"})
        registration = await http.post("/register", json={})
    claims = {
        "iss": foreign.byline.url,
        "aud": f"{foreign.byline.url}/mcp",
        "sub": secrets.token_hex(4),
        "client_id": "chat",
        "scope": "mcp",
        "exp": int(time.time()) + 60,
    }
    without_act = await foreign.byline.services.signing_keys.sign_claims(claims, ACCESS_TOKEN_TYPE)

    assert (other.status_code, other.json()["error"]) == (400, "unsupported_grant_type")
    assert registration.status_code == 404
    assert await foreign.byline.gateway_services.token_verifiers[MCP_PATH].verify_token(without_act) is None
