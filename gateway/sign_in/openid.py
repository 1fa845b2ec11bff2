"""Signs a person in at an external OpenID Connect issuer, as its client. It stores nothing."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client

from engine.errors import (
    AddressRefused,
    AuthorizationRefused,
    IdentityForged,
    RequestRejected,
    UpstreamUnavailable,
)
from engine.outgoing.client import Outgoing, OutgoingTransport
from engine.settings import IssuerSettings
from gateway.sign_in.issuer_keys import IssuerKeys, IssuerMetadata


@dataclass(frozen=True, slots=True)
class SignInAttempt:
    """The values that a browser's visit keeps while its person is at the issuer."""

    state: str
    nonce: str
    code_verifier: str


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A completed sign-in: subject and name of the person, and tokens. `expires_at` is in seconds since the epoch."""

    person: tuple[str, str]
    id_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_at: float


class Issuer:
    """Byline as a client of the issuer that settings name."""

    def __init__(self, settings: IssuerSettings, outgoing: Outgoing) -> None:
        self.settings = settings
        self._outgoing = outgoing
        self._keys = IssuerKeys(settings, outgoing)

    async def begin(self, redirect_uri: str, *, afresh: bool) -> tuple[str, SignInAttempt]:
        """Return the address of the issuer's page, and the values to keep until it answers.

        With `should_prompt`, the issuer asks the person to sign in again.
        """
        metadata = await self._keys.metadata()
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
        """Return the completed sign-in; raises AuthorizationRefused for an invalid answer of the issuer."""
        metadata = await self._keys.metadata()
        answered_by = parameters.get("iss")
        if answered_by is None and not metadata.authorization_response_iss_parameter_supported:
            answered_by = metadata.issuer
        if not secrets.compare_digest(parameters.get("state", "").encode(), attempt.state.encode()):
            raise AuthorizationRefused("This sign-in was begun in another tab or browser.")
        if answered_by != metadata.issuer:
            raise AuthorizationRefused(f"The answer did not come from {metadata.issuer}.")
        if not parameters.get("code"):
            raise AuthorizationRefused(f"{metadata.issuer} did not sign you in.")
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

    async def _exchange(
        self, metadata: IssuerMetadata, code: str, attempt: SignInAttempt, redirect_uri: str
    ) -> Mapping[str, Any]:
        try:
            async with self._client(metadata, redirect_uri) as client:
                token: Mapping[str, Any] = await client.fetch_token(
                    metadata.token_endpoint, code=code, code_verifier=attempt.code_verifier
                )
        except OAuthError as error:
            raise AuthorizationRefused(
                f"{metadata.issuer} did not accept the sign-in ({error.error})."
            ) from None
        except AddressRefused as error:
            raise self._keys.not_called(error) from None
        except (UpstreamUnavailable, RequestRejected) as error:
            raise self._keys.unreachable(error) from None
        except (httpx2.HTTPError, ValueError) as error:
            raise self._keys.unreachable(f"{type(error).__name__}.") from None
        return token

    async def _id_claims(self, token: Mapping[str, Any], nonce: str) -> Mapping[str, Any]:
        try:
            id_token = await self._keys.verified(str(token.get("id_token")), audience=self.settings.client_id)
        except IdentityForged as error:
            raise AuthorizationRefused(str(error)) from error
        claims = id_token.claims
        authorized_party = claims.get("azp", self.settings.client_id)
        if claims.get("nonce") != nonce or authorized_party != self.settings.client_id:
            raise AuthorizationRefused(
                f"The identity that {self.settings.issuer} sent was made for another sign-in."
            )
        return claims

    async def _userinfo(
        self, metadata: IssuerMetadata, token: Mapping[str, Any], claims: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        if metadata.userinfo_endpoint is None or claims.get("name"):
            return {}
        found = await self._keys.get(metadata.userinfo_endpoint, str(token["access_token"]))
        return found if isinstance(found, dict) and found.get("sub") == claims["sub"] else {}

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
            scope=self.settings.sign_in_scope,
            transport=OutgoingTransport(self._outgoing),
        )


def display_name(claims: Mapping[str, Any]) -> str:
    """Return the name of a person for pages and the trail (OpenID Connect Core 1.0, section 5.1)."""
    for claim in ("name", "preferred_username", "email"):
        if isinstance(claims.get(claim), str) and claims[claim]:
            return str(claims[claim])
    return str(claims["sub"])
