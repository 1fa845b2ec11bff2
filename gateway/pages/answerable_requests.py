"""Shows an authorization request only to the people who may answer it, and explains how a sign-in failed."""

from dataclasses import dataclass
from typing import Final

from fastapi.responses import Response

from engine.audit.trail import AuditTrail
from engine.authorization.delegation import Delegation
from engine.authorization.refusals import build_refusal_event
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.errors import (
    AccountMismatched,
    AuthorizationExpired,
    AuthorizationRefused,
    BylineError,
    UpstreamFailed,
)
from engine.waiting.page_paths import build_connect_path
from gateway.browser.page_requests import PageInterruption
from gateway.browser.rendering import render_notice, render_page
from gateway.browser.sessions import BrowserSession

CALL_AGAIN_TEXT: Final = "Call the tool again to get a new link."


@dataclass(frozen=True, slots=True)
class AnswerableRequests:
    """Finds authorization requests for the people who open their links."""

    authorization_requests: AuthorizationRequests
    delegation: Delegation
    audit_trail: AuditTrail

    async def require_request(self, browser_session: BrowserSession, request_id: str) -> AuthorizationRequest:
        """Return the request where this person may answer it.

        Raises PageInterruption with the page that says no. An attempt of somebody else to open the link is recorded in
        the trail.
        """
        principal = browser_session.principal
        authorization_request = await self.authorization_requests.find_request(request_id)
        if authorization_request is None:
            notice_text = f"This link is not known here. {CALL_AGAIN_TEXT}"
            raise PageInterruption(
                render_notice("Unknown link", notice_text, status_code=404, browser_session=browser_session)
            )
        if await self.delegation.find_asked_principal(authorization_request.principal_id, principal) is None:
            refusal_error = AuthorizationRefused("The link was opened by somebody whom it was not made for.")
            await self.audit_trail.append_event(
                build_refusal_event(principal, refusal_error, authorization_request)
            )
            refusal_page = render_page(
                "wrong_person.html",
                page_title="This link was made for somebody else",
                browser_session=browser_session,
                principal=principal,
                next=build_connect_path(authorization_request.id),
                status_code=403,
            )
            raise PageInterruption(refusal_page)
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
