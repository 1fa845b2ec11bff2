"""The page with the code that a person types on another device. It reloads itself and runs no script."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.authorization.requests import AuthorizationRequest
from engine.errors import AccountMismatched, AuthorizationExpired, AuthorizationRefused, BylineError
from engine.services import Services
from engine.waiting.page_paths import build_connect_path
from gateway.browser.rendering import redirect_see_other, render_notice, render_page
from gateway.browser.sessions import BrowserSession
from gateway.pages.answerable_requests import open_request, render_not_connected


def build_device_pages(services: Services) -> APIRouter:
    """GET /connect/{request_id}/device."""
    page_router = APIRouter(include_in_schema=False)
    page_router.add_api_route("/connect/{request_id}/device", DevicePage(services).show_code, methods=["GET"])
    return page_router


class DevicePage:
    """Shows the code and where to type it, until the sign-in is complete."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def show_code(self, request: Request, request_id: str) -> Response:
        """GET /connect/{request_id}/device."""
        opened_request = await open_request(self._services, request, request_id)
        if isinstance(opened_request, Response):
            return opened_request
        browser_session, authorization_request = opened_request
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
        connection = await self._services.catalogue.get_connection(authorization_request.connection_name)
        code_step = await self._services.sign_ins.poll_code(authorization_request, browser_session.principal)
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
