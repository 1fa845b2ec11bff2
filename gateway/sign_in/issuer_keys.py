"""Reads the metadata and keys of an OpenID Connect issuer, and verifies its tokens. It signs nobody in."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jwt import JWTClaimsRegistry
from pydantic import BaseModel, ValidationError

from engine.errors import (
    AddressRefused,
    IdentityForged,
    RequestRejected,
    SettingsInvalid,
    UpstreamUnavailable,
)
from engine.outgoing.client import Outgoing
from engine.settings import AssertionIssuerSettings, IssuerSettings

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
# A stranger can invent key ids, so the keys are read again for an unknown one only this often.
_KEYS_AGAIN_SECONDS = 10.0


class IssuerMetadata(BaseModel):
    """The fields that Byline reads of OpenID Connect Discovery 1.0, section 3."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """The header and claims of a token whose signature, issuer, audience and times were verified."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]


class IssuerKeys:
    """The keys of an issuer that settings name, read when they are needed."""

    def __init__(self, settings: IssuerSettings | AssertionIssuerSettings, outgoing: Outgoing) -> None:
        self.issuer = settings.issuer
        self._jwks_uri = settings.jwks_uri
        signs_in = isinstance(settings, IssuerSettings)
        self._setting = f"BYLINE_GATEWAY__{'ISSUER__ISSUER' if signs_in else 'ASSERTION_ISSUERS'}"
        self._outgoing = outgoing
        self._metadata: IssuerMetadata | None = None
        self._keys: KeySet | None = None
        self._keys_read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def verified(self, token: str, *, audience: str | None) -> VerifiedToken:
        """Verify a token and return its header and claims. With `audience` None, any audience is accepted.

        Raises IdentityForged where anything is invalid, and UpstreamUnavailable where the keys cannot be read.
        """
        try:
            kid = jws.extract_compact(token.encode()).headers().get("kid")
            decoded = jwt.decode(token, await self._keys_with(kid), algorithms=list(_ALGORITHMS))
            JWTClaimsRegistry(
                leeway=_LEEWAY_SECONDS,
                iss={"essential": True, "value": self.issuer},
                aud={"essential": True} if audience is None else {"essential": True, "value": audience},
                sub={"essential": True},
                exp={"essential": True},
            ).validate(decoded.claims)
        except (JoseError, ValueError) as error:
            raise IdentityForged(f"The token of {self.issuer} does not hold.") from error
        return VerifiedToken(decoded.header, decoded.claims)

    async def metadata(self) -> IssuerMetadata:
        """Return the issuer's metadata, read once. Its `issuer` must equal the one in settings exactly."""
        if self._metadata is None:
            url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
            try:
                metadata = IssuerMetadata.model_validate(await self.get(url))
            except ValidationError as error:
                raise SettingsInvalid(
                    f"{url} is not OpenID Connect metadata. Check {self._setting}."
                ) from error
            if metadata.issuer != self.issuer:
                raise SettingsInvalid(
                    f"The issuer calls itself {metadata.issuer}: set {self._setting} to exactly that."
                )
            self._metadata = metadata
        return self._metadata

    async def get(self, url: str, access_token: str | None = None) -> Any:
        """Return the JSON at one of the issuer's URLs.

        Raises UpstreamUnavailable where there is none, and SettingsInvalid where the URL may not be called.
        """
        headers = {"Accept": "application/json"}
        if access_token is not None:
            headers["Authorization"] = f"Bearer {access_token}"
        try:
            answer = await self._outgoing.send("GET", url, headers=headers)
        except AddressRefused as error:
            raise self.not_called(error) from None
        except (RequestRejected, UpstreamUnavailable) as error:
            raise self.unreachable(error) from None
        if answer.status != 200:
            raise self.unreachable(f"{url} gives {answer.status}.")
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError):
            raise self.unreachable(f"{url} gives no JSON.") from None

    def not_called(self, error: AddressRefused) -> SettingsInvalid:
        """Return the error for a URL of the issuer that may not be called."""
        return SettingsInvalid(f"The sign-in service {self.issuer} is not called: {error}")

    def unreachable(self, reason: object) -> UpstreamUnavailable:
        """Return the error for an issuer that did not answer as it should."""
        return UpstreamUnavailable(
            f"The sign-in service {self.issuer} does not answer as it should: {reason}"
        )

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
        document = await self.get(self._jwks_uri or (await self.metadata()).jwks_uri)
        try:
            return KeySet.import_key_set(document)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise UpstreamUnavailable(f"The keys of {self.issuer} are not a JSON Web Key Set.") from error
