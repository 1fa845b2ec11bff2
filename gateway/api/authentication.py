"""Authenticates the API's callers: route dependencies that verify a bearer token. Cookies and sessions do not count."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Depends, FastAPI, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from mcp.server.auth.provider import TokenVerifier

from engine.errors import NotAllowed
from engine.runs.runs import Caller
from engine.settings import Settings
from gateway.api.problems import RequestRefused
from gateway.bearer.principal_token import PrincipalToken
from gateway.bearer.verifiers import is_token_valid
from gateway.protected_resource import API_PATH, build_metadata_url

_BEARER_SCHEME: Final = HTTPBearer(
    scheme_name="bearer",
    auto_error=False,
    description="An access token that was issued for this API, or a personal API token.",
)


def build_challenge(settings: Settings) -> str:
    """Return the `WWW-Authenticate` of a 401, which names the resource's metadata (RFC 9728 section 5.1)."""
    return f'Bearer resource_metadata="{build_metadata_url(settings, API_PATH)}"'


def attach_token_verifier(api_app: FastAPI, token_verifier: TokenVerifier, bearer_challenge: str) -> None:
    """Give the application the token verifier and the challenge that the dependencies below use."""
    api_app.state.tokens = token_verifier
    api_app.state.challenge = bearer_challenge


async def _authenticate_caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER_SCHEME)]
) -> Caller:
    bearer_challenge: str = request.app.state.challenge
    if credentials is None:
        detail = "Send a bearer token: `Authorization: Bearer …`."
        raise RequestRefused(
            HTTPStatus.UNAUTHORIZED, "unauthenticated", detail, headers={"WWW-Authenticate": bearer_challenge}
        )
    token_verifier: TokenVerifier = request.app.state.tokens
    access_token = await token_verifier.verify_token(credentials.credentials)
    if not isinstance(access_token, PrincipalToken):
        detail = "This token is not good here: it expired, was revoked, or was issued for something else."
        challenge_headers = {"WWW-Authenticate": f'{bearer_challenge}, error="invalid_token"'}
        raise RequestRefused(HTTPStatus.UNAUTHORIZED, "token_invalid", detail, headers=challenge_headers)
    return Caller(
        access_token.principal, access_token.actor, "rest", access_token.tools, access_token.in_person
    )


ApiCaller = Annotated[Caller, Depends(_authenticate_caller)]
"""The caller of a route: `async def route(caller: ApiCaller, …)`. Without a valid token the route is not called."""


TokenRecheck = Callable[[], Awaitable[bool]]


async def _make_token_recheck(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER_SCHEME)]
) -> TokenRecheck:
    token_verifier: TokenVerifier = request.app.state.tokens

    async def is_token_still_valid() -> bool:
        return credentials is not None and await is_token_valid(token_verifier, credentials.credentials)

    return is_token_still_valid


CallerTokenRecheck = Annotated[TokenRecheck, Depends(_make_token_recheck)]
"""A check whether the caller's token is still valid, for responses that last long."""


async def _require_in_person(caller: ApiCaller) -> Caller:
    if not caller.is_in_person:
        raise NotAllowed(
            f"{caller.actor.name} may not do this for {caller.principal.name}, who has to sign in for it: with an "
            "API token, and through a back end, nothing is made that lasts longer or reaches further."
        )
    return caller


InPersonCaller = Annotated[Caller, Depends(_require_in_person)]
"""As `ApiCaller`, but only for somebody who signed in themselves. Add `describe_problems(403)` to the route."""
