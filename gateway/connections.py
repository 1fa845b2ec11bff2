"""The page on which people see and give up what they granted: which account, for what, and used by which tool last."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from engine.connections.catalogue import Connection
from engine.connections.grants import Grant
from engine.errors import BylineError
from engine.registry import Registry
from engine.services import Services
from gateway.connect import waiting_links
from gateway.errors import http_status
from gateway.grants import give_up
from gateway.pages import page, stale_form
from gateway.sessions import BrowserSession, Sessions
from gateway.sign_in import to_sign_in

_PATH: Final = "/connections"


@dataclass(frozen=True, slots=True)
class Shown:
    """A grant as its owner sees it; `tool` is the title of what used it last."""

    connection: Connection
    grant: Grant
    used_at: datetime | None
    tool: str | None


def connection_pages(services: Services, registry: Registry) -> APIRouter:
    """GET /connections, and POST /connections/{name}."""
    router = APIRouter(include_in_schema=False)
    pages = ConnectionPages(services, registry)
    router.add_api_route(_PATH, pages.show, methods=["GET"])
    router.add_api_route(f"{_PATH}/{{name}}", pages.revoke, methods=["POST"])
    return router


class ConnectionPages:
    """Shows a person's own grants, and takes them back."""

    def __init__(self, services: Services, registry: Registry) -> None:
        self._services = services
        self._registry = registry
        self._sessions = Sessions(services)

    async def show(self, request: Request) -> Response:
        """GET /connections."""
        session = await self._sessions.current(request)
        if session is None or session.principal is None:
            return to_sign_in(_PATH)
        return await self._page(session, session.principal.id)

    async def revoke(self, request: Request, name: str) -> Response:
        """POST /connections/{name}."""
        submission = await self._sessions.submitted(request)
        if submission is None or submission.session.principal is None:
            return stale_form(None, _PATH)
        session, principal = submission.session, submission.session.principal
        try:
            connection = await self._services.catalogue.get(name)
            await give_up(self._services, connection, principal)
        except BylineError as error:
            return await self._page(session, principal.id, problem=str(error), status=http_status(error))
        # Where it was gone already, the page shows that it is.
        return RedirectResponse(_PATH, 303, {"Cache-Control": "no-store"})

    async def _page(
        self, session: BrowserSession, principal_id: str, *, problem: str | None = None, status: int = 200
    ) -> Response:
        waiting = await self._services.authorization.open_for(principal_id)
        return page(
            "connections.html",
            title="My connections",
            session=session,
            status=status,
            problem=problem,
            waiting=await waiting_links(self._services, waiting),
            connections=await self._shown(principal_id),
        )

    async def _shown(self, principal_id: str) -> list[Shown]:
        known = await self._services.catalogue.all()
        shown = []
        for grant in await self._services.grants.of(principal_id):
            if (connection := known.get(grant.connection)) is None:
                continue
            used = await self._services.trail.last_use(principal_id, grant.connection, since=grant.created_at)
            tool = None if used is None else self._registry.title(used.event.get("tool") or "")
            shown.append(Shown(connection, grant, None if used is None else used.time, tool))
        return sorted(shown, key=lambda each: each.connection.title.casefold())
