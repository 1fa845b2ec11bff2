"""The front page: how to add Byline to a chat client, and what waits for the person who is signed in."""

import json

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.services import Services
from gateway.connect import waiting_links
from gateway.pages import page
from gateway.protected_resource import resource_identifier
from gateway.sessions import Sessions


def console(services: Services) -> APIRouter:
    """GET /."""
    router = APIRouter(include_in_schema=False)
    sessions = Sessions(services)
    address = resource_identifier(services.settings)
    vs_code = json.dumps({"name": "byline", "type": "http", "url": address})

    async def front(request: Request) -> Response:
        session = await sessions.current(request)
        principal = None if session is None else session.principal
        waiting = []
        if principal is not None:
            waiting = await waiting_links(services, await services.authorization.open_for(principal.id))
        return page(
            "console.html",
            title="Byline",
            session=session,
            principal=principal,
            waiting=waiting,
            address=address,
            vs_code=vs_code,
        )

    router.add_api_route("/", front, methods=["GET"])
    return router
