import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from joserfc import jws
from joserfc.jwk import ECKey, RSAKey

from engine.connections.connection import SHARED_HOLDER, Connection
from engine.errors import ConnectionMisconfigured, RequestRejected, UpstreamUnavailable
from engine.oauth.client import TokenRefused
from engine.oauth.discovery import Discovery
from engine.oauth.dpop import ProofKey, attach_token
from engine.oauth.issuer_metadata import AuthorizationServerMetadata
from engine.oauth.tokens import UpstreamTokens
from engine.outgoing.client import OutgoingClient
from engine.settings import OutgoingSettings
from engine.sign_in.authorization_code import AuthorizationCodeSignIn
from engine.sign_in.jwt_bearer import JwtBearerSignIn
from examples.browser import Browser
from tests.support.foreign.oidc_provider import OidcProvider, RegisteredClient, oidc_provider
from tests.support.hostile_server import build_answer, run_hostile_server
from tests.support.sign_ins import resources

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
CALLBACK = "http://127.0.0.1:1/oauth/callback"
HERE = OutgoingSettings(allow_http=True, allow_private=True)
RSA = RSAKey.generate_key(2048, auto_kid=True)
EC = ECKey.generate_key("P-256", auto_kid=True)
SECRET = secrets.token_urlsafe(24)


def build_client_keys(key: RSAKey | ECKey, algorithm: str) -> Mapping[str, object]:
    return {
        "token_endpoint_auth_method": "private_key_jwt",
        "token_endpoint_auth_signing_alg": algorithm,
        "jwks": {"keys": [key.as_dict(private=False)]},
    }


CLIENTS = [
    RegisteredClient("basic", SECRET, (CALLBACK,)),
    RegisteredClient("post", SECRET, (CALLBACK,), {"token_endpoint_auth_method": "client_secret_post"}),
    RegisteredClient("public", "", (CALLBACK,), {"token_endpoint_auth_method": "none"}),
    RegisteredClient("rsa", "", (CALLBACK,), build_client_keys(RSA, "RS256")),
    RegisteredClient("ec", "", (CALLBACK,), build_client_keys(EC, "ES256")),
    RegisteredClient(
        "robot",
        "",
        (),
        {**build_client_keys(RSA, "RS256"), "grant_types": [JWT_BEARER], "response_types": []},
    ),
    RegisteredClient("pushing", SECRET, (CALLBACK,), {"require_pushed_authorization_requests": True}),
]
ENVIRONMENT = {
    "SECRET": SECRET,
    "RSA": RSA.as_pem(private=True).decode(),
    "EC": json.dumps(EC.as_dict(private=True)),
}
METHODS = {
    "basic": ("client_secret_basic", {"client_secret": {"env": "SECRET"}}),
    "post": ("client_secret_post", {"client_secret": {"env": "SECRET"}}),
    "public": ("none", {}),
    "rsa": ("private_key_jwt", {"client_key": {"env": "RSA"}}),
    "ec": ("private_key_jwt", {"client_key": {"env": "EC"}}),
    "pushing": ("client_secret_basic", {"client_secret": {"env": "SECRET"}}),
}


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcProvider]:
    with oidc_provider(tmp_path_factory.mktemp("oidc"), CLIENTS) as running:
        yield running


@pytest.fixture
async def discovery() -> AsyncIterator[Discovery]:
    async with OutgoingClient(HERE) as outgoing:
        yield Discovery(outgoing)


def declare_connection(client: str, issuer: str, **provider: object) -> Connection:
    """A connection of this client to an issuer, that says no more than it has to."""
    method, secrets_of_it = METHODS[client]
    return Connection.model_validate(
        {
            "name": client,
            "title": "Example",
            "system": "example",
            "mode": "user",
            "base_url": "https://api.example.com",
            "scopes": ["openid", "profile"],
            "client_id": client,
            "provider": {
                "issuer": issuer,
                "token_endpoint_auth_method": method,
                "account_claim": "sub",
                **provider,
            },
            **secrets_of_it,
        }
    )


def consenting(connection: Connection, discovery: Discovery) -> AuthorizationCodeSignIn:
    """The way in which people consent at this connection's provider."""
    return AuthorizationCodeSignIn(
        connection, resources(discovery.outgoing, ENVIRONMENT, discovery=discovery)
    )


async def consent(
    client: AuthorizationCodeSignIn, provider: OidcProvider, connection: Connection
) -> tuple[str, UpstreamTokens]:
    """The address that the browser was sent to, and the tokens that came of Alice's consent there."""
    state, verifier = secrets.token_urlsafe(), secrets.token_urlsafe(48)
    parameters = {"redirect_uri": CALLBACK, "code_verifier": verifier}
    address = await client.build_authorization_url(**parameters, state=state, scopes=connection.scopes)
    async with Browser(stop_at=CALLBACK) as browser:
        page = await provider.let_in(await browser.open(address), "alice")
    answer = parse_qs(urlsplit(page.url).query)
    assert answer["state"] == [state]
    assert answer["iss"] == [provider.issuer]
    return address, await client.exchange_code(
        **parameters, authorization_code=answer["code"][0], requested_scopes=connection.scopes
    )


@pytest.mark.parametrize("name", METHODS)
async def test_a_person_signs_in_at_a_provider_of_which_only_the_issuer_is_declared(
    provider: OidcProvider, discovery: Discovery, name: str
) -> None:
    connection = declare_connection(name, provider.issuer)
    client = consenting(connection, discovery)

    _, tokens = await consent(client, provider, connection)
    account = await client.find_account(tokens)
    renewed_tokens = await client.refresh_tokens(tokens)
    is_revoked = await client.revoke(renewed_tokens)

    assert account == "alice"
    assert renewed_tokens.access_token != tokens.access_token
    assert is_revoked


async def test_a_request_that_is_pushed_beforehand_leaves_nothing_in_the_address_but_its_name(
    provider: OidcProvider, discovery: Discovery
) -> None:
    connection = declare_connection("pushing", provider.issuer)

    address, _ = await consent(
        consenting(connection, discovery),
        provider,
        connection,
    )

    query = parse_qs(urlsplit(address).query)
    assert set(query) == {"client_id", "request_uri"}
    assert query["request_uri"][0].startswith("urn:")


async def test_who_connects_another_account_is_not_led_back_to_the_one_that_the_provider_remembers(
    provider: OidcProvider, discovery: Discovery
) -> None:
    connection = declare_connection("basic", provider.issuer)
    client = consenting(connection, discovery)
    parameters = {"redirect_uri": CALLBACK, "code_verifier": secrets.token_urlsafe(48), "state": "s"}
    usual = await client.build_authorization_url(**parameters, scopes=connection.scopes)
    another = await client.build_authorization_url(**parameters, scopes=connection.scopes, prompt="login")
    endpoints = {f"{name}_endpoint": f"{provider.issuer}/{name}" for name in ("authorization", "token")}
    # Where all is declared nothing is pushed, so that the address tells.
    plain = AuthorizationCodeSignIn(
        declare_connection("basic", provider.issuer, **endpoints),
        resources(discovery.outgoing, ENVIRONMENT, discovery=discovery),
    )
    certain = await plain.build_authorization_url(**parameters, scopes=connection.scopes, login_hint="alice")
    no_openid = await plain.build_authorization_url(**parameters, scopes=("profile",), prompt="login")

    async with Browser(stop_at=CALLBACK) as browser:
        await provider.let_in(await browser.open(usual), "alice")
        remembered_page = await browser.open(usual)
        page = await browser.open(another)

    assert remembered_page.url.startswith(CALLBACK)
    assert 'name="login"' in page.text
    assert parse_qs(urlsplit(certain).query)["login_hint"] == ["alice"]
    assert "prompt" not in parse_qs(urlsplit(no_openid).query)


async def test_what_a_connection_declares_goes_before_what_its_issuer_publishes(
    provider: OidcProvider, discovery: Discovery
) -> None:
    connection = declare_connection("basic", provider.issuer, userinfo_endpoint="https://people.example/me")

    endpoints = await discovery.find_endpoints(connection)

    assert endpoints.userinfo_endpoint == "https://people.example/me"
    assert endpoints.token_endpoint == f"{provider.issuer}/token"


ELSEWHERE = {
    "authorization_endpoint": "https://127.0.0.1/authorize",
    "token_endpoint": "https://127.0.0.1/token",
}


@pytest.mark.parametrize(
    ("metadata", "expected_message"),
    [
        (None, "publishes no metadata"),
        ([], "is no metadata"),
        ({"issuer": "ISSUER"}, "is no metadata"),
        ({**ELSEWHERE, "issuer": "https://else.example"}, "by its own name"),
        (
            {**ELSEWHERE, "issuer": "ISSUER", "code_challenge_methods_supported": ["plain"]},
            "takes no PKCE challenge of method S256",
        ),
    ],
)
async def test_invalid_metadata_is_reported_as_what_it_is(
    discovery: Discovery, metadata: object, expected_message: str
) -> None:
    async with run_hostile_server() as server:
        issuer = server.url.rstrip("/")
        published_body = json.dumps(metadata).replace("ISSUER", issuer).encode()
        server.answers = [build_answer(published_body, status=404 if metadata is None else 200)]
        with pytest.raises(ConnectionMisconfigured, match=expected_message):
            await discovery.find_endpoints(declare_connection("basic", issuer))


async def test_tokens_that_are_bound_to_a_key_are_worth_nothing_without_it(
    provider: OidcProvider, discovery: Discovery
) -> None:
    connection = declare_connection("public", provider.issuer, dpop=True)
    client = consenting(connection, discovery)

    _, tokens = await consent(client, provider, connection)
    renewed_tokens = await client.refresh_tokens(tokens)
    assert tokens.proof_key is not None
    own, another = ProofKey.from_jwk(tokens.proof_key), ProofKey.generate()
    with pytest.raises(TokenRefused):
        await client.refresh_tokens(replace(renewed_tokens, proof_key=another.to_private_jwk()))

    assert await client.find_account(tokens) == "alice"
    assert [await call_with_proof(provider, renewed_tokens, key) for key in (own, another, None)] == [
        200,
        401,
        401,
    ]


async def call_with_proof(provider: OidcProvider, tokens: UpstreamTokens, key: ProofKey | None) -> int:
    """What the provider says to a request that is signed in with these tokens and this key."""
    async with httpx2.AsyncClient() as http:
        request = http.build_request("GET", f"{provider.issuer}/me", params={"of": "me"})
        attach_token(request, tokens.access_token, key)
        return (await http.send(request)).status_code


async def test_a_provider_that_was_to_bind_tokens_and_does_not_connects_nothing(discovery: Discovery) -> None:
    async with run_hostile_server() as server:
        server.answers = [
            build_answer(b'{"access_token": "a", "token_type": "Bearer"}', "Content-Type: application/json")
        ]
        endpoints = {"authorization_endpoint": server.url, "token_endpoint": server.url}
        connection = declare_connection("basic", server.url, dpop=True, **endpoints)
        client = consenting(connection, discovery)

        with pytest.raises(UpstreamUnavailable):
            await client.exchange_code(
                authorization_code="c", redirect_uri=CALLBACK, code_verifier="v", requested_scopes=()
            )


async def test_a_proof_is_made_anew_with_the_nonce_that_is_asked_for(discovery: Discovery) -> None:
    async with run_hostile_server() as server:
        server.answers = [
            build_answer(b'{"error": "use_dpop_nonce"}', "DPoP-Nonce: of-today", status=400),
            build_answer(b'{"access_token": "a", "token_type": "DPoP"}', "Content-Type: application/json"),
        ]
        endpoints = {"authorization_endpoint": server.url, "token_endpoint": server.url}
        connection = declare_connection("basic", server.url, dpop=True, **endpoints)
        client = consenting(connection, discovery)

        tokens = await client.exchange_code(
            authorization_code="c", redirect_uri=CALLBACK, code_verifier="v", requested_scopes=()
        )

    proofs = [
        next(line for line in head.splitlines() if line.lower().startswith("dpop:"))
        for head in server.requests
    ]
    claims = [jws.extract_compact(proof.split(": ")[1].encode()).payload for proof in proofs]
    assert tokens.access_token == "a"
    assert [json.loads(claims_text).get("nonce") for claims_text in claims] == [None, "of-today"]


async def resolve_host(host: str, _port: int) -> list[str]:
    """A resolver by which one host lies inside the network, and every other outside."""
    if host == "inside.example":
        return ["10.0.0.8"]
    return ["93.184.215.14"] if host.endswith(".example") else [host]


@pytest.mark.parametrize(
    "endpoint",
    ["https://169.254.169.254/token", "https://inside.example/token", "http://issuer.example/token"],
)
async def test_an_issuer_may_not_send_byline_into_the_network(endpoint: str) -> None:
    published_metadata = {
        "issuer": "https://issuer.example",
        "authorization_endpoint": "https://issuer.example/authorize",
        "token_endpoint": endpoint,
    }

    async with OutgoingClient(OutgoingSettings(), resolver=resolve_host) as outgoing:
        with pytest.raises(ConnectionMisconfigured, match=r"token_endpoint .* is not called"):
            await Discovery(outgoing)._require_callable_endpoints(
                "basic", AuthorizationServerMetadata.model_validate(published_metadata)
            )


@pytest.mark.parametrize(
    "issuer", ["https://169.254.169.254/latest", "https://127.0.0.1:8443", "http://issuer.example"]
)
async def test_an_issuer_inside_the_network_is_not_asked(issuer: str) -> None:
    async with OutgoingClient(OutgoingSettings()) as outgoing:
        with pytest.raises(ConnectionMisconfigured, match="cannot be asked"):
            await Discovery(outgoing).find_endpoints(declare_connection("basic", issuer))


ENDPOINTS = {"authorization_endpoint": "https://issuer.example/authorize", "token_endpoint": "TOKEN"}


@pytest.mark.parametrize("path", ["exchange", "refresh", "granted", "revoke", "account"])
async def test_no_endpoint_that_is_declared_leads_into_the_network(path: str) -> None:
    async with run_hostile_server() as inside:
        addresses = ("token_endpoint", "revocation_endpoint", "userinfo_endpoint")
        endpoints = {**ENDPOINTS, **dict.fromkeys(addresses, inside.url)}
        connection = declare_connection("basic", "https://issuer.example", **endpoints)
        closed_settings, tokens = OutgoingSettings(allow_http=True), UpstreamTokens("a", "r", None, ())
        async with OutgoingClient(closed_settings) as outgoing:
            client = AuthorizationCodeSignIn(connection, resources(outgoing, ENVIRONMENT))
            asking: dict[str, Callable[[], Awaitable[object]]] = {
                "exchange": lambda: client.exchange_code(
                    authorization_code="c", redirect_uri=CALLBACK, code_verifier="v", requested_scopes=()
                ),
                "refresh": lambda: client.refresh_tokens(tokens),
                "granted": lambda: client.request_tokens("client_credentials", ()),
                "revoke": lambda: client.revoke(tokens),
                "account": lambda: client.find_account(tokens),
            }
            with pytest.raises(ConnectionMisconfigured, match="is not on the public Internet"):
                await asking[path]()

    assert inside.requests == []


async def test_a_sign_in_service_of_ones_own_network_is_called_where_settings_name_its_host() -> None:
    async with run_hostile_server() as inside:
        inside.answers = [build_answer(b'{"access_token": "a"}', "Content-Type: application/json")]
        connection = declare_connection(
            "basic", "https://issuer.example", **{**ENDPOINTS, "token_endpoint": inside.url}
        )
        named_hosts = OutgoingSettings(allow_http=True, private_hosts=("127.0.0.1",))
        async with OutgoingClient(named_hosts) as outgoing:
            client = AuthorizationCodeSignIn(connection, resources(outgoing, ENVIRONMENT))
            tokens = await client.request_tokens("client_credentials", ())

    assert tokens.access_token == "a"


async def test_a_token_endpoint_that_sends_on_to_another_address_is_not_followed(
    discovery: Discovery,
) -> None:
    async with run_hostile_server() as elsewhere, run_hostile_server() as server:
        server.answers = [build_answer(b"", f"Location: {elsewhere.url}", status=307)]
        connection = declare_connection(
            "basic", "https://issuer.example", **{**ENDPOINTS, "token_endpoint": server.url}
        )
        with pytest.raises(RequestRejected, match="redirect, which is not followed"):
            await consenting(connection, discovery).refresh_tokens(UpstreamTokens("a", "r", None, ()))

    assert elsewhere.requests == []


async def test_metadata_that_sends_on_to_the_cloud_s_own_address_is_not_followed(
    discovery: Discovery,
) -> None:
    async with run_hostile_server() as server:
        server.answers = [build_answer(b"", "Location: http://169.254.169.254/latest/meta-data", status=302)]
        with pytest.raises(RequestRejected, match="redirect, which is not followed"):
            await discovery.find_endpoints(declare_connection("basic", server.url.rstrip("/")))

    assert len(server.requests) == 1


def declare_service_account(token_url: str, key: str = "RSA", **assertion: Any) -> Connection:
    """A connection of a service that holds a key."""
    return Connection.model_validate(
        {
            "name": "warehouse",
            "title": "Warehouse",
            "system": "warehouse",
            "mode": "shared",
            "sign_in": "jwt_bearer",
            "base_url": "https://api.example.com",
            "client_id": "robot",
            "client_key": {"env": "RSA"},
            "assertion": {"key": {"env": key}, **assertion},
            "provider": {"issuer": token_url, "token_endpoint_auth_method": "private_key_jwt"},
        }
    )


async def test_a_service_is_let_in_by_what_it_signed(provider: OidcProvider, discovery: Discovery) -> None:
    way = JwtBearerSignIn(
        declare_service_account(provider.issuer), resources(discovery.outgoing, ENVIRONMENT)
    )

    tokens = await way.request_tokens_without_person(SHARED_HOLDER, ())
    assert tokens is not None
    again = await way.renew(SHARED_HOLDER, tokens)

    assert again is not None
    assert tokens.access_token != again.access_token
    assert tokens.refresh_token is None
    assert tokens.expires_at is not None


@pytest.mark.parametrize(
    "assertion", [{"key": "EC"}, {"issuer": "somebody"}, {"audience": "https://elsewhere.example"}]
)
async def test_what_a_stranger_signed_or_for_somebody_else_lets_nobody_in(
    provider: OidcProvider, discovery: Discovery, assertion: dict[str, str]
) -> None:
    way = JwtBearerSignIn(
        declare_service_account(provider.issuer, **assertion), resources(discovery.outgoing, ENVIRONMENT)
    )

    with pytest.raises(TokenRefused, match="invalid_grant"):
        await way.request_tokens_without_person(SHARED_HOLDER, ())


def test_a_statement_says_what_its_connection_declares(discovery: Discovery) -> None:
    declared_here = declare_service_account(
        "https://issuer.example", subject="someone@acme.example", claims={"scope": "read"}
    )
    way = JwtBearerSignIn(declared_here, resources(discovery.outgoing, ENVIRONMENT))

    assertion_parts = jws.extract_compact(way.sign_assertion("https://issuer.example/token").encode())

    payload = json.loads(assertion_parts.payload)
    assert {name: payload[name] for name in ("iss", "sub", "aud", "scope")} == {
        "iss": "robot",
        "sub": "someone@acme.example",
        "aud": "https://issuer.example/token",
        "scope": "read",
    }
    assert payload["exp"] - payload["iat"] == 300
    assert assertion_parts.headers()["kid"] == RSA.kid
