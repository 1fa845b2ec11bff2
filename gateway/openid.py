"""An external OpenID Connect issuer: verifies its tokens and signs a person in there; it stores nothing."""

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jwt import JWTClaimsRegistry
from pydantic import BaseModel, ValidationError

from engine.errors import AuthorizationRefused, IdentityForged, SettingsInvalid, UpstreamUnavailable
from engine.settings import IssuerSettings

_ALGORITHMS = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
    "Ed25519",
)
_LEEWAY_SECONDS = 30
_KEYS_FRESH_SECONDS = 3600.0
# A stranger can invent key ids, so an unknown one makes the keys be read again only this often.
_KEYS_AGAIN_SECONDS = 10.0
_TIMEOUT_SECONDS = 15.0


class IssuerMetadata(BaseModel):
    """What Byline needs of OpenID Connect Discovery 1.0, section 3."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


@dataclass(frozen=True, slots=True)
class SignInAttempt:
    """What a browser session keeps while its person is at the issuer."""

    state: str
    nonce: str
    code_verifier: str


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """The header and claims of a token whose signature, issuer, audience and times hold."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A person as subject and name, and what their sign-in came with; `expires_at` in seconds since the epoch."""

    person: tuple[str, str]
    id_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_at: float


class Issuer:
    """The issuer that settings name, and Byline as its client."""

    def __init__(self, settings: IssuerSettings, http: httpx2.AsyncClient) -> None:
        self.settings = settings
        self._http = http
        self._metadata: IssuerMetadata | None = None
        self._keys: KeySet | None = None
        self._keys_read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def verified(self, token: str, *, audience: str) -> VerifiedToken:
        """The token's claims; raises IdentityForged where anything does not hold."""
        try:
            kid = jws.extract_compact(token.encode()).headers().get("kid")
            decoded = jwt.decode(token, await self._keys_with(kid), algorithms=list(_ALGORITHMS))
            JWTClaimsRegistry(
                leeway=_LEEWAY_SECONDS,
                iss={"essential": True, "value": self.settings.issuer},
                aud={"essential": True, "value": audience},
                sub={"essential": True},
                exp={"essential": True},
            ).validate(decoded.claims)
        except (JoseError, ValueError) as error:
            msg = f"The token of {self.settings.issuer} does not hold."
            raise IdentityForged(msg) from error
        return VerifiedToken(decoded.header, decoded.claims)

    async def begin(self, redirect_uri: str, *, afresh: bool) -> tuple[str, SignInAttempt]:
        """The issuer's page, and what to remember until it answers; `afresh` asks who is there once more."""
        metadata = await self.metadata()
        attempt = SignInAttempt(
            secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48)
        )
        extra = {"prompt": "login"} if afresh else {}
        url, _ = self._client(metadata, redirect_uri).create_authorization_url(
            metadata.authorization_endpoint,
            state=attempt.state,
            nonce=attempt.nonce,
            code_verifier=attempt.code_verifier,
            **extra,
        )
        return str(url), attempt

    async def complete(
        self, parameters: Mapping[str, str], attempt: SignInAttempt, redirect_uri: str
    ) -> SignedIn:
        """Who signed in, and with what; raises AuthorizationRefused for an answer that does not hold."""
        metadata = await self.metadata()
        answered_by = parameters.get("iss")
        if answered_by is None and not metadata.authorization_response_iss_parameter_supported:
            answered_by = metadata.issuer
        if not secrets.compare_digest(parameters.get("state", "").encode(), attempt.state.encode()):
            msg = "This sign-in was begun in another tab or browser."
            raise AuthorizationRefused(msg)
        if answered_by != metadata.issuer:
            msg = f"The answer did not come from {metadata.issuer}."
            raise AuthorizationRefused(msg)
        if not parameters.get("code"):
            msg = f"{metadata.issuer} did not sign you in."
            raise AuthorizationRefused(msg)
        token = await self._exchange(metadata, parameters["code"], attempt, redirect_uri)
        claims = await self._id_claims(token, attempt.nonce)
        name = display_name({**await self._userinfo(metadata, token, claims), **claims})
        refresh_token = token.get("refresh_token")
        return SignedIn(
            (str(claims["sub"]), name),
            id_token=str(token["id_token"]),
            refresh_token=refresh_token if isinstance(refresh_token, str) else None,
            expires_at=float(claims["exp"]),
        )

    async def metadata(self) -> IssuerMetadata:
        """The issuer's metadata, read once; its `issuer` must be the one in settings, letter for letter."""
        if self._metadata is None:
            url = f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration"
            try:
                metadata = IssuerMetadata.model_validate(await self._get(url))
            except ValidationError as error:
                msg = f"{url} is not OpenID Connect metadata. Check BYLINE_GATEWAY__ISSUER__ISSUER."
                raise SettingsInvalid(msg) from error
            if metadata.issuer != self.settings.issuer:
                msg = f"The issuer calls itself {metadata.issuer}: set BYLINE_GATEWAY__ISSUER__ISSUER to exactly that."
                raise SettingsInvalid(msg)
            self._metadata = metadata
        return self._metadata

    async def _exchange(
        self, metadata: IssuerMetadata, code: str, attempt: SignInAttempt, redirect_uri: str
    ) -> Mapping[str, Any]:
        try:
            async with self._client(metadata, redirect_uri) as client:
                token: Mapping[str, Any] = await client.fetch_token(
                    metadata.token_endpoint, code=code, code_verifier=attempt.code_verifier
                )
        except OAuthError as error:
            msg = f"{metadata.issuer} did not accept the sign-in ({error.error})."
            raise AuthorizationRefused(msg) from None
        except (httpx2.HTTPError, ValueError) as error:
            raise self._unreachable(error) from None
        return token

    async def _id_claims(self, token: Mapping[str, Any], nonce: str) -> Mapping[str, Any]:
        try:
            id_token = await self.verified(str(token.get("id_token")), audience=self.settings.client_id)
        except IdentityForged as error:
            raise AuthorizationRefused(str(error)) from error
        claims = id_token.claims
        authorized_party = claims.get("azp", self.settings.client_id)
        if claims.get("nonce") != nonce or authorized_party != self.settings.client_id:
            msg = f"The identity that {self.settings.issuer} sent was made for another sign-in."
            raise AuthorizationRefused(msg)
        return claims

    async def _userinfo(
        self, metadata: IssuerMetadata, token: Mapping[str, Any], claims: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        if metadata.userinfo_endpoint is None or claims.get("name"):
            return {}
        found = await self._get(metadata.userinfo_endpoint, str(token["access_token"]))
        return found if isinstance(found, dict) and found.get("sub") == claims["sub"] else {}

    async def _keys_with(self, kid: str | None) -> KeySet:
        if self._keys is not None and not self._must_read_keys(kid):
            return self._keys
        async with self._reading:
            if self._keys is None or self._must_read_keys(kid):
                self._keys_read_at, keys = time.monotonic(), await self._read_keys()
                self._keys = keys
        return self._keys

    def _must_read_keys(self, kid: str | None) -> bool:
        age = time.monotonic() - self._keys_read_at
        known = self._keys is not None and (kid is None or any(key.kid == kid for key in self._keys))
        return age > (_KEYS_FRESH_SECONDS if known else _KEYS_AGAIN_SECONDS)

    async def _read_keys(self) -> KeySet:
        document = await self._get(self.settings.jwks_uri or (await self.metadata()).jwks_uri)
        try:
            return KeySet.import_key_set(document)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            msg = f"The keys of {self.settings.issuer} are not a JSON Web Key Set."
            raise UpstreamUnavailable(msg) from error

    async def _get(self, url: str, access_token: str | None = None) -> Any:
        headers = {"Accept": "application/json"}
        if access_token is not None:
            headers["Authorization"] = f"Bearer {access_token}"
        try:
            response = await self._http.get(url, headers=headers, timeout=_TIMEOUT_SECONDS)
            response.raise_for_status()
            return response.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> UpstreamUnavailable:
        return UpstreamUnavailable(
            f"The sign-in service {self.settings.issuer} does not answer ({type(error).__name__})."
        )

    def _client(self, metadata: IssuerMetadata, redirect_uri: str) -> AsyncOAuth2Client:
        secret = self.settings.client_secret
        basic = "client_secret_basic" in metadata.token_endpoint_auth_methods_supported
        with_secret = "client_secret_basic" if basic else "client_secret_post"
        return AsyncOAuth2Client(
            client_id=self.settings.client_id,
            client_secret=None if secret is None else secret.get_secret_value(),
            token_endpoint_auth_method="none" if secret is None else with_secret,
            code_challenge_method="S256",
            redirect_uri=redirect_uri,
            scope=self.settings.scope,
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
        )


def display_name(claims: Mapping[str, Any]) -> str:
    """What to call a person on pages and in the trail (OpenID Connect Core 1.0, section 5.1)."""
    for claim in ("name", "preferred_username", "email"):
        if isinstance(claims.get(claim), str) and claims[claim]:
            return str(claims[claim])
    return str(claims["sub"])
