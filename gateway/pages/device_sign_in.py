"""The page with the code that a person types on another device. It reloads itself and runs no script."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.authorization.requests import AuthorizationRequest
from engine.errors import AccountMismatched, AuthorizationExpired, AuthorizationRefused, BylineError
from engine.services import Services
from engine.waiting.addresses import connect_path
from gateway.browser.rendering import notice, on_to, page
from gateway.browser.sessions import BrowserSession
from gateway.pages.asked import not_connected, opened


def device_pages(services: Services) -> APIRouter:
    """GET /connect/{request_id}/device."""
    router = APIRouter(include_in_schema=False)
    router.add_api_route("/connect/{request_id}/device", DevicePage(services).look, methods=["GET"])
    return router


class DevicePage:
    """Shows the code and where to type it, until the sign-in is complete."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def look(self, request: Request, request_id: str) -> Response:
        """GET /connect/{request_id}/device."""
        found = await opened(self._services, request, request_id)
        if isinstance(found, Response):
            return found
        session, asked = found
        try:
            return await self._page(session, asked)
        except AccountMismatched as error:
            return not_connected(session, error)
        except (AuthorizationExpired, AuthorizationRefused) as error:
            link = (connect_path(asked.id), "Open the question again")
            return notice("This code is no good any more", str(error), status=410, session=session, link=link)
        except BylineError as error:
            return not_connected(session, error)

    async def _page(self, session: BrowserSession, asked: AuthorizationRequest) -> Response:
        connection = await self._services.catalogue.get(asked.connection)
        wait = await self._services.devices.look(asked, session.principal)
        if wait is None:
            return on_to(connect_path(asked.id))
        title = f"Connect {connection.title} on another device"
        shown = page(
            "device.html", title=title, session=session, asked=asked, connection=connection, code=wait.code
        )
        # A header reloads the page, since the page may hold no script.
        shown.headers["Refresh"] = str(wait.look_again)
        return shown
