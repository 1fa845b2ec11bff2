"""Adds the bearer token to each request: an API token, or that of a sign-in, which one process at a time renews."""

import time
from collections.abc import Generator
from typing import Final

import httpx2
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from typing_extensions import override

from gateway.client.command_errors import AccessRefused, GatewayUnreachable
from gateway.client.credentials_file import CredentialsFile, StoredSignIn

OAUTH_TIMEOUT: Final = httpx2.Timeout(30.0, connect=10.0)
_RENEW_BEFORE_SECONDS = 30.0
_SIGN_IN_HINT = "Sign in with `byline login`, or set BYLINE_TOKEN to an API token."


class ApiTokenAuth(httpx2.Auth):
    """Authenticates with an API token, which its owner made for a machine."""

    def __init__(self, api_token: str) -> None:
        self._api_token = api_token

    @override
    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._api_token}"
        yield request


class SignInAuth(httpx2.Auth):
    """Authenticates with the tokens of the person who signed in on this computer.

    An access token that the gateway refuses is renewed once.
    """

    def __init__(self, credentials_file: CredentialsFile) -> None:
        self._credentials_file = credentials_file

    @override
    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        used_sign_in = self._load_usable_sign_in()
        request.headers["Authorization"] = f"Bearer {used_sign_in.access_token}"
        response = yield request
        if response.status_code == 401 and used_sign_in.refresh_token is not None:
            request.headers["Authorization"] = f"Bearer {self._renew_sign_in(used_sign_in).access_token}"
            yield request

    def _load_usable_sign_in(self) -> StoredSignIn:
        sign_in = self._credentials_file.read_credentials().sign_in
        if sign_in is None:
            raise AccessRefused(f"You are not signed in. {_SIGN_IN_HINT}")
        if sign_in.expires_at is not None and sign_in.expires_at < time.time() + _RENEW_BEFORE_SECONDS:
            return self._renew_sign_in(sign_in)
        return sign_in

    def _renew_sign_in(self, used_sign_in: StoredSignIn) -> StoredSignIn:
        """Return a newer sign-in than the one used. Another process may have renewed it while this one waited."""
        with self._credentials_file.lock_file():
            stored_credentials = self._credentials_file.read_credentials()
            if stored_credentials.sign_in is None:
                raise AccessRefused(f"You signed out meanwhile. {_SIGN_IN_HINT}")
            if stored_credentials.sign_in.access_token != used_sign_in.access_token:
                return stored_credentials.sign_in
            renewed_sign_in = _refresh_sign_in(stored_credentials.sign_in)
            self._credentials_file.write_credentials(
                stored_credentials.model_copy(update={"sign_in": renewed_sign_in})
            )
        if renewed_sign_in is None:
            raise AccessRefused(f"Your sign-in has ended. {_SIGN_IN_HINT}")
        return renewed_sign_in


def revoke_sign_in(sign_in: StoredSignIn) -> bool:
    """Revoke a sign-in at its authorization server (RFC 7009). Returns False if that was not possible."""
    oauth_token = sign_in.refresh_token or sign_in.access_token
    if sign_in.revocation_endpoint is None:
        return False
    try:
        with OAuth2Client(sign_in.client_id, timeout=OAUTH_TIMEOUT) as oauth_client:
            return bool(oauth_client.revoke_token(sign_in.revocation_endpoint, token=oauth_token).is_success)
    except (OAuthError, httpx2.HTTPError, ValueError):
        return False


def _refresh_sign_in(sign_in: StoredSignIn) -> StoredSignIn | None:
    if sign_in.refresh_token is None:
        return None
    try:
        with OAuth2Client(sign_in.client_id, timeout=OAUTH_TIMEOUT) as oauth_client:
            token_response = oauth_client.refresh_token(
                sign_in.token_endpoint, refresh_token=sign_in.refresh_token, resource=sign_in.resource
            )
    except (httpx2.HTTPError, ValueError) as error:
        raise GatewayUnreachable(
            f"The sign-in service at {sign_in.token_endpoint} does not answer. Try again in a moment."
        ) from error
    except OAuthError as error:
        if error.error in {"invalid_grant", "invalid_client", "unauthorized_client"}:
            return None
        raise GatewayUnreachable(f"Your sign-in cannot be renewed now: {error.error}.") from error
    return apply_token_response(sign_in, token_response)


def apply_token_response(earlier_sign_in: StoredSignIn, token_response: dict[str, object]) -> StoredSignIn:
    """Return the sign-in with the tokens of a token response (RFC 6749 section 5.1).

    The earlier refresh token stays if the response has none.
    """
    expires_at = token_response.get("expires_at")
    return StoredSignIn.model_validate(
        {
            **earlier_sign_in.model_dump(),
            "access_token": token_response.get("access_token"),
            "refresh_token": token_response.get("refresh_token") or earlier_sign_in.refresh_token,
            "expires_at": expires_at,
        }
    )
