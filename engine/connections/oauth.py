"""Byline as an OAuth 2.0 client of upstreams, on Authlib; it stores nothing and decides not whose grant is used."""

import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client

from engine.connections.catalogue import Connection
from engine.errors import BylineError, ConnectionMisconfigured, UpstreamUnavailable

_TIMEOUT_SECONDS = 15.0
_ERROR = re.compile(r"[a-z_]{1,40}")
_END_OF_TIME = datetime.max.replace(tzinfo=UTC).timestamp()


class TokenRefused(BylineError):
    """The token endpoint refused; `error` is the code of RFC 6749 section 5.2."""

    code = "token_refused"

    def __init__(self, connection: str, error: str) -> None:
        super().__init__(f"The sign-in service of connection '{connection}' refused: {error}.")
        self.error = error


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a token endpoint issued; `expires_at` in seconds since the epoch."""

    access_token: str
    refresh_token: str | None
    expires_at: float | None
    scopes: tuple[str, ...]

    @classmethod
    def from_response(
        cls, token: Mapping[str, Any], asked: tuple[str, ...], previous: "Tokens | None" = None
    ) -> "Tokens":
        """Read a token response (RFC 6749 section 5.1).

        A scope left out is the one asked for, and a refresh token that is not replaced stays. Raises ValueError for
        what is no token response.
        """
        access, expires_at, scope = token.get("access_token"), token.get("expires_at"), token.get("scope")
        refresh = token.get("refresh_token") or (previous.refresh_token if previous else None)
        if not (access and isinstance(access, str) and isinstance(refresh, str | None)):
            msg = "there is no token in it"
            raise ValueError(msg)
        if expires_at is not None and not 0 <= expires_at < _END_OF_TIME:
            msg = "it expires at no time that there is"
            raise ValueError(msg)
        scopes = tuple(scope.split()) if isinstance(scope, str) and scope else asked
        return cls(access, refresh, expires_at, scopes)


class OAuthClient:
    """One connection's client at its provider."""

    def __init__(self, connection: Connection, environment: Mapping[str, str]) -> None:
        self._connection = connection
        self._provider = connection.provider
        self._secret = connection.client_secret.read(environment) if connection.client_secret else None

    def authorization_url(
        self, *, redirect_uri: str, state: str, code_verifier: str, scopes: tuple[str, ...]
    ) -> str:
        """The consent page's address: authorization code with PKCE S256 (RFC 7636)."""
        client = self._client(redirect_uri=redirect_uri, scope=" ".join(scopes), code_challenge_method="S256")
        url, _ = client.create_authorization_url(
            str(self._provider.authorization_endpoint),
            state=state,
            code_verifier=code_verifier,
            **self._provider.authorization_parameters,
        )
        return str(url)

    async def exchange(
        self, *, code: str, redirect_uri: str, code_verifier: str, asked: tuple[str, ...]
    ) -> Tokens:
        """Tokens for an authorization code."""
        async with self._calling(redirect_uri=redirect_uri) as client:
            token = await client.fetch_token(self._token_endpoint, code=code, code_verifier=code_verifier)
            return Tokens.from_response(token, asked)

    async def refresh(self, tokens: Tokens) -> Tokens:
        """New tokens for a refresh token."""
        async with self._calling() as client:
            token = await client.refresh_token(self._token_endpoint, refresh_token=tokens.refresh_token)
            return Tokens.from_response(token, tokens.scopes, previous=tokens)

    async def client_credentials(self) -> Tokens:
        """Tokens of the service itself (RFC 6749 section 4.4), for a `shared` connection."""
        asked = self._connection.scopes
        async with self._calling(scope=" ".join(asked)) as client:
            token = await client.fetch_token(self._token_endpoint, grant_type="client_credentials")
            return Tokens.from_response(token, asked)

    async def revoke(self, tokens: Tokens) -> bool:
        """Revoke upstream (RFC 7009); False where the provider has no endpoint for it or did not take it."""
        if self._provider.revocation_endpoint is None:
            return False
        token, hint = (
            (tokens.refresh_token, "refresh_token")
            if tokens.refresh_token
            else (tokens.access_token, "access_token")
        )
        async with self._calling() as client:
            response = await client.revoke_token(
                str(self._provider.revocation_endpoint), token=token, token_type_hint=hint
            )
        return bool(response.is_success)

    async def account(self, tokens: Tokens) -> str:
        """The upstream's own name for the account that consented; empty where the provider cannot tell."""
        if self._provider.userinfo_endpoint is None:
            return ""
        async with self._calling() as client:
            headers = {"Authorization": f"Bearer {tokens.access_token}"}
            endpoint = str(self._provider.userinfo_endpoint)
            response = await client.request("GET", endpoint, headers=headers, withhold_token=True)
            claims = response.json() if response.is_success else None
        if not isinstance(claims, dict):
            status = response.status_code
            msg = f"Connection '{self._connection.name}' does not tell whose account it is (userinfo: {status})."
            raise ConnectionMisconfigured(msg)
        return str(claims.get(self._provider.account_claim) or claims.get("sub") or "")

    @property
    def _token_endpoint(self) -> str:
        return str(self._provider.token_endpoint)

    def _client(self, **options: Any) -> AsyncOAuth2Client:
        method = "none" if self._secret is None else self._provider.token_endpoint_auth_method
        return AsyncOAuth2Client(
            client_id=self._connection.client_id,
            client_secret=self._secret,
            token_endpoint_auth_method=method,
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
            verify=_authorities(),
            **options,
        )

    @asynccontextmanager
    async def _calling(self, **options: Any) -> AsyncIterator[AsyncOAuth2Client]:
        try:
            async with self._client(**options) as client:
                yield client
        except OAuthError as error:
            # A code of RFC 6749 is a few words; anything else is the provider's own text, which is not passed on.
            code = str(error.error)
            known = code if _ERROR.fullmatch(code) else "unknown_error"
            raise TokenRefused(self._connection.name, known) from None
        except httpx2.HTTPStatusError as error:
            msg = f"The sign-in service of connection '{self._connection.name}' failed ({error.response.status_code})."
            raise UpstreamUnavailable(msg, status=error.response.status_code) from None
        except (httpx2.HTTPError, ValueError, TypeError) as error:
            reason = type(error).__name__
            msg = f"The sign-in service of connection '{self._connection.name}' does not answer ({reason})."
            raise UpstreamUnavailable(msg) from None


@cache
def _authorities() -> ssl.SSLContext:
    """The certificate authorities to trust, read once, since reading them takes longer than a request."""
    return httpx2.create_ssl_context(trust_env=False)
