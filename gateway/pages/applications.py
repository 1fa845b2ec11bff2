"""The page of the applications that act for a person. Each can be stopped there, and none can be let in."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.services import Services
from gateway.authorization_server.consents import Consent, Consents
from gateway.browser.rendering import notice, on_to, page, stale_form
from gateway.browser.sessions import Sessions
from gateway.sign_in.pages import to_sign_in

_PATH: Final = "/applications"


@dataclass(frozen=True, slots=True)
class Application:
    """Everything that one client may do for one person."""

    client_id: str
    name: str
    goes_to: list[str]
    asserted_by: list[str]
    resources: list[str]
    scopes: list[str]
    since: datetime
    until: datetime


def application_pages(services: Services) -> APIRouter:
    """GET and POST /applications."""
    router = APIRouter(include_in_schema=False)
    pages = ApplicationPages(services)
    router.add_api_route(_PATH, pages.show, methods=["GET"])
    router.add_api_route(_PATH, pages.withdraw, methods=["POST"])
    return router


class ApplicationPages:
    """Shows a person's consents by application, and withdraws them."""

    def __init__(self, services: Services) -> None:
        self._sessions = Sessions(services)
        self._consents = Consents(services.database)
        self._trail = services.trail
        self._issuer = services.settings.gateway.issuer

    async def show(self, request: Request) -> Response:
        """GET /applications."""
        session = await self._sessions.current(request)
        if session is None:
            return to_sign_in(_PATH)
        given = await self._consents.of(session.principal.id)
        return page(
            "applications.html",
            title="Applications",
            session=session,
            applications=_applications(given),
            issuer=None if self._issuer is None else self._issuer.issuer,
        )

    async def withdraw(self, request: Request) -> Response:
        """POST /applications: end all consents of one client for this person, and so all of its tokens."""
        submission = await self._sessions.submitted(request)
        if submission is None:
            return stale_form(_PATH)
        session, principal = submission.session, submission.session.principal
        client_id = submission.fields.get("client_id", "")
        held = [each for each in await self._consents.of(principal.id) if each.client_id == client_id]
        if not await self._consents.withdraw(principal.id, client_id):
            text = "This application does not act for you any more."
            return notice(
                "Nothing to withdraw", text, status=410, session=session, link=(_PATH, "Applications")
            )
        for consent in held:
            await self._trail.append(consent.event("client.withdrawn", principal))
        return on_to(_PATH)


def _applications(consents: list[Consent]) -> list[Application]:
    """Group consents by client. The client with the newest consent comes first."""
    by_client: dict[str, list[Consent]] = {}
    for consent in consents:
        by_client.setdefault(consent.client_id, []).append(consent)
    return [
        Application(
            client_id=client_id,
            name=held[0].client_name,
            goes_to=_each(each.goes_to for each in held),
            asserted_by=_each(each.asserted_by for each in held),
            resources=_each(each.resource for each in held),
            scopes=_each(scope for each in held for scope in each.scopes),
            since=min(each.created_at for each in held),
            until=max(each.expires_at for each in held),
        )
        for client_id, held in by_client.items()
    ]


def _each(found: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(each for each in found if each))
