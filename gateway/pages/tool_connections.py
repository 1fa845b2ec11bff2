"""The page on which a person connects what a tool needs before they call it, one button each. It calls no tool."""

from collections.abc import Mapping
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.errors import AuthorizationRefused, BylineError, ConnectionUnknown
from engine.identity.model import Principal
from engine.readiness import ConnectionReadiness
from engine.registry import Registry, Tool
from engine.services import Services
from engine.waiting.addresses import connect_path, tool_path
from gateway.browser.rendering import notice, on_to, page, stale_form
from gateway.browser.sessions import BrowserSession, Sessions
from gateway.errors import http_status
from gateway.sign_in.pages import to_sign_in

_WORDS: Final = {
    "connected": "connected",
    "missing": "not connected yet",
    "lapsed": "its sign-in has lapsed",
    "too_narrow": "connected, and lacks something that this tool needs",
    "choice_needed": "more than one account: say which one this tool uses",
}


def tool_connection_pages(services: Services, registry: Registry) -> APIRouter:
    """GET and POST /connect/tools/{tool}."""
    router = APIRouter(include_in_schema=False)
    pages = ToolConnections(services, registry)
    router.add_api_route("/connect/tools/{name}", pages.show, methods=["GET"])
    router.add_api_route("/connect/tools/{name}", pages.connect, methods=["POST"])
    return router


class ToolConnections:
    """Shows the state of each connection of a tool, and begins the sign-in that is missing."""

    def __init__(self, services: Services, registry: Registry) -> None:
        self._services = services
        self._registry = registry
        self._sessions = Sessions(services)

    async def show(self, request: Request, name: str) -> Response:
        """GET /connect/tools/{name}."""
        session = await self._sessions.current(request)
        if session is None:
            return to_sign_in(request.url.path)
        try:
            tool, needs = await self._standing(session.principal, name)
        except BylineError as error:
            return _refused(session, error)
        return self._page(session, tool, needs)

    async def connect(self, request: Request, name: str) -> Response:
        """POST /connect/tools/{name}: connect what is missing, or use an account that is there."""
        submission = await self._sessions.submitted(request)
        if submission is None:
            return stale_form(request.url.path)
        session, principal, fields = submission.session, submission.session.principal, submission.fields
        try:
            tool, needs = await self._standing(principal, name)
            need = next((each for each in needs if each.connection.name == fields.get("connection")), None)
            if need is None:
                raise ConnectionUnknown("This tool does not use that connection.")
            target = await self._decide(session, principal, tool, need, fields)
        except BylineError as error:
            return _refused(session, error)
        return on_to(target)

    async def _standing(self, principal: Principal, name: str) -> tuple[Tool, list[ConnectionReadiness]]:
        tool = self._registry.tool(name)
        await self._services.policy.require(principal, name)
        needs = self._registry.needs[name]
        return tool, await self._services.readiness.of(principal.id, name, needs)

    async def _decide(
        self,
        session: BrowserSession,
        principal: Principal,
        tool: Tool,
        need: ConnectionReadiness,
        fields: Mapping[str, str],
    ) -> str:
        """Do what the pressed button says; returns the path to go to."""
        connection, here = need.connection, tool_path(tool.name)
        if fields.get("decision") == "use":
            account = next((each.account for each in need.accounts if each.id == fields.get("account")), None)
            if account is not None:
                reach = tool.name if fields.get("reach") == "tool" else ""
                await self._services.answering.use(connection, principal, account, tool=reach)
            return here
        if need.state == "connected":
            return here
        account = need.account if need.state == "too_narrow" else None
        asked = await self._services.authorization.ask_ahead(
            principal, connection, need.lacking, account=account, tool=tool.name
        )
        if connection.sign_in != "authorization_code":
            return connect_path(asked.id)
        try:
            return await self._services.consent.begin(asked, session.id)
        except AuthorizationRefused:
            # The page of the authorization request offers another device.
            return connect_path(asked.id)

    def _page(self, session: BrowserSession, tool: Tool, needs: list[ConnectionReadiness]) -> Response:
        return page(
            "tool_connections.html",
            title=f"What {tool.declaration.title} needs",
            session=session,
            tool=tool,
            needs=needs,
            words=_WORDS,
            is_ready=all(need.is_ready for need in needs),
            leads_away=True,
        )


def _refused(session: BrowserSession, error: BylineError) -> Response:
    status = http_status(error)
    link = ("/connections", "See your connections")
    return notice("This cannot be connected", str(error), status=status, session=session, link=link)
