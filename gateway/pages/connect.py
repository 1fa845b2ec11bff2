"""The page behind the link of an authorization request, and the redirect URI at which the browser comes back."""

from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from engine.authorization.requests import AuthorizationRequest
from engine.authorization.standing_in import stand_in
from engine.connections.connection import TYPED, VOUCHED, Connection, Key
from engine.connections.registration import DOCUMENT_PATH
from engine.errors import (
    AccountMismatched,
    AccountUnknown,
    AuthorizationEnded,
    BylineError,
    ConnectionUnknown,
    KeyRefused,
)
from engine.services import Services
from engine.waiting.addresses import connect_path, tool_path
from gateway.browser.rendering import notice, on_to, page, stale_form
from gateway.browser.sessions import BrowserSession, Sessions
from gateway.pages.asked import CALL_AGAIN, asked_of, not_connected, opened


def connect_pages(services: Services) -> APIRouter:
    """Return the routes of the request page, of every connection's redirect URI and of Byline's client document."""
    router = APIRouter(include_in_schema=False)
    connect, callback = ConnectPage(services), Callback(services)
    router.add_api_route("/connect/{request_id}", connect.ask, methods=["GET"])
    router.add_api_route("/connect/{request_id}", connect.answer, methods=["POST"])
    router.add_api_route(DOCUMENT_PATH, connect.document, methods=["GET"])
    router.add_api_route("/oauth/callback", callback.receive, methods=["GET"])
    return router


class ConnectPage:
    """Shows an authorization request to the person who was asked, and takes their yes or no."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._sessions = Sessions(services)

    async def document(self) -> Response:
        """GET /oauth/client.json: Byline's client document, which authorization servers read at its client_id."""
        return JSONResponse(
            self._services.registrations.document(), headers={"Cache-Control": "max-age=3600"}
        )

    async def ask(self, request: Request, request_id: str) -> Response:
        """GET /connect/{request_id}."""
        found = await opened(self._services, request, request_id)
        if isinstance(found, Response):
            return found
        session, asked = found
        try:
            connection = await self._services.catalogue.get(asked.connection)
        except ConnectionUnknown as error:
            return notice("This connection is gone", str(error), status=410, session=session)
        if asked.is_open:
            return await self._question(session, asked, connection)
        others = await self._services.authorization.open_for(session.principal.id)
        return await self._answered(session, asked, connection, others)

    async def answer(self, request: Request, request_id: str) -> Response:
        """POST /connect/{request_id}."""
        submission = await self._sessions.submitted(request)
        if submission is None:
            return stale_form(request.url.path)
        session = submission.session
        asked = await asked_of(self._services, session, request_id)
        if isinstance(asked, Response):
            return asked
        answers = {
            "continue": self._sent_away,
            "device": self._coded,
            "connect": self._typed,
            "use": self._use,
        }
        answer = answers.get(submission.fields.get("decision", ""), self._declined)
        try:
            shown = await answer(session, asked, submission.fields) if asked.is_open else None
        except BylineError as error:
            return notice("This connection does not work", str(error), status=503, session=session)
        return shown or on_to(request.url.path)

    async def _sent_away(
        self, session: BrowserSession, asked: AuthorizationRequest, fields: Mapping[str, str]
    ) -> Response | None:
        tool = _chosen_for(asked, fields)
        connection = await self._services.catalogue.get(asked.connection)
        if await self._services.vouching.answer(asked, connection, tool=tool):
            return None
        return on_to(await self._services.consent.begin(asked, session.id, tool=tool))

    async def _coded(
        self, session: BrowserSession, asked: AuthorizationRequest, fields: Mapping[str, str]
    ) -> Response | None:
        del session
        await self._services.devices.begin(asked, tool=_chosen_for(asked, fields))
        return on_to(f"{connect_path(asked.id)}/device")

    async def _declined(
        self, session: BrowserSession, asked: AuthorizationRequest, fields: Mapping[str, str]
    ) -> Response | None:
        del fields
        holder = await self._services.standing_in.asked(asked.principal_id, session.principal)
        if holder is not None:
            await self._services.authorization.deny(asked.id, holder, by=stand_in(holder, session.principal))
        return None

    async def _typed(
        self, session: BrowserSession, asked: AuthorizationRequest, fields: Mapping[str, str]
    ) -> Response | None:
        """Take a typed key; returns the page with the problem where the key is not accepted."""
        secret, username = fields.get("secret", ""), fields.get("username", "")
        tool = _chosen_for(asked, fields)
        try:
            await self._services.typed_keys.take(
                asked, session.principal, secret=secret, username=username, tool=tool
            )
        except (KeyRefused, AccountMismatched) as error:
            connection = await self._services.catalogue.get(asked.connection)
            return await self._question(session, asked, connection, problem=str(error))
        except AuthorizationEnded as error:
            return not_connected(session, error)
        return None

    async def _use(
        self, session: BrowserSession, asked: AuthorizationRequest, fields: Mapping[str, str]
    ) -> Response | None:
        """Use an account that is connected already; returns the page with the problem where there is none."""
        connection, person = await self._services.catalogue.get(asked.connection), session.principal
        holder = await self._services.standing_in.asked(asked.principal_id, person)
        usable = await self._services.grants.usable(asked.principal_id, asked.connection)
        grant = next((each for each in usable if each.id == fields.get("account")), None)
        if grant is None or holder is None:
            return await self._question(session, asked, connection, problem="Choose one of the accounts.")
        by, tool = stand_in(holder, person), _chosen_for(asked, fields)
        try:
            await self._services.answering.answer(asked, connection, holder, grant.account, tool=tool, by=by)
        except AccountUnknown as error:
            return await self._question(session, asked, connection, problem=str(error))
        return None

    async def _question(
        self,
        session: BrowserSession,
        asked: AuthorizationRequest,
        connection: Connection,
        problem: str | None = None,
    ) -> Response:
        holder = await self._services.principals.get(asked.principal_id)
        is_typed = connection.sign_in in TYPED
        has_page, has_code = (False, False) if is_typed else await self._pages(connection)
        template, title = "connect.html", f"Connect {connection.title}?"
        choice: dict[str, object] = {}
        if asked.asks == "choice":
            template, title = "choose_account.html", f"Which account at {connection.title}?"
            chosen = (await self._services.accounts.of(asked.principal_id)).get(connection.name, {})
            wanted = chosen.get(asked.about, chosen.get(""))
            accounts = await self._services.grants.usable(asked.principal_id, asked.connection)
            choice = {"accounts": accounts, "gone": wanted, "chosen_for": asked.about}
        return page(
            template,
            title=title,
            session=session,
            **choice,
            asked=asked,
            connection=connection,
            tools=await self._services.authorization.waiting_tools(asked.id),
            service=holder.name if holder is not None and holder.kind == "service" else None,
            key=(connection.key or Key()) if is_typed else None,
            has_page=has_page,
            has_code=has_code,
            problem=problem,
            status=200 if problem is None else 422,
            leads_away=not is_typed,
        )

    async def _pages(self, connection: Connection) -> tuple[bool, bool]:
        """Whether the provider has a page for this browser, and whether it has one for a device code."""
        try:
            endpoints = await self._services.sign_ins.client(connection).endpoints()
        except BylineError:
            # The person sees what is wrong when they continue.
            return True, False
        has_page = bool(endpoints.authorization) or connection.sign_in in VOUCHED
        return has_page, endpoints.device_authorization is not None

    async def _answered(
        self,
        session: BrowserSession,
        asked: AuthorizationRequest,
        connection: Connection,
        others: list[AuthorizationRequest],
    ) -> Response:
        was_awaited = await self._services.authorization.has_been_waited_for(asked.id)
        title, text = _ended(asked, connection.title, was_awaited=was_awaited)
        link = None
        if not was_awaited:
            is_for_tool = asked.asks == "any_account" and asked.about
            whole = (tool_path(asked.about), "See what else is needed")
            link = whole if is_for_tool else ("/connections", "See your connections")
        return page(
            "answered.html",
            title=title,
            text=text,
            link=link,
            waiting=await waiting_links(self._services, others),
            session=session,
            status=200 if asked.state in {"granted", "denied"} else 410,
        )


class Callback:
    """The redirect URI to which providers send the browser back."""

    def __init__(self, services: Services) -> None:
        self._consent = services.consent
        self._sessions = Sessions(services)

    async def receive(self, request: Request) -> Response:
        """GET /oauth/callback."""
        parameters = dict(request.query_params)
        once = len(parameters) == len(request.query_params.multi_items())
        if not once or not parameters.get("state") or ("code" in parameters) == ("error" in parameters):
            text = f"What the sign-in service sent is incomplete. Open your link again, or start over. {CALL_AGAIN}"
            return notice("This answer cannot be read", text, status=400)
        session = await self._sessions.current(request)
        if session is None:
            text = "You are not signed in to Byline in this browser. Sign in, and then open your link again."
            return notice("Who is this?", text, status=403, link=("/sign-in", "Sign in"))
        try:
            answered = await self._consent.complete(parameters, session.principal, session.id)
        except BylineError as error:
            return not_connected(session, error)
        # A redirect to another page, so that the address with the code is neither shown nor kept.
        return on_to(connect_path(answered.id))


def _ended(asked: AuthorizationRequest, connection: str, *, was_awaited: bool) -> tuple[str, str]:
    """Return title and text for a closed request. No tool waits for what its person asked for themselves."""
    match asked.state:
        case "granted":
            back = "You can go back to your chat: the tool goes on by itself."
            return f"{connection} is connected", back if was_awaited else "It is there for your tools now."
        case "denied":
            told = f"The tool was told. {CALL_AGAIN}"
            return f"You declined {connection}", told if was_awaited else "Nothing was connected."
        case _:
            late = f"Nobody waits for this sign-in any more. {CALL_AGAIN}"
            return "This link is too old", late if was_awaited else "Nothing was connected. Begin again."


def _chosen_for(asked: AuthorizationRequest, fields: Mapping[str, str]) -> str:
    """Return the name of the tool that an account is chosen for; empty for every tool."""
    return asked.about if asked.asks == "choice" and fields.get("reach") == "tool" else ""


async def waiting_links(services: Services, requests: list[AuthorizationRequest]) -> list[tuple[str, str]]:
    """Return the address and title of each open request."""
    connections = await services.catalogue.all()
    return [
        (connect_path(request.id), connections[request.connection].title)
        for request in requests
        if request.connection in connections
    ]
