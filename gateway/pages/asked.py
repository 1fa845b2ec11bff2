"""Shows an authorization request only to the people who may answer it, and explains how a sign-in failed."""

from typing import Final

from fastapi import Request
from fastapi.responses import Response

from engine.authorization.refusals import refusal
from engine.authorization.requests import AuthorizationRequest
from engine.errors import (
    AccountMismatched,
    AuthorizationExpired,
    AuthorizationRefused,
    BylineError,
    UpstreamFailed,
)
from engine.services import Services
from engine.waiting.addresses import connect_path
from gateway.browser.rendering import notice, page
from gateway.browser.sessions import BrowserSession, Sessions
from gateway.sign_in.pages import to_sign_in

CALL_AGAIN: Final = "Call the tool again to get a new link."


async def opened(
    services: Services, request: Request, request_id: str
) -> tuple[BrowserSession, AuthorizationRequest] | Response:
    """Return the session and the request behind a link; for anybody else, the page to show instead."""
    session = await Sessions(services).current(request)
    if session is None:
        return to_sign_in(request.url.path)
    asked = await asked_of(services, session, request_id)
    return asked if isinstance(asked, Response) else (session, asked)


async def asked_of(
    services: Services, session: BrowserSession, request_id: str
) -> AuthorizationRequest | Response:
    """Return the request where this person may answer it, and otherwise a page that says no.

    An attempt of somebody else to open the link is recorded in the trail.
    """
    principal, request = session.principal, await services.authorization.get(request_id)
    if request is None:
        text = f"This link is not known here. {CALL_AGAIN}"
        return notice("Unknown link", text, status=404, session=session)
    if await services.standing_in.asked(request.principal_id, principal) is None:
        refused = AuthorizationRefused("The link was opened by somebody whom it was not made for.")
        await services.trail.append(refusal(principal, refused, request))
        title = "This link was made for somebody else"
        path = connect_path(request.id)
        return page(
            "wrong_person.html", title=title, session=session, principal=principal, next=path, status=403
        )
    return request


def not_connected(session: BrowserSession, error: BylineError) -> Response:
    """Return the page that says how a sign-in ended without a grant."""
    match error:
        case AccountMismatched():
            link = (connect_path(error.request), "Sign in to the account that is asked for")
            return notice("That is another account", str(error), status=409, session=session, link=link)
        case AuthorizationExpired():
            return notice("This link is too old", str(error), status=410, session=session)
        case UpstreamFailed():
            text = f"{error} Open your link again."
            return notice("The sign-in service failed", text, status=502, session=session)
        case _:
            return notice("You are not connected", str(error), status=400, session=session)
