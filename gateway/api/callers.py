"""Authenticates the API's callers: route dependencies that verify a bearer token. Cookies and sessions do not count."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Depends, FastAPI, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from mcp.server.auth.provider import TokenVerifier

from engine.errors import NotAllowed
from engine.services import Services
from gateway.api.problems import Refused
from gateway.bearer import PersonalToken, bearer_tokens, is_good
from gateway.protected_resource import API_PATH, metadata_address
from gateway.runs.runs import Caller

_BEARER: Final = HTTPBearer(
    scheme_name="bearer",
    auto_error=False,
    description="An access token that was issued for this API, or a personal API token.",
)


def challenge(services: Services) -> str:
    """Return the `WWW-Authenticate` of a 401, which names the resource's metadata (RFC 9728 section 5.1)."""
    return f'Bearer resource_metadata="{metadata_address(services.settings, API_PATH)}"'


def know_callers(api: FastAPI, services: Services) -> None:
    """Give the application the token verifier that the dependencies below use."""
    api.state.tokens = bearer_tokens(services, API_PATH)
    api.state.challenge = challenge(services)


async def _caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> Caller:
    challenge: str = request.app.state.challenge
    if credentials is None:
        detail = "Send a bearer token: `Authorization: Bearer …`."
        raise Refused(
            HTTPStatus.UNAUTHORIZED, "unauthenticated", detail, headers={"WWW-Authenticate": challenge}
        )
    tokens: TokenVerifier = request.app.state.tokens
    token = await tokens.verify_token(credentials.credentials)
    if not isinstance(token, PersonalToken):
        detail = "This token is not good here: it expired, was revoked, or was issued for something else."
        invalid = {"WWW-Authenticate": f'{challenge}, error="invalid_token"'}
        raise Refused(HTTPStatus.UNAUTHORIZED, "token_invalid", detail, headers=invalid)
    return Caller(token.principal, token.actor, "rest", token.tools, token.in_person)


Calling = Annotated[Caller, Depends(_caller)]
"""The caller of a route: `async def route(caller: ApiCaller, …)`. Without a valid token the route is not called."""


Recheck = Callable[[], Awaitable[bool]]


async def _still_good(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> Recheck:
    tokens: TokenVerifier = request.app.state.tokens

    async def still_good() -> bool:
        return credentials is not None and await is_good(tokens, credentials.credentials)

    return still_good


StillGood = Annotated[Recheck, Depends(_still_good)]
"""A check whether the caller's token is still valid, for responses that last long."""


async def _in_person(caller: Calling) -> Caller:
    if not caller.in_person:
        raise NotAllowed(
            f"{caller.actor.name} may not do this for {caller.principal.name}, who has to sign in for it: with an "
            "API token, and through a back end, nothing is made that lasts longer or reaches further."
        )
    return caller


CallingInPerson = Annotated[Caller, Depends(_in_person)]
"""As `ApiCaller`, but only for somebody who signed in themselves. Add `describe_problems(403)` to the route."""
