"""The front page: how to add Byline to a chat client, and what waits for the person who is signed in."""

import json

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.identity.model import Principal
from engine.services import Services
from gateway.browser.rendering import page
from gateway.browser.sessions import Sessions
from gateway.pages.connect import waiting_links
from gateway.pages.questions import question_links
from gateway.protected_resource import resource_identifier


def console(services: Services) -> APIRouter:
    """GET /."""
    router = APIRouter(include_in_schema=False)
    sessions = Sessions(services)
    address = resource_identifier(services.settings)
    vs_code = json.dumps({"name": "byline", "type": "http", "url": address})

    async def front(request: Request) -> Response:
        session = await sessions.current(request)
        principal = None if session is None else session.principal
        waiting, questions, for_services = [], [], []
        if principal is not None:
            waiting = await waiting_links(services, await services.authorization.open_for(principal.id))
            for_services = await _for_services(services, principal)
            questions = question_links(await services.questions.open_for(principal))
        return page(
            "console.html",
            title="Byline",
            session=session,
            principal=principal,
            waiting=waiting,
            questions=questions,
            for_services=for_services,
            address=address,
            vs_code=vs_code,
        )

    router.add_api_route("/", front, methods=["GET"])
    return router


async def _for_services(services: Services, principal: Principal) -> list[tuple[str, str]]:
    """Return what services wait for where the principal is an administrator, and nothing otherwise."""
    if not await services.roles.administers(principal):
        return []
    waiting = []
    for service in await services.service_principals.all():
        open_ = await services.authorization.open_for(service.id)
        links = await waiting_links(services, open_)
        waiting += [(address, f"{title}, for {service.name}") for address, title in links]
    return waiting
