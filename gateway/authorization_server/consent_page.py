"""The page on which a person lets an OAuth client act for them.

The page names the client. A person who consented to as much before is not asked again, unless another program on the
same machine could receive the client's code (RFC 8252 section 8.6).
"""

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fastapi.responses import Response
from mcp.server.auth.provider import construct_redirect_uri

from engine.audit.trail import AuditTrail
from engine.db.database import utc_now
from engine.errors import BylineError
from engine.identity.model import Principal
from engine.policy.policy import Policy
from gateway.authorization_server import redirect_uris
from gateway.authorization_server.authorization_codes import AuthorizationCodes, ConsentRequest
from gateway.authorization_server.clients import ClientInformation
from gateway.authorization_server.consents import UNUSED_CONSENT_LIFE, ClientConsent, ClientConsents
from gateway.browser.page_requests import OwnForm, PageInterruption, SignedInSession
from gateway.browser.rendering import redirect_see_other, render_notice, render_page
from gateway.browser.sessions import BrowserSession
from gateway.error_codes import to_http_status
from gateway.protected_resource import API_PATH


class ConsentPage:
    """Shows a consent request to the person who is signed in, and sends their answer to the client."""

    def __init__(
        self,
        find_client: Callable[[str], Awaitable[ClientInformation | None]],
        authorization_codes: AuthorizationCodes,
        client_consents: ClientConsents,
        audit_trail: AuditTrail,
        policy: Policy,
        *,
        issuer_url: str,
    ) -> None:
        self._find_client = find_client
        self._authorization_codes = authorization_codes
        self._client_consents = client_consents
        self._audit_trail = audit_trail
        self._tool_policy = policy
        self._issuer_url = issuer_url

    async def show_request(self, browser_session: SignedInSession, question: str) -> Response:
        """GET /authorize/{question}: show the request, or answer it at once where the person consented before."""
        consent_request, oauth_client = await self._open_request(browser_session, question)
        client_consent = _build_consent(browser_session.principal, consent_request, oauth_client)
        if oauth_client.is_sole_receiver_at(
            consent_request.parameters.redirect_uri
        ) and await self._client_consents.has_consent_for(client_consent):
            return await self._allow_client(consent_request, client_consent) or _render_closed_request(
                browser_session
            )
        return self._render_page(browser_session, consent_request, oauth_client)

    async def answer_request(self, submission: OwnForm, question: str) -> Response:
        """POST /authorize/{question}."""
        browser_session, principal = submission.browser_session, submission.browser_session.principal
        consent_request, oauth_client = await self._open_request(browser_session, question)
        if submission.form_fields.get("decision") == "allow":
            client_consent = _build_consent(principal, consent_request, oauth_client)
            redirect_response = await self._allow_client(consent_request, client_consent)
            if redirect_response is not None:
                circumstances = f", answered to {client_consent.goes_to}"
                await self._audit_trail.append_event(
                    client_consent.to_audit_event("client.allowed", principal, circumstances)
                )
            return redirect_response or _render_closed_request(browser_session)
        is_declined = await self._authorization_codes.record_refusal(consent_request)
        return (
            self._redirect_to_client(consent_request, error="access_denied")
            if is_declined
            else _render_closed_request(browser_session)
        )

    async def _allow_client(
        self, consent_request: ConsentRequest, client_consent: ClientConsent
    ) -> Response | None:
        authorization_code = await self._authorization_codes.issue_code(
            consent_request, client_consent.principal_id
        )
        if authorization_code is None:
            return None
        await self._client_consents.store_consent(client_consent)
        return self._redirect_to_client(consent_request, code=authorization_code)

    def _render_page(
        self,
        browser_session: BrowserSession,
        consent_request: ConsentRequest,
        oauth_client: ClientInformation,
    ) -> Response:
        redirect_uri = consent_request.parameters.redirect_uri
        tools_by_scope = [
            (scope_name, self._tool_policy.list_tools_with_scope(scope_name))
            for scope_name in consent_request.parameters.scopes or ()
        ]
        return render_page(
            "consent.html",
            page_title=f"Let {oauth_client.display_name} act for you?",
            browser_session=browser_session,
            principal=browser_session.principal,
            client=oauth_client.display_name,
            known_by=oauth_client.known_by,
            described_at=urlsplit(oauth_client.client_id).netloc,
            goes_to=redirect_uris.describe_receiver(redirect_uri),
            is_this_computer=redirect_uris.is_loopback_uri(redirect_uri),
            proves_nothing=not oauth_client.is_sole_receiver_at(redirect_uri),
            beyond=[(scope_name, tool_names) for scope_name, tool_names in tools_by_scope if tool_names],
            reaches_api=consent_request.parameters.resource == f"{self._issuer_url}{API_PATH}",
            may_leave_site=True,
        )

    async def _open_request(
        self, browser_session: BrowserSession, sealed_request: str
    ) -> tuple[ConsentRequest, ClientInformation]:
        """Return an unanswered request and its client; raises PageInterruption with a page that says why not."""
        consent_request = await self._authorization_codes.open_request(sealed_request)
        try:
            oauth_client = (
                None if consent_request is None else await self._find_client(consent_request.client_id)
            )
        except BylineError as error:
            notice_page = render_notice(
                "This application cannot continue",
                str(error),
                status_code=to_http_status(error),
                browser_session=browser_session,
            )
            raise PageInterruption(notice_page) from error
        if consent_request is None or oauth_client is None:
            raise PageInterruption(_render_closed_request(browser_session))
        return consent_request, oauth_client

    def _redirect_to_client(self, consent_request: ConsentRequest, **response_params: str) -> Response:
        authorization_params = consent_request.parameters
        redirect_address = construct_redirect_uri(
            str(authorization_params.redirect_uri),
            **response_params,
            state=authorization_params.state,
            iss=self._issuer_url,
        )
        return redirect_see_other(redirect_address)


def _build_consent(
    principal: Principal, consent_request: ConsentRequest, oauth_client: ClientInformation
) -> ClientConsent:
    return ClientConsent(
        id=consent_request.id,
        principal_id=principal.id,
        client_id=oauth_client.client_id,
        client_name=oauth_client.display_name,
        goes_to=redirect_uris.describe_receiver(consent_request.parameters.redirect_uri),
        resource=str(consent_request.parameters.resource),
        scopes=tuple(consent_request.parameters.scopes or ()),
        created_at=utc_now(),
        expires_at=utc_now() + UNUSED_CONSENT_LIFE,
    )


def _render_closed_request(browser_session: BrowserSession) -> Response:
    notice_text = "This question was answered already, or it is too old. Start again from your chat client."
    return render_notice("Nothing to answer", notice_text, status_code=410, browser_session=browser_session)
