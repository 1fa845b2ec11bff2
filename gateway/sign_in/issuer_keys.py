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
from pydantic import ValidationError

from engine.errors import (
    AddressRefused,
    IdentityForged,
    RequestRejected,
    SettingsInvalid,
    UpstreamUnavailable,
)
from engine.identity.claims import VerifiedClaims
from engine.oauth.issuer_metadata import (
    IssuerMismatched,
    OpenIdMetadata,
    build_openid_url,
    validate_metadata,
)
from engine.outgoing.client import OutgoingClient
from engine.settings import AssertionIssuerSettings, IssuerSettings

_SIGNING_ALGORITHMS = (
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
_KEY_CACHE_SECONDS = 3600.0
# Anybody can send an invented key id, so an unknown one makes Byline read the keys again only this often.
_KEY_RETRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """The header and claims of a token whose signature, issuer, audience and times were verified."""

    header: Mapping[str, Any]
    claims: VerifiedClaims


class IssuerKeys:
    """The keys of an issuer that settings name, read when they are needed."""

    def __init__(
        self, issuer_settings: IssuerSettings | AssertionIssuerSettings, outgoing: OutgoingClient
    ) -> None:
        self.issuer_url = issuer_settings.issuer
        self._jwks_uri = issuer_settings.jwks_uri
        is_sign_in_issuer = isinstance(issuer_settings, IssuerSettings)
        self._setting_name = (
            f"BYLINE_GATEWAY__{'ISSUER__ISSUER' if is_sign_in_issuer else 'ASSERTION_ISSUERS'}"
        )
        self._outgoing = outgoing
        self._issuer_metadata: OpenIdMetadata | None = None
        self._key_set: KeySet | None = None
        self._keys_read_at = float("-inf")
        self._read_lock = asyncio.Lock()

    async def verify_token(self, encoded_token: str, *, audience: str | None) -> VerifiedToken:
        """Verify a token and return its header and claims. With `audience` None, any audience is accepted.

        Raises IdentityForged where anything is invalid, and UpstreamUnavailable where the keys cannot be read.
        """
        try:
            key_id = jws.extract_compact(encoded_token.encode()).headers().get("kid")
            decoded_token = jwt.decode(
                encoded_token, await self._load_keys(key_id), algorithms=list(_SIGNING_ALGORITHMS)
            )
            JWTClaimsRegistry(
                leeway=_LEEWAY_SECONDS,
                iss={"essential": True, "value": self.issuer_url},
                aud={"essential": True} if audience is None else {"essential": True, "value": audience},
                sub={"essential": True},
                exp={"essential": True},
            ).validate(decoded_token.claims)
        except (JoseError, ValueError) as error:
            raise IdentityForged(f"The token of {self.issuer_url} does not hold.") from error
        return VerifiedToken(decoded_token.header, VerifiedClaims(decoded_token.claims))

    async def read_metadata(self) -> OpenIdMetadata:
        """Return the issuer's metadata, read once. Its `issuer` must equal the one in settings exactly."""
        if self._issuer_metadata is None:
            metadata_url = build_openid_url(self.issuer_url)
            document = await self.read_json(metadata_url)
            try:
                self._issuer_metadata = validate_metadata(OpenIdMetadata, self.issuer_url, document)
            except IssuerMismatched as error:
                raise SettingsInvalid(
                    f"The issuer calls itself {error.issuer}: set {self._setting_name} to exactly that."
                ) from None
            except ValidationError as error:
                raise SettingsInvalid(
                    f"{metadata_url} is not OpenID Connect metadata. Check {self._setting_name}."
                ) from error
        return self._issuer_metadata

    async def read_json(self, document_url: str, access_token: str | None = None) -> Any:
        """Return the JSON at one of the issuer's URLs.

        Raises UpstreamUnavailable where there is none, and SettingsInvalid where the URL may not be called.
        """
        request_headers = {"Accept": "application/json"}
        if access_token is not None:
            request_headers["Authorization"] = f"Bearer {access_token}"
        try:
            http_response = await self._outgoing.send_request("GET", document_url, headers=request_headers)
        except AddressRefused as error:
            raise self.to_settings_error(error) from None
        except (RequestRejected, UpstreamUnavailable) as error:
            raise self.to_unavailable_error(error) from None
        if http_response.status_code != 200:
            raise self.to_unavailable_error(f"{document_url} gives {http_response.status_code}.")
        try:
            return json.loads(http_response.body)
        except (ValueError, RecursionError):
            raise self.to_unavailable_error(f"{document_url} gives no JSON.") from None

    def to_settings_error(self, error: AddressRefused) -> SettingsInvalid:
        """Return the error for a URL of the issuer that may not be called."""
        return SettingsInvalid(f"The sign-in service {self.issuer_url} is not called: {error}")

    def to_unavailable_error(self, reason: object) -> UpstreamUnavailable:
        """Return the error for an issuer that did not answer as it should."""
        return UpstreamUnavailable(
            f"The sign-in service {self.issuer_url} does not answer as it should: {reason}"
        )

    async def _load_keys(self, key_id: str | None) -> KeySet:
        if self._key_set is not None and not self._should_read_keys(key_id):
            return self._key_set
        async with self._read_lock:
            if self._key_set is None or self._should_read_keys(key_id):
                self._keys_read_at, key_set = time.monotonic(), await self._read_keys()
                self._key_set = key_set
        return self._key_set

    def _should_read_keys(self, key_id: str | None) -> bool:
        key_age_seconds = time.monotonic() - self._keys_read_at
        is_known_key = self._key_set is not None and (
            key_id is None or any(signing_key.kid == key_id for signing_key in self._key_set)
        )
        return key_age_seconds > (_KEY_CACHE_SECONDS if is_known_key else _KEY_RETRY_SECONDS)

    async def _read_keys(self) -> KeySet:
        key_document = await self.read_json(self._jwks_uri or str((await self.read_metadata()).jwks_uri))
        try:
            return KeySet.import_key_set(key_document)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise UpstreamUnavailable(f"The keys of {self.issuer_url} are not a JSON Web Key Set.") from error
