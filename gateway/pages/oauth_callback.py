"""The redirect URI of every connection, to which providers send the browser back."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.errors import BylineError
from engine.oauth.registration import CALLBACK_PATH
from engine.sign_in.sign_ins import SignIns
from engine.waiting.page_paths import build_connect_path
from gateway.browser.page_requests import PossibleSession
from gateway.browser.rendering import redirect_see_other, render_notice
from gateway.pages.answerable_requests import CALL_AGAIN_TEXT, render_not_connected


class OAuthCallback:
    """The redirect URI to which providers send the browser back."""

    def __init__(self, sign_ins: SignIns) -> None:
        self._sign_ins = sign_ins

    def build_router(self) -> APIRouter:
        """GET /oauth/callback."""
        page_router = APIRouter(include_in_schema=False)
        page_router.add_api_route(CALLBACK_PATH, self.receive_callback, methods=["GET"])
        return page_router

    async def receive_callback(self, request: Request, browser_session: PossibleSession) -> Response:
        """GET /oauth/callback."""
        query_params = dict(request.query_params)
        has_no_repeats = len(query_params) == len(request.query_params.multi_items())
        if (
            not has_no_repeats
            or not query_params.get("state")
            or ("code" in query_params) == ("error" in query_params)
        ):
            notice_text = (
                "What the sign-in service sent is incomplete. Open your link again, or start "
                f"over. {CALL_AGAIN_TEXT}"
            )
            return render_notice("This answer cannot be read", notice_text, status_code=400)
        if browser_session is None:
            notice_text = (
                "You are not signed in to Byline in this browser. Sign in, and then open your link again."
            )
            return render_notice(
                "Who is this?", notice_text, status_code=403, next_link=("/sign-in", "Sign in")
            )
        try:
            authorization_request = await self._sign_ins.finish_redirect(
                query_params, browser_session.principal, browser_session.id
            )
        except BylineError as error:
            return render_not_connected(browser_session, error)
        # A redirect to another page, so that the address with the code is neither shown nor kept.
        return redirect_see_other(build_connect_path(authorization_request.id))
