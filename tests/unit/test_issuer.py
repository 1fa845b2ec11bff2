import time
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from engine.errors import IdentityForged, SettingsInvalid, UpstreamUnavailable
from engine.settings import IssuerSettings
from gateway.sign_in.issuer_keys import IssuerKeys

ISSUER, AUDIENCE = "https://issuer.example", "https://byline.example/mcp"


@dataclass
class Provider:
    """An OpenID provider behind a transport, which counts what it is asked."""

    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "first"}))
    name: str = ISSUER
    asked: list[str] = field(default_factory=list)

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.url.path)
        if request.url.path == "/jwks":
            return httpx2.Response(200, json={"keys": [self.key.as_dict(private=False)]})
        endpoints = {name: f"{ISSUER}/{name}" for name in ("authorization_endpoint", "token_endpoint")}
        return httpx2.Response(200, json={"issuer": self.name, "jwks_uri": f"{ISSUER}/jwks", **endpoints})

    def issuer(self) -> IssuerKeys:
        settings = IssuerSettings(issuer=ISSUER, audience=AUDIENCE, client_id="byline")
        return IssuerKeys(settings, httpx2.AsyncClient(transport=httpx2.MockTransport(self.answer)))

    def token(self, **changed: Any) -> str:
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": int(time.time()) + 60}
        return jwt.encode({"alg": "RS256", "kid": "first"}, {**claims, **changed}, self.key)


async def test_a_whole_token_is_taken_and_the_keys_are_read_once() -> None:
    provider = Provider()
    issuer = provider.issuer()
    verified = [await issuer.verified(provider.token(), audience=AUDIENCE) for _ in range(3)]

    assert [token.claims["sub"] for token in verified] == ["alice"] * 3
    assert provider.asked == ["/.well-known/openid-configuration", "/jwks"]


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://other.example"},
        {"iss": f"{ISSUER}/"},
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
async def test_a_token_whose_claims_do_not_hold_is_refused(changed: dict[str, Any]) -> None:
    provider = Provider()

    with pytest.raises(IdentityForged):
        await provider.issuer().verified(provider.token(**changed), audience=AUDIENCE)


async def test_the_public_key_is_no_shared_secret() -> None:
    provider = Provider()
    public = OctKey.import_key(provider.key.as_pem(private=False).replace(b"-----", b""), {"kid": "first"})
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": int(time.time()) + 60}
    forged = jwt.encode({"alg": "HS256", "kid": "first"}, claims, public)

    with pytest.raises(IdentityForged):
        await provider.issuer().verified(forged, audience=AUDIENCE)


async def test_invented_key_ids_do_not_make_byline_ask_the_issuer_again_and_again() -> None:
    provider = Provider()
    issuer = provider.issuer()
    await issuer.verified(provider.token(), audience=AUDIENCE)
    for number in range(5):
        stranger = RSAKey.generate_key(2048, {"kid": f"invented-{number}"})
        token = jwt.encode({"alg": "RS256", "kid": f"invented-{number}"}, {"iss": ISSUER}, stranger)
        with pytest.raises(IdentityForged):
            await issuer.verified(token, audience=AUDIENCE)

    assert provider.asked.count("/jwks") == 1


async def test_an_issuer_that_calls_itself_something_else_is_a_setting_to_mend() -> None:
    provider = Provider(name=f"{ISSUER}/")

    with pytest.raises(SettingsInvalid, match="BYLINE_GATEWAY__ISSUER__ISSUER"):
        await provider.issuer().verified(provider.token(), audience=AUDIENCE)


async def test_an_issuer_that_is_down_is_no_reason_to_call_a_token_forged() -> None:
    provider = Provider()
    settings = IssuerSettings(issuer=ISSUER, audience=AUDIENCE, client_id="byline")
    down = httpx2.MockTransport(lambda _: httpx2.Response(503))

    with pytest.raises(UpstreamUnavailable):
        await IssuerKeys(settings, httpx2.AsyncClient(transport=down)).verified(
            provider.token(), audience=AUDIENCE
        )
