import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from engine.errors import IdentityForged, SettingsInvalid, UpstreamUnavailable
from engine.outgoing.client import OutgoingClient
from engine.settings import IssuerSettings, OutgoingSettings
from gateway.sign_in.issuer_keys import IssuerKeys
from tests.support.receivers import serve_application

pytestmark = pytest.mark.enable_socket

AUDIENCE = "https://byline.example/mcp"
KEY = RSAKey.generate_key(2048, {"kid": "first"})
HERE = OutgoingSettings(allow_http=True, allow_private=True)


@dataclass
class StubProvider:
    """An OpenID provider of this machine, which counts what it is asked."""

    issuer: str
    keys: IssuerKeys
    own_issuer: str
    is_down: bool = False
    redirects_to: str | None = None
    request_paths: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        path = Request(scope).url.path
        self.request_paths.append(path)
        await self._answer(path)(scope, receive, send)

    def _answer(self, path: str) -> Response:
        if self.is_down:
            return Response("down", 503)
        if self.redirects_to is not None:
            return Response(status_code=302, headers={"Location": self.redirects_to})
        if path == "/jwks":
            return JSONResponse({"keys": [KEY.as_dict(private=False)]})
        endpoints = {name: f"{self.issuer}/{name}" for name in ("authorization_endpoint", "token_endpoint")}
        return JSONResponse({"issuer": self.own_issuer, "jwks_uri": f"{self.issuer}/jwks", **endpoints})

    def token(self, **changes: Any) -> str:
        claims = {"iss": self.issuer, "aud": AUDIENCE, "sub": "alice", "exp": int(time.time()) + 60}
        return jwt.encode({"alg": "RS256", "kid": "first"}, {**claims, **changes}, KEY)


@asynccontextmanager
async def provider(outgoing: OutgoingSettings = HERE, *, suffix: str = "") -> AsyncIterator[StubProvider]:
    """A provider, called by its address and what `suffix` adds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        issuer = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = IssuerSettings(issuer=issuer, audience=AUDIENCE, client_id="byline")
        async with OutgoingClient(outgoing) as client:
            stub_provider = StubProvider(issuer, IssuerKeys(settings, client), f"{issuer}{suffix}")
            async with serve_application(stub_provider, listener):
                yield stub_provider


async def test_a_whole_token_is_taken_and_the_keys_are_read_once() -> None:
    async with provider() as issuer_provider:
        verified_tokens = [
            await issuer_provider.keys.verify_token(issuer_provider.token(), audience=AUDIENCE)
            for _ in range(3)
        ]

    assert [token.claims["sub"] for token in verified_tokens] == ["alice"] * 3
    assert [
        issuer_provider.request_paths.count(path) for path in ("/.well-known/openid-configuration", "/jwks")
    ] == [1, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other.example"},
        {"iss": "https://127.0.0.1"},
        {"aud": "https://other.example/mcp"},
        {"aud": []},
        {"aud": None},
        {"exp": 1},
        {"exp": None},
        {"exp": "tomorrow"},
        {"sub": None},
        {"sub": 5},
        {"nbf": 1 << 40},
    ],
)
async def test_a_token_whose_claims_do_not_hold_is_refused(changes: dict[str, Any]) -> None:
    async with provider() as issuer_provider:
        with pytest.raises(IdentityForged):
            await issuer_provider.keys.verify_token(issuer_provider.token(**changes), audience=AUDIENCE)


async def test_the_public_key_is_no_shared_secret() -> None:
    public = OctKey.import_key(KEY.as_pem(private=False).replace(b"-----", b""), {"kid": "first"})
    async with provider() as issuer_provider:
        claims = {
            "iss": issuer_provider.issuer,
            "aud": AUDIENCE,
            "sub": "alice",
            "exp": int(time.time()) + 60,
        }
        forged_token = jwt.encode({"alg": "HS256", "kid": "first"}, claims, public)
        with pytest.raises(IdentityForged):
            await issuer_provider.keys.verify_token(forged_token, audience=AUDIENCE)


async def test_invented_key_ids_do_not_make_byline_ask_the_issuer_again_and_again() -> None:
    stranger = RSAKey.generate_key(2048)
    async with provider() as issuer_provider:
        await issuer_provider.keys.verify_token(issuer_provider.token(), audience=AUDIENCE)
        for number in range(5):
            token = jwt.encode(
                {"alg": "RS256", "kid": f"invented-{number}"}, {"iss": issuer_provider.issuer}, stranger
            )
            with pytest.raises(IdentityForged):
                await issuer_provider.keys.verify_token(token, audience=AUDIENCE)

    assert issuer_provider.request_paths.count("/jwks") == 1


async def test_an_issuer_that_calls_itself_something_else_is_a_setting_to_mend() -> None:
    async with provider(suffix="/") as issuer_provider:
        with pytest.raises(SettingsInvalid, match="BYLINE_GATEWAY__ISSUER__ISSUER"):
            await issuer_provider.keys.verify_token(issuer_provider.token(), audience=AUDIENCE)


async def test_an_issuer_that_is_down_is_no_reason_to_call_a_token_forged() -> None:
    async with provider() as issuer_provider:
        issuer_provider.is_down = True
        with pytest.raises(UpstreamUnavailable):
            await issuer_provider.keys.verify_token(issuer_provider.token(), audience=AUDIENCE)


async def test_an_issuer_whose_metadata_lead_elsewhere_is_not_followed() -> None:
    async with provider() as inside, provider() as issuer_provider:
        issuer_provider.redirects_to = f"{inside.issuer}/latest/meta-data"
        with pytest.raises(UpstreamUnavailable, match="redirect"):
            await issuer_provider.keys.verify_token(issuer_provider.token(), audience=AUDIENCE)

    assert inside.request_paths == []


async def test_an_issuer_inside_the_network_is_a_host_to_name_in_settings() -> None:
    async with provider(OutgoingSettings(allow_http=True)) as issuer_provider:
        with pytest.raises(SettingsInvalid, match="BYLINE_OUTGOING__PRIVATE_HOSTS"):
            await issuer_provider.keys.verify_token(issuer_provider.token(), audience=AUDIENCE)
    async with provider(OutgoingSettings(allow_http=True, private_hosts=("127.0.0.1",))) as named_provider:
        verified_token = await named_provider.keys.verify_token(named_provider.token(), audience=AUDIENCE)

    assert issuer_provider.request_paths == []
    assert verified_token.claims["sub"] == "alice"
