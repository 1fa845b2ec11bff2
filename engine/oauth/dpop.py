"""DPoP (RFC 9449): binds the tokens of each grant to a key of its own, and adds tokens to requests."""

import hashlib
import json
import secrets
import time
from base64 import urlsafe_b64encode
from typing import Final, Self

import httpx2
from joserfc import jwt
from joserfc.jwk import ECKey

from engine.connections.connection import BEARER_PLACE, TokenPlace

_ALGORITHM: Final = "ES256"


class ProofKey:
    """The key to which a grant's tokens are bound."""

    def __init__(self, signing_key: ECKey) -> None:
        self._signing_key = signing_key

    @classmethod
    def generate(cls) -> Self:
        """Return a new key."""
        return cls(ECKey.generate_key("P-256"))

    @classmethod
    def from_jwk(cls, jwk_text: str) -> Self:
        """Read a key that `to_private_jwk` wrote."""
        return cls(ECKey.import_key(json.loads(jwk_text)))

    def to_private_jwk(self) -> str:
        """Return the private key as JWK text, to be sealed with the tokens that are bound to it."""
        return json.dumps(self._signing_key.as_dict(private=True))

    def create_proof(
        self,
        http_method: str,
        request_url: httpx2.URL,
        *,
        access_token: str | None = None,
        nonce: str | None = None,
    ) -> str:
        """Return the `DPoP` header of one request (RFC 9449 section 4.2), with the token hash if there is a token."""
        claims: dict[str, object] = {
            "jti": secrets.token_urlsafe(16),
            "htm": http_method,
            "htu": str(request_url.copy_with(query=None, fragment=None)),
            "iat": int(time.time()),
        }
        if access_token is not None:
            token_digest = hashlib.sha256(access_token.encode()).digest()
            claims["ath"] = urlsafe_b64encode(token_digest).rstrip(b"=").decode()
        if nonce is not None:
            claims["nonce"] = nonce
        jws_header = {"alg": _ALGORITHM, "typ": "dpop+jwt", "jwk": self._signing_key.as_dict(private=False)}
        return jwt.encode(jws_header, claims, self._signing_key, algorithms=[_ALGORITHM])


class DpopTransport(httpx2.AsyncBaseTransport):
    """Adds a DPoP proof to every request to an authorization server.

    If the server asks for a nonce, the request is sent once more with it (RFC 9449 section 8).
    """

    def __init__(self, proof_key: ProofKey, inner_transport: httpx2.AsyncBaseTransport) -> None:
        self._proof_key = proof_key
        self._inner_transport = inner_transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request with a proof."""
        request.headers["DPoP"] = self._proof_key.create_proof(request.method, request.url)
        response = await self._inner_transport.handle_async_request(request)
        server_nonce = response.headers.get("DPoP-Nonce")
        if response.status_code not in {400, 401} or server_nonce is None:
            return response
        await response.aclose()
        request.headers["DPoP"] = self._proof_key.create_proof(
            request.method, request.url, nonce=server_nonce
        )
        return await self._inner_transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the inner transport."""
        await self._inner_transport.aclose()


def attach_token(
    request: httpx2.Request,
    access_token: str,
    proof_key: ProofKey | None,
    *,
    nonce: str | None = None,
    token_place: TokenPlace = BEARER_PLACE,
) -> None:
    """Add an access token to a request to an upstream.

    A token that is bound to a key is sent with a DPoP proof (RFC 9449 section 7). Any other token is sent in the header
    that `token_place` names, by default as a bearer token (RFC 6750).
    """
    if proof_key is None:
        request.headers[token_place.header_name] = f"{token_place.value_prefix}{access_token}"
        return
    request.headers["Authorization"] = f"DPoP {access_token}"
    request.headers["DPoP"] = proof_key.create_proof(
        request.method, request.url, access_token=access_token, nonce=nonce
    )


def find_required_nonce(response: httpx2.Response) -> str | None:
    """Return the nonce that an upstream requires in the proof (RFC 9449 section 9), or None if it requires none."""
    is_nonce_required = (
        response.status_code == httpx2.codes.UNAUTHORIZED
        and "use_dpop_nonce" in response.headers.get("WWW-Authenticate", "")
    )
    return response.headers.get("DPoP-Nonce") if is_nonce_required else None
