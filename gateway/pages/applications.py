"""The page of the applications that act for a person. Each can be stopped there, and none can be let in."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.services import Services
from gateway.authorization_server.consents import ClientConsent, ClientConsents
from gateway.browser.rendering import redirect_see_other, render_notice, render_page, render_stale_form
from gateway.browser.sessions import BrowserSessions
from gateway.sign_in.pages import redirect_to_sign_in

_APPLICATIONS_PATH: Final = "/applications"


@dataclass(frozen=True, slots=True)
class ClientApplication:
    """Everything that one client may do for one person."""

    client_id: str
    name: str
    goes_to: list[str]
    asserted_by: list[str]
    resources: list[str]
    scopes: list[str]
    since: datetime
    until: datetime


def build_application_pages(services: Services) -> APIRouter:
    """GET and POST /applications."""
    page_router = APIRouter(include_in_schema=False)
    page_handlers = ApplicationPages(services)
    page_router.add_api_route(_APPLICATIONS_PATH, page_handlers.show_applications, methods=["GET"])
    page_router.add_api_route(_APPLICATIONS_PATH, page_handlers.withdraw_application, methods=["POST"])
    return page_router


class ApplicationPages:
    """Shows a person's consents by application, and withdraws them."""

    def __init__(self, services: Services) -> None:
        self._browser_sessions = BrowserSessions(services)
        self._client_consents = ClientConsents(services.database)
        self._audit_trail = services.trail
        self._issuer_settings = services.settings.gateway.issuer

    async def show_applications(self, request: Request) -> Response:
        """GET /applications."""
        browser_session = await self._browser_sessions.find_session(request)
        if browser_session is None:
            return redirect_to_sign_in(_APPLICATIONS_PATH)
        client_consents = await self._client_consents.list_consents(browser_session.principal.id)
        return render_page(
            "applications.html",
            page_title="Applications",
            browser_session=browser_session,
            applications=_group_by_client(client_consents),
            issuer=None if self._issuer_settings is None else self._issuer_settings.issuer,
        )

    async def withdraw_application(self, request: Request) -> Response:
        """POST /applications: end all consents of one client for this person, and so all of its tokens."""
        submission = await self._browser_sessions.read_submission(request)
        if submission is None:
            return render_stale_form(_APPLICATIONS_PATH)
        browser_session, principal = submission.browser_session, submission.browser_session.principal
        client_id = submission.form_fields.get("client_id", "")
        ended_consents = [
            client_consent
            for client_consent in await self._client_consents.list_consents(principal.id)
            if client_consent.client_id == client_id
        ]
        if not await self._client_consents.withdraw_client(principal.id, client_id):
            notice_text = "This application does not act for you any more."
            return render_notice(
                "Nothing to withdraw",
                notice_text,
                status_code=410,
                browser_session=browser_session,
                next_link=(_APPLICATIONS_PATH, "Applications"),
            )
        for client_consent in ended_consents:
            await self._audit_trail.append_event(client_consent.to_audit_event("client.withdrawn", principal))
        return redirect_see_other(_APPLICATIONS_PATH)


def _group_by_client(all_consents: list[ClientConsent]) -> list[ClientApplication]:
    """Group consents by client. The client with the newest consent comes first."""
    consents_by_client: dict[str, list[ClientConsent]] = {}
    for client_consent in all_consents:
        consents_by_client.setdefault(client_consent.client_id, []).append(client_consent)
    return [
        ClientApplication(
            client_id=client_id,
            name=client_consents[0].client_name,
            goes_to=_list_distinct(client_consent.goes_to for client_consent in client_consents),
            asserted_by=_list_distinct(client_consent.asserted_by for client_consent in client_consents),
            resources=_list_distinct(client_consent.resource for client_consent in client_consents),
            scopes=_list_distinct(
                scope_name for client_consent in client_consents for scope_name in client_consent.scopes
            ),
            since=min(client_consent.created_at for client_consent in client_consents),
            until=max(client_consent.expires_at for client_consent in client_consents),
        )
        for client_id, client_consents in consents_by_client.items()
    ]


def _list_distinct(optional_texts: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(distinct_text for distinct_text in optional_texts if distinct_text))
