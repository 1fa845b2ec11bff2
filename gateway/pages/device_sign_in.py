"""The page with the code that a person types on another device. It reloads itself and runs no script."""

from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.responses import Response

from engine.authorization.requests import AuthorizationRequest
from engine.connections.catalogue import ConnectionCatalogue
from engine.errors import AccountMismatched, AuthorizationExpired, AuthorizationRefused, BylineError
from engine.sign_in.sign_ins import SignIns
from engine.waiting.page_paths import build_connect_path
from gateway.browser.page_requests import SignedInSession
from gateway.browser.rendering import redirect_see_other, render_notice, render_page
from gateway.browser.sessions import BrowserSession
from gateway.pages.answerable_requests import AnswerableRequests, render_not_connected


@dataclass(frozen=True, slots=True)
class DevicePage:
    """Shows the code and where to type it, until the sign-in is complete."""

    answerable_requests: AnswerableRequests
    catalogue: ConnectionCatalogue
    sign_ins: SignIns

    def build_router(self) -> APIRouter:
        """GET /connect/{request_id}/device."""
        page_router = APIRouter(include_in_schema=False)
        page_router.add_api_route("/connect/{request_id}/device", self.show_code, methods=["GET"])
        return page_router

    async def show_code(self, browser_session: SignedInSession, request_id: str) -> Response:
        """GET /connect/{request_id}/device."""
        authorization_request = await self.answerable_requests.require_request(browser_session, request_id)
        try:
            return await self._render_page(browser_session, authorization_request)
        except AccountMismatched as error:
            return render_not_connected(browser_session, error)
        except (AuthorizationExpired, AuthorizationRefused) as error:
            notice_link = (build_connect_path(authorization_request.id), "Open the question again")
            return render_notice(
                "This code is no good any more",
                str(error),
                status_code=410,
                browser_session=browser_session,
                next_link=notice_link,
            )
        except BylineError as error:
            return render_not_connected(browser_session, error)

    async def _render_page(
        self, browser_session: BrowserSession, authorization_request: AuthorizationRequest
    ) -> Response:
        connection = await self.catalogue.get_connection(authorization_request.connection_name)
        code_step = await self.sign_ins.poll_code(authorization_request, browser_session.principal)
        if code_step is None:
            return redirect_see_other(build_connect_path(authorization_request.id))
        page_title = f"Connect {connection.title} on another device"
        page_response = render_page(
            "device.html",
            page_title=page_title,
            browser_session=browser_session,
            asked=authorization_request,
            connection=connection,
            code=code_step,
        )
        # A header reloads the page, since the page may hold no script.
        page_response.headers["Refresh"] = str(code_step.poll_again_seconds)
        return page_response
