"""The front page: how to add Byline to a chat client, and what waits for the person who is signed in."""

import json
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.responses import Response

from engine.authorization.requests import AuthorizationRequests
from engine.callers.service_principals import ServicePrincipals
from engine.connections.catalogue import ConnectionCatalogue
from engine.identity.model import Principal
from engine.identity.roles import Roles
from engine.questions.questions import Questions
from gateway.browser.page_requests import PossibleSession
from gateway.browser.rendering import render_page
from gateway.pages.authorization_requests import list_waiting_links
from gateway.pages.questions import list_question_links


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPage:
    """Shows the address of the MCP endpoint to everybody, and their open requests to people who are signed in."""

    mcp_address: str
    catalogue: ConnectionCatalogue
    authorization_requests: AuthorizationRequests
    questions: Questions
    service_principals: ServicePrincipals
    roles: Roles

    def build_router(self) -> APIRouter:
        """GET /."""
        page_router = APIRouter(include_in_schema=False)
        page_router.add_api_route("/", self.show_front_page, methods=["GET"])
        return page_router

    async def show_front_page(self, browser_session: PossibleSession) -> Response:
        """GET /."""
        principal = None if browser_session is None else browser_session.principal
        sign_in_links, open_questions, service_links = [], [], []
        if principal is not None:
            sign_in_links = await self._list_sign_in_links(principal)
            service_links = await self._list_service_links(principal)
            open_questions = list_question_links(await self.questions.list_open_questions(principal))
        return render_page(
            "console.html",
            page_title="Byline",
            browser_session=browser_session,
            principal=principal,
            waiting=sign_in_links,
            questions=open_questions,
            for_services=service_links,
            address=self.mcp_address,
            vs_code=json.dumps({"name": "byline", "type": "http", "url": self.mcp_address}),
        )

    async def _list_sign_in_links(self, principal: Principal) -> list[tuple[str, str]]:
        open_requests = await self.authorization_requests.list_open_requests(principal.id)
        return await list_waiting_links(self.catalogue, open_requests)

    async def _list_service_links(self, principal: Principal) -> list[tuple[str, str]]:
        """Return what services wait for where the principal is an administrator, and nothing otherwise."""
        if not await self.roles.is_administrator(principal):
            return []
        return [
            (link_address, f"{link_title}, for {service_principal.name}")
            for service_principal in await self.service_principals.list_services()
            for link_address, link_title in await self._list_sign_in_links(service_principal)
        ]
