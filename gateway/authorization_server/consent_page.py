"""The page on which a person lets a client act for them; it names the client and asks every time."""

from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from mcp.server.auth.provider import construct_redirect_uri

from engine.identity.model import Principal
from engine.services import Services
from gateway.authorization_server.clients import Client, Clients
from gateway.authorization_server.codes import Asked, Codes
from gateway.pages import notice, page, stale_form
from gateway.protected_resource import API_PATH, resource_identifier
from gateway.sessions import BrowserSession, Sessions
from gateway.sign_in import to_sign_in

_THIS_COMPUTER = frozenset({"127.0.0.1", "::1", "localhost"})


class ConsentPage:
    """Asks the person who is signed in, and sends the answer to the client."""

    def __init__(self, services: Services) -> None:
        self._sessions = Sessions(services)
        self._clients = Clients(services)
        self._codes = Codes(services.database)
        self._issuer = services.settings.public_url
        self._api = resource_identifier(services.settings, API_PATH)

    async def ask(self, request: Request, question: str) -> Response:
        """GET /authorize/{question}."""
        session = await self._sessions.current(request)
        if session is None or session.principal is None:
            return to_sign_in(request.url.path)
        asked, client = await self._asked(question)
        if asked is None or client is None:
            return _over(session)
        return self._page(session, session.principal, asked, client)

    async def answer(self, request: Request, question: str) -> Response:
        """POST /authorize/{question}."""
        submission = await self._sessions.submitted(request)
        if submission is None or submission.session.principal is None:
            return stale_form(None, request.url.path)
        session, principal = submission.session, submission.session.principal
        asked, client = await self._asked(question)
        if asked is None or client is None:
            return _over(session)
        if submission.fields.get("decision") == "allow":
            code = await self._codes.allow(asked.id, principal.id)
            return _over(session) if code is None else self._redirect(asked, code=code)
        declined = await self._codes.decline(asked.id)
        return self._redirect(asked, error="access_denied") if declined else _over(session)

    def _page(self, session: BrowserSession, principal: Principal, asked: Asked, client: Client) -> Response:
        target = urlsplit(str(asked.parameters.redirect_uri))
        return page(
            "consent.html",
            title=f"Let {client.title} act for you?",
            session=session,
            principal=principal,
            client=client.title,
            goes_to=target.hostname
            if target.scheme in {"http", "https"}
            else f"the application of {target.scheme}:",
            is_this_computer=target.hostname in _THIS_COMPUTER,
            reaches_api=asked.parameters.resource == self._api,
            leads_away=True,
        )

    async def _asked(self, question: str) -> tuple[Asked | None, Client | None]:
        asked = await self._codes.asked(question)
        return asked, None if asked is None else await self._clients.get(asked.client_id)

    def _redirect(self, asked: Asked, **outcome: str) -> Response:
        parameters = asked.parameters
        target = construct_redirect_uri(
            str(parameters.redirect_uri), **outcome, state=parameters.state, iss=self._issuer
        )
        return RedirectResponse(target, 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})


def _over(session: BrowserSession) -> Response:
    text = "This question was answered already, or it is too old. Start again from your chat client."
    return notice("Nothing to answer", text, status=410, session=session)
