"""The page on which a person lets an OAuth client act for them.

The page names the client. A person who consented to as much before is not asked again, unless another program on the
same machine could receive the client's code (RFC 8252 section 8.6).
"""

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import Response
from mcp.server.auth.provider import construct_redirect_uri

from engine.db.database import now
from engine.errors import BylineError
from engine.identity.model import Principal
from engine.services import Services
from gateway.authorization_server import redirects
from gateway.authorization_server.clients import Client
from gateway.authorization_server.codes import Asked, Codes
from gateway.authorization_server.consents import UNUSED_LIFE, Consent, Consents
from gateway.browser.rendering import notice, on_to, page, stale_form
from gateway.browser.sessions import BrowserSession, Sessions
from gateway.errors import http_status
from gateway.protected_resource import API_PATH, resource_identifier
from gateway.sign_in.pages import to_sign_in


class ConsentPage:
    """Shows a consent request to the person who is signed in, and sends their answer to the client."""

    def __init__(self, services: Services, client: Callable[[str], Awaitable[Client | None]]) -> None:
        self._sessions = Sessions(services)
        self._codes = Codes(services)
        self._consents = Consents(services.database)
        self._trail = services.trail
        self._policy = services.policy
        self._client = client
        self._issuer = services.settings.public_url
        self._api = resource_identifier(services.settings, API_PATH)

    async def ask(self, request: Request, question: str) -> Response:
        """GET /authorize/{question}: show the request, or answer it at once where the person consented before."""
        session = await self._sessions.current(request)
        if session is None:
            return to_sign_in(request.url.path)
        found = await self._asked(session, question)
        if isinstance(found, Response):
            return found
        asked, client = found
        consent = _consent(session.principal, asked, client)
        if client.is_sure_at(asked.parameters.redirect_uri) and await self._consents.covers(consent):
            return await self._allow(asked, consent) or _over(session)
        return self._page(session, session.principal, asked, client)

    async def answer(self, request: Request, question: str) -> Response:
        """POST /authorize/{question}."""
        submission = await self._sessions.submitted(request)
        if submission is None:
            return stale_form(request.url.path)
        session, principal = submission.session, submission.session.principal
        found = await self._asked(session, question)
        if isinstance(found, Response):
            return found
        asked, client = found
        if submission.fields.get("decision") == "allow":
            consent = _consent(principal, asked, client)
            allowed = await self._allow(asked, consent)
            if allowed is not None:
                answered_to = f", answered to {consent.goes_to}"
                await self._trail.append(consent.event("client.allowed", principal, answered_to))
            return allowed or _over(session)
        declined = await self._codes.decline(asked)
        return self._redirect(asked, error="access_denied") if declined else _over(session)

    async def _allow(self, asked: Asked, consent: Consent) -> Response | None:
        code = await self._codes.allow(asked, consent.principal_id)
        if code is None:
            return None
        await self._consents.add(consent)
        return self._redirect(asked, code=code)

    def _page(self, session: BrowserSession, principal: Principal, asked: Asked, client: Client) -> Response:
        target = asked.parameters.redirect_uri
        named = [(scope, self._policy.tools_with(scope)) for scope in asked.parameters.scopes or ()]
        return page(
            "consent.html",
            title=f"Let {client.title} act for you?",
            session=session,
            principal=principal,
            client=client.title,
            known_by=client.known_by,
            described_at=urlsplit(client.client_id).netloc,
            goes_to=redirects.reaches(target),
            is_this_computer=redirects.is_loopback(target),
            proves_nothing=not client.is_sure_at(target),
            beyond=[(scope, tools) for scope, tools in named if tools],
            reaches_api=asked.parameters.resource == self._api,
            leads_away=True,
        )

    async def _asked(self, session: BrowserSession, question: str) -> tuple[Asked, Client] | Response:
        asked = await self._codes.asked(question)
        try:
            client = None if asked is None else await self._client(asked.client_id)
        except BylineError as error:
            title = "This application cannot continue"
            return notice(title, str(error), status=http_status(error), session=session)
        return _over(session) if asked is None or client is None else (asked, client)

    def _redirect(self, asked: Asked, **outcome: str) -> Response:
        parameters = asked.parameters
        target = construct_redirect_uri(
            str(parameters.redirect_uri), **outcome, state=parameters.state, iss=self._issuer
        )
        return on_to(target)


def _consent(principal: Principal, asked: Asked, client: Client) -> Consent:
    return Consent(
        id=asked.id,
        principal_id=principal.id,
        client_id=client.client_id,
        client_name=client.title,
        goes_to=redirects.reaches(asked.parameters.redirect_uri),
        resource=str(asked.parameters.resource),
        scopes=tuple(asked.parameters.scopes or ()),
        created_at=now(),
        expires_at=now() + UNUSED_LIFE,
    )


def _over(session: BrowserSession) -> Response:
    text = "This question was answered already, or it is too old. Start again from your chat client."
    return notice("Nothing to answer", text, status=410, session=session)
