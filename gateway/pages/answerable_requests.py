"""Shows an authorization request only to the people who may answer it, and explains how a sign-in failed."""

from typing import Final

from fastapi import Request
from fastapi.responses import Response

from engine.authorization.refusals import build_refusal_event
from engine.authorization.requests import AuthorizationRequest
from engine.errors import (
    AccountMismatched,
    AuthorizationExpired,
    AuthorizationRefused,
    BylineError,
    UpstreamFailed,
)
from engine.services import Services
from engine.waiting.page_paths import build_connect_path
from gateway.browser.rendering import render_notice, render_page
from gateway.browser.sessions import BrowserSession, BrowserSessions
from gateway.sign_in.pages import redirect_to_sign_in

CALL_AGAIN_TEXT: Final = "Call the tool again to get a new link."


async def open_request(
    services: Services, request: Request, request_id: str
) -> tuple[BrowserSession, AuthorizationRequest] | Response:
    """Return the session and the request behind a link; for anybody else, the page to show instead."""
    browser_session = await BrowserSessions(services).find_session(request)
    if browser_session is None:
        return redirect_to_sign_in(request.url.path)
    authorization_request = await load_answerable_request(services, browser_session, request_id)
    return (
        authorization_request
        if isinstance(authorization_request, Response)
        else (browser_session, authorization_request)
    )


async def load_answerable_request(
    services: Services, browser_session: BrowserSession, request_id: str
) -> AuthorizationRequest | Response:
    """Return the request where this person may answer it, and otherwise a page that says no.

    An attempt of somebody else to open the link is recorded in the trail.
    """
    principal, authorization_request = (
        browser_session.principal,
        await services.authorization_requests.find_request(request_id),
    )
    if authorization_request is None:
        notice_text = f"This link is not known here. {CALL_AGAIN_TEXT}"
        return render_notice("Unknown link", notice_text, status_code=404, browser_session=browser_session)
    if await services.delegation.find_asked_principal(authorization_request.principal_id, principal) is None:
        refusal_error = AuthorizationRefused("The link was opened by somebody whom it was not made for.")
        await services.trail.append_event(
            build_refusal_event(principal, refusal_error, authorization_request)
        )
        page_title = "This link was made for somebody else"
        request_path = build_connect_path(authorization_request.id)
        return render_page(
            "wrong_person.html",
            page_title=page_title,
            browser_session=browser_session,
            principal=principal,
            next=request_path,
            status_code=403,
        )
    return authorization_request


def render_not_connected(browser_session: BrowserSession, error: BylineError) -> Response:
    """Return the page that says how a sign-in ended without a grant."""
    match error:
        case AccountMismatched():
            notice_link = (build_connect_path(error.request_id), "Sign in to the account that is asked for")
            return render_notice(
                "That is another account",
                str(error),
                status_code=409,
                browser_session=browser_session,
                next_link=notice_link,
            )
        case AuthorizationExpired():
            return render_notice(
                "This link is too old", str(error), status_code=410, browser_session=browser_session
            )
        case UpstreamFailed():
            notice_text = f"{error} Open your link again."
            return render_notice(
                "The sign-in service failed", notice_text, status_code=502, browser_session=browser_session
            )
        case _:
            return render_notice(
                "You are not connected", str(error), status_code=400, browser_session=browser_session
            )
