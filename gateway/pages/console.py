"""The front page: how to add Byline to a chat client, and what waits for the person who is signed in."""

import json

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.identity.model import Principal
from engine.services import Services
from gateway.browser.rendering import render_page
from gateway.browser.sessions import BrowserSessions
from gateway.pages.authorization_requests import list_waiting_links
from gateway.pages.questions import list_question_links
from gateway.protected_resource import build_resource_identifier


def build_console(services: Services) -> APIRouter:
    """GET /."""
    page_router = APIRouter(include_in_schema=False)
    browser_sessions = BrowserSessions(services)
    mcp_address = build_resource_identifier(services.settings)
    vs_code_config = json.dumps({"name": "byline", "type": "http", "url": mcp_address})

    async def show_front_page(request: Request) -> Response:
        browser_session = await browser_sessions.find_session(request)
        principal = None if browser_session is None else browser_session.principal
        sign_in_links, open_questions, service_links = [], [], []
        if principal is not None:
            sign_in_links = await list_waiting_links(
                services, await services.authorization_requests.list_open_requests(principal.id)
            )
            service_links = await _list_service_links(services, principal)
            open_questions = list_question_links(await services.questions.list_open_questions(principal))
        return render_page(
            "console.html",
            page_title="Byline",
            browser_session=browser_session,
            principal=principal,
            waiting=sign_in_links,
            questions=open_questions,
            for_services=service_links,
            address=mcp_address,
            vs_code=vs_code_config,
        )

    page_router.add_api_route("/", show_front_page, methods=["GET"])
    return page_router


async def _list_service_links(services: Services, principal: Principal) -> list[tuple[str, str]]:
    """Return what services wait for where the principal is an administrator, and nothing otherwise."""
    if not await services.roles.is_administrator(principal):
        return []
    service_links = []
    for service_principal in await services.service_principals.list_services():
        open_requests = await services.authorization_requests.list_open_requests(service_principal.id)
        request_links = await list_waiting_links(services, open_requests)
        service_links += [
            (link_address, f"{link_title}, for {service_principal.name}")
            for link_address, link_title in request_links
        ]
    return service_links
