"""Adds the bearer token to each request: an API token, or that of a sign-in, which one process at a time renews."""

import time
from collections.abc import Generator
from typing import Final

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from typing_extensions import override

from gateway.client.failures import GatewaySilent, Refused
from gateway.client.stored_tokens import SignIn, StoredTokens

TIMEOUT: Final = httpx2.Timeout(30.0, connect=10.0)
_RENEW_BEFORE_SECONDS = 30.0
_SIGN_IN = "Sign in with `byline login`, or set BYLINE_TOKEN to an API token."


class ApiToken(httpx2.Auth):
    """Authenticates with an API token, which its owner made for a machine."""

    def __init__(self, token: str) -> None:
        self._token = token

    @override
    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


class PersonalSignIn(httpx2.Auth):
    """Authenticates with the tokens of the person who signed in on this computer.

    An access token that the gateway refuses is renewed once.
    """

    def __init__(self, stored: StoredTokens) -> None:
        self._stored = stored

    @override
    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        used = self._usable()
        request.headers["Authorization"] = f"Bearer {used.access_token}"
        response = yield request
        if response.status_code == 401 and used.refresh_token is not None:
            request.headers["Authorization"] = f"Bearer {self._renewed(used).access_token}"
            yield request

    def _usable(self) -> SignIn:
        sign_in = self._stored.read().sign_in
        if sign_in is None:
            raise Refused(f"You are not signed in. {_SIGN_IN}")
        if sign_in.expires_at is not None and sign_in.expires_at < time.time() + _RENEW_BEFORE_SECONDS:
            return self._renewed(sign_in)
        return sign_in

    def _renewed(self, used: SignIn) -> SignIn:
        """Return a newer sign-in than the one used. Another process may have renewed it while this one waited."""
        with self._stored.held():
            kept = self._stored.read()
            if kept.sign_in is None:
                raise Refused(f"You signed out meanwhile. {_SIGN_IN}")
            if kept.sign_in.access_token != used.access_token:
                return kept.sign_in
            fresh = _refreshed(kept.sign_in)
            self._stored.write(kept.model_copy(update={"sign_in": fresh}))
        if fresh is None:
            raise Refused(f"Your sign-in has ended. {_SIGN_IN}")
        return fresh


def revoke(sign_in: SignIn) -> bool:
    """Revoke a sign-in at its authorization server (RFC 7009). Returns False if that was not possible."""
    token = sign_in.refresh_token or sign_in.access_token
    if sign_in.revocation_endpoint is None:
        return False
    try:
        with OAuth2Client(sign_in.client_id, timeout=TIMEOUT) as client:
            return bool(client.revoke_token(sign_in.revocation_endpoint, token=token).is_success)
    except (OAuthError, httpx2.HTTPError, ValueError):
        return False


def _refreshed(sign_in: SignIn) -> SignIn | None:
    if sign_in.refresh_token is None:
        return None
    try:
        with OAuth2Client(sign_in.client_id, timeout=TIMEOUT) as client:
            token = client.refresh_token(
                sign_in.token_endpoint, refresh_token=sign_in.refresh_token, resource=sign_in.resource
            )
    except (httpx2.HTTPError, ValueError) as error:
        raise GatewaySilent(
            f"The sign-in service at {sign_in.token_endpoint} does not answer. Try again in a moment."
        ) from error
    except OAuthError as error:
        if error.error in {"invalid_grant", "invalid_client", "unauthorized_client"}:
            return None
        raise GatewaySilent(f"Your sign-in cannot be renewed now: {error.error}.") from error
    return signed_in(sign_in, token)


def signed_in(before: SignIn, token: dict[str, object]) -> SignIn:
    """Return the sign-in with the tokens of a token response (RFC 6749 section 5.1).

    The earlier refresh token stays if the response has none.
    """
    expires_at = token.get("expires_at")
    return SignIn.model_validate(
        {
            **before.model_dump(),
            "access_token": token.get("access_token"),
            "refresh_token": token.get("refresh_token") or before.refresh_token,
            "expires_at": expires_at,
        }
    )
