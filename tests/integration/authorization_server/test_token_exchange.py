import base64
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

from engine.db.tables import OAuthClientRow
from engine.identity.model import Actor, Principal
from engine.settings import IssuerSettings
from engine.vault.resealing import reseal_columns
from engine.wire import ACCESS_TOKEN_TYPE, IDENTITY_TYPE
from gateway.authorization_server.claims import FAMILY_CLAIM
from gateway.authorization_server.clients import ClientInformation
from gateway.authorization_server.consents import ClientConsents
from gateway.authorization_server.registered_clients import TOKEN_EXCHANGE_GRANT_TYPE
from gateway.bearer.principal_token import PrincipalToken
from gateway.protected_resource import API_PATH
from gateway.toolsets import MCP_PATH
from tests.support.administration import (
    SHELL,
    add_service,
    registered_clients_of,
    rotate_data_key,
    set_active,
)
from tests.support.api_server import build_consent
from tests.support.foreign.oidc_provider import OidcProvider, oidc_provider
from tests.support.foreign.oidc_provider import RegisteredClient as ClientThere
from tests.support.foreign.process import free_port
from tests.support.page_server import PageServer, serve_pages

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"


@dataclass(frozen=True)
class Portal:
    """A back end that an administrator registered, and its user Alice."""

    byline: PageServer
    id: str
    secret: str
    alice: Principal

    def build_claims(self, **changes: object) -> dict[str, Any]:
        """What the built-in server says of Alice in a token for the API, but for what is changed."""
        return {
            "iss": self.byline.url,
            "aud": f"{self.byline.url}{API_PATH}",
            "sub": self.alice.subject,
            "client_id": "a web page",
            "scope": "mcp",
            "exp": int(time.time()) + 3600,
            FAMILY_CLAIM: "family",
            **changes,
        }

    async def sign_subject_token(self, typ: str = ACCESS_TOKEN_TYPE, **changes: object) -> str:
        claims = {name: value for name, value in self.build_claims(**changes).items() if value is not None}
        return await self.byline.services.signing_keys.sign_claims(claims, typ)

    async def exchange_token(self, subject_token: str, **changes: str) -> httpx2.Response:
        """Ask for a token with this one."""
        return await exchange_token(self.byline, (self.id, self.secret), subject_token, **changes)

    async def verify_token(self, token: str, path: str = API_PATH) -> PrincipalToken | None:
        """What a resource makes of a token."""
        return await self.byline.gateway_services.token_verifiers[path].verify_token(token)

    async def list_events(self) -> list[dict[str, Any]]:
        lines = await self.byline.services.trail.find_lines()
        return [line.event for line in lines if line.kind == "token.exchanged"]


async def exchange_token(
    byline: PageServer, client: tuple[str, str] | None, subject_token: str, **changes: str
) -> httpx2.Response:
    form = {
        "grant_type": TOKEN_EXCHANGE_GRANT_TYPE,
        "subject_token": subject_token,
        "subject_token_type": ACCESS_TOKEN,
        **changes,
    }
    async with httpx2.AsyncClient(base_url=byline.url, auth=client) as http:
        return await http.post("/token", data=form)


@pytest.fixture
async def portal(tmp_path: Path) -> AsyncIterator[Portal]:
    async with serve_pages(tmp_path) as byline:
        client_id, secret = await registered_clients_of(byline.services).add_backend(SHELL, "Portal", ())
        alice = await byline.services.principals.resolve_principal(
            byline.url, "alice's subject", "Alice Liddell"
        )
        web_page = ClientInformation(client_id="a web page", redirect_uris=None)
        consent = replace(build_consent(alice, web_page, f"{byline.url}{API_PATH}"), id="family")
        await ClientConsents(byline.services.database).store_consent(consent)
        yield Portal(byline, client_id, secret, alice)


@pytest.mark.parametrize("path", [API_PATH, MCP_PATH])
async def test_a_back_end_acts_for_its_user_and_both_are_named(portal: Portal, path: str) -> None:
    resource = f"{portal.byline.url}{path}"
    response = await portal.exchange_token(await portal.sign_subject_token(), resource=resource)

    token_response = response.json()
    assert response.status_code == 200, response.text
    assert response.headers["Cache-Control"] == "no-store"
    assert (token_response["issued_token_type"], token_response["token_type"]) == (ACCESS_TOKEN, "Bearer")
    assert 0 < token_response["expires_in"] <= 300
    assert "refresh_token" not in token_response
    token = await portal.verify_token(token_response["access_token"], path)
    assert token is not None
    assert token.principal == portal.alice
    assert token.actor == Actor("api_client", portal.id, "Portal")
    assert not token.in_person
    assert (
        await portal.verify_token(token_response["access_token"], MCP_PATH if path == API_PATH else API_PATH)
        is None
    )
    (line,) = await portal.list_events()
    assert line["principal"]["id"] == portal.alice.id
    assert line["actor"] == {"kind": "api_client", "id": portal.id, "name": "Portal"}


async def test_the_api_takes_an_exchanged_token_and_a_challenge_names_its_metadata(portal: Portal) -> None:
    token_response = (
        await portal.exchange_token(await portal.sign_subject_token(), audience=f"{portal.byline.url}/mcp")
    ).json()

    whoami_response = await portal.byline.fetch_whoami(token_response["access_token"])

    assert whoami_response.json()["principal"] == portal.alice.id
    assert whoami_response.json()["client"] == portal.id
    async with httpx2.AsyncClient(base_url=portal.byline.url) as http:
        metadata = (await http.get("/.well-known/oauth-authorization-server")).json()
    assert TOKEN_EXCHANGE_GRANT_TYPE in metadata["grant_types_supported"]


async def test_an_exchanged_token_does_not_outlive_the_token_it_came_of(portal: Portal) -> None:
    token_response = (
        await portal.exchange_token(await portal.sign_subject_token(exp=int(time.time()) + 60))
    ).json()

    assert token_response["expires_in"] <= 60


@pytest.mark.parametrize(
    "changes",
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
    portal: Portal, changes: dict[str, Any]
) -> None:
    response = await portal.exchange_token(await portal.sign_subject_token(**changes))

    assert (response.status_code, response.json()["error"]) == (400, "invalid_request")
    assert await portal.list_events() == []


async def test_no_other_kind_of_token_is_taken_for_a_subject(portal: Portal) -> None:
    api_token = await portal.byline.services.api_tokens.create_token(portal.alice, "reports")
    token_response = (await portal.exchange_token(await portal.sign_subject_token())).json()["access_token"]
    other = await registered_clients_of(portal.byline.services).add_backend(SHELL, "Unrelated", ())
    service = await add_service(portal.byline.services, "nightly")
    header, body, signature = (await portal.sign_subject_token()).split(".")

    refusals = [
        await portal.exchange_token(api_token.token_text),
        await portal.exchange_token(token_response),
        await exchange_token(portal.byline, other, token_response),
        await portal.exchange_token(await portal.sign_subject_token(sub=service.subject)),
        await portal.exchange_token(f"{header}.{body}.{signature[::-1]}"),
        await portal.exchange_token(f"{header}.{body}."),
        await portal.exchange_token("nonsense"),
        await portal.exchange_token(""),
        await portal.exchange_token(await portal.sign_subject_token(), subject_token_type=ID_TOKEN),
        await portal.exchange_token(await portal.sign_subject_token(), subject_token_type="anything"),
        await portal.exchange_token(await portal.sign_subject_token(), actor_token="mine"),
        await portal.exchange_token(await portal.sign_subject_token(), requested_token_type=ID_TOKEN),
    ]

    assert {(response.status_code, response.json()["error"]) for response in refusals} == {
        (400, "invalid_request")
    }


async def test_a_user_who_was_stopped_is_acted_for_no_more(portal: Portal) -> None:
    token_response = (await portal.exchange_token(await portal.sign_subject_token())).json()["access_token"]
    await set_active(portal.byline.services, portal.alice.id, is_active=False)

    assert await portal.verify_token(token_response) is None
    assert (await portal.exchange_token(await portal.sign_subject_token())).json()[
        "error"
    ] == "invalid_request"


async def test_a_back_end_that_was_removed_acts_for_nobody(portal: Portal) -> None:
    token_response = (await portal.exchange_token(await portal.sign_subject_token())).json()["access_token"]
    await registered_clients_of(portal.byline.services).remove_client(SHELL, portal.id)

    assert await portal.verify_token(token_response) is None
    response = await portal.exchange_token(await portal.sign_subject_token())
    assert (response.status_code, response.json()["error"]) == (401, "invalid_client")


@pytest.mark.parametrize("target", ["resource", "audience"])
async def test_a_token_for_another_resource_is_not_issued(portal: Portal, target: str) -> None:
    answers = [
        await portal.exchange_token(
            await portal.sign_subject_token(), **{target: "https://elsewhere.example/api"}
        ),
        await portal.exchange_token(await portal.sign_subject_token(), **{target: portal.byline.url}),
        await portal.exchange_token(
            await portal.sign_subject_token(),
            resource=f"{portal.byline.url}{API_PATH}",
            audience=f"{portal.byline.url}{MCP_PATH}",
        ),
    ]

    assert {(response.status_code, response.json()["error"]) for response in answers} == {
        (400, "invalid_target")
    }


async def test_only_a_back_end_that_an_administrator_registered_exchanges_tokens(portal: Portal) -> None:
    client_metadata = {
        "redirect_uris": ["http://127.0.0.1:45678/callback"],
        "grant_types": ["authorization_code", TOKEN_EXCHANGE_GRANT_TYPE],
        "token_endpoint_auth_method": "client_secret_basic",
        "client_name": "Portal",
        "backend": {"audiences": []},
        "byline_backend": {"audiences": []},
    }
    async with httpx2.AsyncClient(base_url=portal.byline.url) as http:
        registration = (await http.post("/register", json=client_metadata)).raise_for_status().json()
    subject = await portal.sign_subject_token()

    himself = await exchange_token(
        portal.byline, (registration["client_id"], registration["client_secret"]), subject
    )
    wrong = [
        await exchange_token(portal.byline, (portal.id, "guessed"), subject),
        await exchange_token(portal.byline, (portal.id, ""), subject),
        await exchange_token(portal.byline, ("unknown", portal.secret), subject),
        await exchange_token(portal.byline, ("", ""), subject),
        await exchange_token(portal.byline, None, subject),
        await exchange_token(portal.byline, None, subject, client_id=portal.id, client_secret=portal.secret),
    ]

    assert (himself.status_code, himself.json()["error"]) == (400, "unauthorized_client")
    assert {(response.status_code, response.json()["error"]) for response in wrong} == {
        (401, "invalid_client")
    }
    assert all(response.headers["WWW-Authenticate"].startswith("Basic") for response in wrong)
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
        authorize_response = await http.get(
            "/authorize", params={"client_id": portal.id, "response_type": "code"}
        )

    assert all(
        response.status_code in {400, 401} and "access_token" not in response.text for response in answers
    )
    assert authorize_response.status_code == 400


async def test_a_secret_of_a_back_end_is_sealed_again_with_every_other(portal: Portal) -> None:
    services = portal.byline.services
    await rotate_data_key(services)

    await reseal_columns(services.database, services.vault, lambda *_: None)

    async with services.database.open_read_session() as session:
        client = await session.get(OAuthClientRow, portal.id)
    assert client is not None
    sealed = base64.b64decode(client.metadata_["byline_sealed_secret"])
    assert await services.vault.has_current_key(sealed)
    assert (await portal.exchange_token(await portal.sign_subject_token())).status_code == 200


@dataclass(frozen=True)
class ForeignBackEnd:
    """A back end of an installation whose people an external provider signs in."""

    byline: PageServer
    provider: OidcProvider
    client: tuple[str, str]

    def sign_id_token(self, typ: str | None = "JWT", **changes: object) -> str:
        """What the provider says of Alice to the back end, but for what is changed."""
        claims = {
            "iss": self.provider.issuer,
            "aud": "portal",
            "sub": "alice",
            "name": "Alice Example",
            "iat": int(time.time()),
            "exp": int(time.time()) + 600,
            **changes,
        }
        header = {"alg": "RS256", "kid": self.provider.key.kid, **({} if typ is None else {"typ": typ})}
        return jwt.encode(header, claims, self.provider.key)

    async def exchange_token(self, subject_token: str, kind: str = ID_TOKEN) -> httpx2.Response:
        return await exchange_token(self.byline, self.client, subject_token, subject_token_type=kind)


@pytest.fixture
async def foreign(tmp_path: Path) -> AsyncIterator[ForeignBackEnd]:
    port = free_port()
    callback = f"http://127.0.0.1:{port}/sign-in/callback"
    with oidc_provider(tmp_path, [ClientThere("byline", "byline-secret", (callback,))], ["mcp"]) as provider:
        issuer = IssuerSettings(
            issuer=provider.issuer,
            audience=f"http://127.0.0.1:{port}/mcp",
            client_id="byline",
            client_secret=SecretStr("byline-secret"),
        )
        async with serve_pages(tmp_path, port=port, issuer=issuer) as byline:
            client = await registered_clients_of(byline.services).add_backend(
                SHELL, "Portal", ["portal", "portal-api"]
            )
            yield ForeignBackEnd(byline, provider, client)


async def test_with_an_external_issuer_a_back_end_brings_what_was_issued_to_it(
    foreign: ForeignBackEnd,
) -> None:
    by_id_token = await foreign.exchange_token(foreign.sign_id_token(typ=None))
    by_access_token = await foreign.exchange_token(
        foreign.sign_id_token(typ="at+jwt", aud="portal-api"), ACCESS_TOKEN
    )

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
    foreign: ForeignBackEnd,
) -> None:
    gateway = f"{foreign.byline.url}/mcp"
    unrelated_client = await registered_clients_of(foreign.byline.services).add_backend(
        SHELL, "Unrelated", ["unrelated"]
    )
    refusals = [
        await foreign.exchange_token(foreign.sign_id_token(aud="another client")),
        await foreign.exchange_token(foreign.sign_id_token(aud=gateway), ACCESS_TOKEN),
        await foreign.exchange_token(foreign.sign_id_token(aud=["portal", "x"], azp="x")),
        await foreign.exchange_token(foreign.sign_id_token(exp=int(time.time()) - 5)),
        await foreign.exchange_token(foreign.sign_id_token(typ="logout+jwt")),
        await foreign.exchange_token(foreign.sign_id_token(events={"back-channel logout": {}})),
        await foreign.exchange_token(foreign.sign_id_token(act={"sub": "x"}), ACCESS_TOKEN),
        await foreign.exchange_token(foreign.sign_id_token(may_act={"sub": "x"})),
        await foreign.exchange_token(foreign.sign_id_token(typ="at+jwt")),
        await exchange_token(
            foreign.byline, unrelated_client, foreign.sign_id_token(), subject_token_type=ID_TOKEN
        ),
    ]

    assert {(response.status_code, response.json()["error"]) for response in refusals} == {
        (400, "invalid_request")
    }
    assert await foreign.byline.services.principals.find_by_subject(foreign.provider.issuer, "alice") is None


async def test_with_an_external_issuer_the_token_endpoint_serves_back_ends_alone(
    foreign: ForeignBackEnd,
) -> None:
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
