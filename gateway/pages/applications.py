"""The page of the applications that act for a person. Each can be stopped there, and none can be let in."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from fastapi import APIRouter
from fastapi.responses import Response

from engine.audit.trail import AuditTrail
from gateway.authorization_server.consents import ClientConsent, ClientConsents
from gateway.browser.page_requests import OwnForm, SignedInSession
from gateway.browser.rendering import redirect_see_other, render_notice, render_page

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


class ApplicationPages:
    """Shows a person's consents by application, and withdraws them.

    `external_issuer` is the issuer that signs people in, where it is not the gateway itself.
    """

    def __init__(
        self, client_consents: ClientConsents, audit_trail: AuditTrail, external_issuer: str | None
    ) -> None:
        self._client_consents = client_consents
        self._audit_trail = audit_trail
        self._external_issuer = external_issuer

    def build_router(self) -> APIRouter:
        """GET and POST /applications."""
        page_router = APIRouter(include_in_schema=False)
        page_router.add_api_route(_APPLICATIONS_PATH, self.show_applications, methods=["GET"])
        page_router.add_api_route(_APPLICATIONS_PATH, self.withdraw_application, methods=["POST"])
        return page_router

    async def show_applications(self, browser_session: SignedInSession) -> Response:
        """GET /applications."""
        client_consents = await self._client_consents.list_consents(browser_session.principal.id)
        return render_page(
            "applications.html",
            page_title="Applications",
            browser_session=browser_session,
            applications=_group_by_client(client_consents),
            issuer=self._external_issuer,
        )

    async def withdraw_application(self, submission: OwnForm) -> Response:
        """POST /applications: end all consents of one client for this person, and so all of its tokens."""
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
