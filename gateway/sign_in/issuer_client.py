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
from engine.identity.claims import VerifiedClaims
from engine.oauth.issuer_metadata import OpenIdMetadata
from engine.outgoing.client import OutgoingClient, OutgoingTransport
from engine.settings import IssuerSettings
from gateway.sign_in.issuer_keys import IssuerKeys


@dataclass(frozen=True, slots=True)
class SignInAttempt:
    """The values that a browser's visit keeps while its person is at the issuer."""

    state: str
    nonce: str
    code_verifier: str


@dataclass(frozen=True, slots=True)
class CompletedSignIn:
    """A completed sign-in: subject and name of the person, and tokens. `expires_at` is in seconds since the epoch."""

    subject_and_name: tuple[str, str]
    id_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_at: float


class IssuerClient:
    """Byline as a client of the issuer that settings name."""

    def __init__(self, issuer_settings: IssuerSettings, outgoing: OutgoingClient) -> None:
        self.issuer_settings = issuer_settings
        self._outgoing = outgoing
        self._issuer_keys = IssuerKeys(issuer_settings, outgoing)

    async def begin_sign_in(self, redirect_uri: str, *, should_prompt: bool) -> tuple[str, SignInAttempt]:
        """Return the address of the issuer's page, and the values to keep until it answers.

        With `should_prompt`, the issuer asks the person to sign in again.
        """
        issuer_metadata = await self._issuer_keys.read_metadata()
        sign_in_attempt = SignInAttempt(
            secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48)
        )
        extra_params = {"prompt": "login"} if should_prompt else {}
        authorization_url, _ = self._build_client(issuer_metadata, redirect_uri).create_authorization_url(
            str(issuer_metadata.authorization_endpoint),
            state=sign_in_attempt.state,
            nonce=sign_in_attempt.nonce,
            code_verifier=sign_in_attempt.code_verifier,
            **extra_params,
        )
        return str(authorization_url), sign_in_attempt

    async def complete_sign_in(
        self, callback_params: Mapping[str, str], sign_in_attempt: SignInAttempt, redirect_uri: str
    ) -> CompletedSignIn:
        """Return the completed sign-in; raises AuthorizationRefused for an invalid answer of the issuer."""
        issuer_metadata = await self._issuer_keys.read_metadata()
        answering_issuer = callback_params.get("iss")
        if answering_issuer is None and not issuer_metadata.authorization_response_iss_parameter_supported:
            answering_issuer = issuer_metadata.issuer
        if not secrets.compare_digest(
            callback_params.get("state", "").encode(), sign_in_attempt.state.encode()
        ):
            raise AuthorizationRefused("This sign-in was begun in another tab or browser.")
        if answering_issuer != issuer_metadata.issuer:
            raise AuthorizationRefused(f"The answer did not come from {issuer_metadata.issuer}.")
        if not callback_params.get("code"):
            raise AuthorizationRefused(f"{issuer_metadata.issuer} did not sign you in.")
        token_response = await self._exchange_code(
            issuer_metadata, callback_params["code"], sign_in_attempt, redirect_uri
        )
        id_claims = await self._verify_id_token(token_response, sign_in_attempt.nonce)
        person_name = read_display_name(
            {**await self._read_userinfo(issuer_metadata, token_response, id_claims), **id_claims}
        )
        refresh_token = token_response.get("refresh_token")
        return CompletedSignIn(
            (str(id_claims["sub"]), person_name),
            id_token=str(token_response["id_token"]),
            refresh_token=refresh_token if isinstance(refresh_token, str) else None,
            expires_at=float(id_claims["exp"]),
        )

    async def _exchange_code(
        self,
        issuer_metadata: OpenIdMetadata,
        authorization_code: str,
        sign_in_attempt: SignInAttempt,
        redirect_uri: str,
    ) -> Mapping[str, Any]:
        try:
            async with self._build_client(issuer_metadata, redirect_uri) as oauth_client:
                token_response: Mapping[str, Any] = await oauth_client.fetch_token(
                    str(issuer_metadata.token_endpoint),
                    code=authorization_code,
                    code_verifier=sign_in_attempt.code_verifier,
                )
        except OAuthError as error:
            raise AuthorizationRefused(
                f"{issuer_metadata.issuer} did not accept the sign-in ({error.error})."
            ) from None
        except AddressRefused as error:
            raise self._issuer_keys.to_settings_error(error) from None
        except (UpstreamUnavailable, RequestRejected) as error:
            raise self._issuer_keys.to_unavailable_error(error) from None
        except (httpx2.HTTPError, ValueError) as error:
            raise self._issuer_keys.to_unavailable_error(f"{type(error).__name__}.") from None
        return token_response

    async def _verify_id_token(
        self, token_response: Mapping[str, Any], expected_nonce: str
    ) -> VerifiedClaims:
        try:
            id_token = await self._issuer_keys.verify_token(
                str(token_response.get("id_token")), audience=self.issuer_settings.client_id
            )
        except IdentityForged as error:
            raise AuthorizationRefused(str(error)) from error
        id_claims = id_token.claims
        authorized_party = id_claims.get("azp", self.issuer_settings.client_id)
        if id_claims.get("nonce") != expected_nonce or authorized_party != self.issuer_settings.client_id:
            raise AuthorizationRefused(
                f"The identity that {self.issuer_settings.issuer} sent was made for another sign-in."
            )
        return id_claims

    async def _read_userinfo(
        self, issuer_metadata: OpenIdMetadata, token_response: Mapping[str, Any], id_claims: VerifiedClaims
    ) -> Mapping[str, Any]:
        if issuer_metadata.userinfo_endpoint is None or id_claims.get("name"):
            return {}
        userinfo_claims = await self._issuer_keys.read_json(
            str(issuer_metadata.userinfo_endpoint), str(token_response["access_token"])
        )
        return (
            userinfo_claims
            if isinstance(userinfo_claims, dict) and userinfo_claims.get("sub") == id_claims["sub"]
            else {}
        )

    def _build_client(self, issuer_metadata: OpenIdMetadata, redirect_uri: str) -> AsyncOAuth2Client:
        client_secret = self.issuer_settings.client_secret
        has_basic_auth = "client_secret_basic" in issuer_metadata.token_endpoint_auth_methods_supported
        secret_auth_method = "client_secret_basic" if has_basic_auth else "client_secret_post"
        return AsyncOAuth2Client(
            client_id=self.issuer_settings.client_id,
            client_secret=None if client_secret is None else client_secret.get_secret_value(),
            token_endpoint_auth_method="none" if client_secret is None else secret_auth_method,
            code_challenge_method="S256",
            redirect_uri=redirect_uri,
            scope=self.issuer_settings.sign_in_scope,
            transport=OutgoingTransport(self._outgoing),
        )


def read_display_name(claims: Mapping[str, Any]) -> str:
    """Return the name of a person for pages and the trail (OpenID Connect Core 1.0, section 5.1)."""
    for claim_name in ("name", "preferred_username", "email"):
        if isinstance(claims.get(claim_name), str) and claims[claim_name]:
            return str(claims[claim_name])
    return str(claims["sub"])
