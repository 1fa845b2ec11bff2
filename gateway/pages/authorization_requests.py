"""The page behind the link of an authorization request, and the redirect URI at which the browser comes back."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from engine.authorization.answer_recorder import AnswerRecorder
from engine.authorization.delegation import Delegation, acting_administrator
from engine.authorization.requests import AuthorizationRequest, AuthorizationRequests
from engine.connections.catalogue import ConnectionCatalogue
from engine.connections.connection import Connection
from engine.errors import (
    AccountMismatched,
    AccountUnknown,
    AuthorizationEnded,
    BylineError,
    ConnectionUnknown,
    KeyRefused,
)
from engine.grants.accounts import Accounts
from engine.grants.grants import Grants
from engine.identity.principals import Principals
from engine.oauth.registration import CLIENT_DOCUMENT_PATH, ClientRegistrations
from engine.services import Services
from engine.sign_in.sign_ins import SignIns
from engine.sign_in.steps import CodeStep, RedirectStep, StepKind
from engine.waiting.page_paths import build_connect_path, build_tool_path
from gateway.browser.page_requests import OwnForm, SignedInSession
from gateway.browser.rendering import redirect_see_other, render_notice, render_page
from gateway.browser.sessions import BrowserSession
from gateway.pages.answerable_requests import CALL_AGAIN_TEXT, AnswerableRequests, render_not_connected

AnswerHandler = Callable[
    [BrowserSession, AuthorizationRequest, Mapping[str, str]], Awaitable[Response | None]
]
"""Carries out what a person answered, and returns where the browser goes, or None for the request's page."""


def build_connect_pages(services: Services, answerable_requests: AnswerableRequests) -> APIRouter:
    """Return the routes of the request page and of Byline's client document."""
    page_router = APIRouter(include_in_schema=False)
    connect_page = ConnectPage(
        answerable_requests=answerable_requests,
        accounts=services.accounts,
        answer_recorder=services.answer_recorder,
        authorization_requests=services.authorization_requests,
        catalogue=services.catalogue,
        delegation=services.delegation,
        grants=services.grants,
        principals=services.principals,
        registrations=services.registrations,
        sign_ins=services.sign_ins,
    )
    page_router.add_api_route("/connect/{request_id}", connect_page.show_request, methods=["GET"])
    page_router.add_api_route("/connect/{request_id}", connect_page.answer_request, methods=["POST"])
    page_router.add_api_route(CLIENT_DOCUMENT_PATH, connect_page.show_client_document, methods=["GET"])
    return page_router


class ConnectPage:
    """Shows an authorization request to the person who was asked, and takes their yes or no."""

    def __init__(
        self,
        *,
        answerable_requests: AnswerableRequests,
        accounts: Accounts,
        answer_recorder: AnswerRecorder,
        authorization_requests: AuthorizationRequests,
        catalogue: ConnectionCatalogue,
        delegation: Delegation,
        grants: Grants,
        principals: Principals,
        registrations: ClientRegistrations,
        sign_ins: SignIns,
    ) -> None:
        self._answerable_requests = answerable_requests
        self._accounts = accounts
        self._answer_recorder = answer_recorder
        self._authorization_requests = authorization_requests
        self._catalogue = catalogue
        self._delegation = delegation
        self._grants = grants
        self._principals = principals
        self._registrations = registrations
        self._sign_ins = sign_ins

    async def show_client_document(self) -> Response:
        """GET /oauth/client.json: Byline's client document, which authorization servers read at its client_id."""
        return JSONResponse(
            self._registrations.build_client_document(), headers={"Cache-Control": "max-age=3600"}
        )

    async def show_request(self, browser_session: SignedInSession, request_id: str) -> Response:
        """GET /connect/{request_id}."""
        authorization_request = await self._answerable_requests.require_request(browser_session, request_id)
        try:
            connection = await self._catalogue.get_connection(authorization_request.connection_name)
        except ConnectionUnknown as error:
            return render_notice(
                "This connection is gone", str(error), status_code=410, browser_session=browser_session
            )
        if authorization_request.is_open:
            return await self._render_request(browser_session, authorization_request, connection)
        other_requests = await self._authorization_requests.list_open_requests(browser_session.principal.id)
        return await self._render_closed_request(
            browser_session, authorization_request, connection, other_requests
        )

    async def answer_request(self, request: Request, submission: OwnForm, request_id: str) -> Response:
        """POST /connect/{request_id}."""
        browser_session = submission.browser_session
        authorization_request = await self._answerable_requests.require_request(browser_session, request_id)
        answer_handlers: dict[str, AnswerHandler] = {
            "continue": partial(self._begin_step, step_kind="redirect"),
            "device": partial(self._begin_step, step_kind="code"),
            "connect": self._take_typed_key,
            "use": self._use_account,
        }
        answer_handler = answer_handlers.get(submission.form_fields.get("decision", ""), self._deny_request)
        try:
            page_response = (
                await answer_handler(browser_session, authorization_request, submission.form_fields)
                if authorization_request.is_open
                else None
            )
        except BylineError as error:
            return render_notice(
                "This connection does not work", str(error), status_code=503, browser_session=browser_session
            )
        return page_response or redirect_see_other(request.url.path)

    async def _begin_step(
        self,
        browser_session: BrowserSession,
        authorization_request: AuthorizationRequest,
        form_fields: Mapping[str, str],
        step_kind: StepKind,
    ) -> Response | None:
        """Begin a sign-in; returns where its step takes the browser, or None where there is none to take."""
        sign_in_step = await self._sign_ins.begin_sign_in(
            authorization_request,
            step_kind,
            browser_session=browser_session.id,
            tool_name=_read_chosen_tool(authorization_request, form_fields),
        )
        match sign_in_step:
            case RedirectStep():
                return redirect_see_other(sign_in_step.url)
            case CodeStep():
                return redirect_see_other(f"{build_connect_path(authorization_request.id)}/device")
        return None

    async def _deny_request(
        self,
        browser_session: BrowserSession,
        authorization_request: AuthorizationRequest,
        form_fields: Mapping[str, str],
    ) -> Response | None:
        del form_fields
        holder = await self._delegation.find_asked_principal(
            authorization_request.principal_id, browser_session.principal
        )
        if holder is not None:
            await self._authorization_requests.deny_request(
                authorization_request.id,
                holder,
                administrator=acting_administrator(holder, browser_session.principal),
            )
        return None

    async def _take_typed_key(
        self,
        browser_session: BrowserSession,
        authorization_request: AuthorizationRequest,
        form_fields: Mapping[str, str],
    ) -> Response | None:
        """Take a typed key; returns the page with the problem where the key is not accepted."""
        tool_name = _read_chosen_tool(authorization_request, form_fields)
        try:
            await self._sign_ins.finish_form(
                authorization_request, browser_session.principal, form_fields, tool_name=tool_name
            )
        except (KeyRefused, AccountMismatched) as error:
            connection = await self._catalogue.get_connection(authorization_request.connection_name)
            return await self._render_request(
                browser_session, authorization_request, connection, problem_text=str(error)
            )
        except AuthorizationEnded as error:
            return render_not_connected(browser_session, error)
        return None

    async def _use_account(
        self,
        browser_session: BrowserSession,
        authorization_request: AuthorizationRequest,
        form_fields: Mapping[str, str],
    ) -> Response | None:
        """Use an account that is connected already; returns the page with the problem where there is none."""
        connection, answerer = (
            await self._catalogue.get_connection(authorization_request.connection_name),
            browser_session.principal,
        )
        holder = await self._delegation.find_asked_principal(authorization_request.principal_id, answerer)
        usable_grants = await self._grants.list_active_grants(
            authorization_request.principal_id, authorization_request.connection_name
        )
        chosen_grant = next(
            (usable_grant for usable_grant in usable_grants if usable_grant.id == form_fields.get("account")),
            None,
        )
        if chosen_grant is None or holder is None:
            return await self._render_request(
                browser_session, authorization_request, connection, problem_text="Choose one of the accounts."
            )
        administrator, tool_name = (
            acting_administrator(holder, answerer),
            _read_chosen_tool(authorization_request, form_fields),
        )
        try:
            await self._answer_recorder.answer_choice(
                authorization_request,
                connection,
                holder,
                chosen_grant.account,
                tool_name=tool_name,
                administrator=administrator,
            )
        except AccountUnknown as error:
            return await self._render_request(
                browser_session, authorization_request, connection, problem_text=str(error)
            )
        return None

    async def _render_request(
        self,
        browser_session: BrowserSession,
        authorization_request: AuthorizationRequest,
        connection: Connection,
        problem_text: str | None = None,
    ) -> Response:
        holder = await self._principals.find_principal(authorization_request.principal_id)
        offered_steps = await self._sign_ins.list_offered_steps(connection)
        form_step = (
            await self._sign_ins.begin_sign_in(authorization_request, "form")
            if "form" in offered_steps
            else None
        )
        template_name, page_title = "connect.html", f"Connect {connection.title}?"
        choice_context: dict[str, Any] = {}
        if authorization_request.request_kind == "choice":
            template_name, page_title = "choose_account.html", f"Which account at {connection.title}?"
            chosen_accounts = (await self._accounts.list_choices(authorization_request.principal_id)).get(
                connection.name, {}
            )
            chosen_account = chosen_accounts.get(authorization_request.about, chosen_accounts.get(""))
            usable_grants = await self._grants.list_active_grants(
                authorization_request.principal_id, authorization_request.connection_name
            )
            choice_context = {
                "accounts": usable_grants,
                "gone": chosen_account,
                "chosen_for": authorization_request.about,
            }
        return render_page(
            template_name,
            page_title=page_title,
            browser_session=browser_session,
            **choice_context,
            asked=authorization_request,
            connection=connection,
            tools=await self._authorization_requests.list_waiting_tools(authorization_request.id),
            service=holder.name if holder is not None and holder.kind == "service" else None,
            form=form_step,
            has_page="redirect" in offered_steps,
            has_code="code" in offered_steps,
            problem=problem_text,
            status_code=200 if problem_text is None else 422,
            may_leave_site=form_step is None,
        )

    async def _render_closed_request(
        self,
        browser_session: BrowserSession,
        authorization_request: AuthorizationRequest,
        connection: Connection,
        other_requests: list[AuthorizationRequest],
    ) -> Response:
        has_been_awaited = await self._authorization_requests.has_had_waiters(authorization_request.id)
        page_title, page_text = _describe_end(
            authorization_request, connection.title, has_been_awaited=has_been_awaited
        )
        page_link = None
        if not has_been_awaited:
            is_for_tool = authorization_request.request_kind == "any_account" and authorization_request.about
            tool_link = (build_tool_path(authorization_request.about), "See what else is needed")
            page_link = tool_link if is_for_tool else ("/connections", "See your connections")
        return render_page(
            "answered.html",
            page_title=page_title,
            text=page_text,
            link=page_link,
            waiting=await list_waiting_links(self._catalogue, other_requests),
            browser_session=browser_session,
            status_code=200 if authorization_request.state in {"granted", "denied"} else 410,
        )


def _describe_end(
    authorization_request: AuthorizationRequest, connection_title: str, *, has_been_awaited: bool
) -> tuple[str, str]:
    """Return title and text for a closed request. No tool waits for what its person asked for themselves."""
    match authorization_request.state:
        case "granted":
            granted_text = "You can go back to your chat: the tool goes on by itself."
            return (
                f"{connection_title} is connected",
                granted_text if has_been_awaited else "It is there for your tools now.",
            )
        case "denied":
            declined_text = f"The tool was told. {CALL_AGAIN_TEXT}"
            return (
                f"You declined {connection_title}",
                declined_text if has_been_awaited else "Nothing was connected.",
            )
        case _:
            expired_text = f"Nobody waits for this sign-in any more. {CALL_AGAIN_TEXT}"
            return (
                "This link is too old",
                expired_text if has_been_awaited else "Nothing was connected. Begin again.",
            )


def _read_chosen_tool(authorization_request: AuthorizationRequest, form_fields: Mapping[str, str]) -> str:
    """Return the name of the tool that an account is chosen for; empty for every tool."""
    return (
        authorization_request.about
        if authorization_request.request_kind == "choice" and form_fields.get("reach") == "tool"
        else ""
    )


async def list_waiting_links(
    catalogue: ConnectionCatalogue, open_requests: list[AuthorizationRequest]
) -> list[tuple[str, str]]:
    """Return the address and title of each open request."""
    connections = await catalogue.list_connections()
    return [
        (
            build_connect_path(authorization_request.id),
            connections[authorization_request.connection_name].title,
        )
        for authorization_request in open_requests
        if authorization_request.connection_name in connections
    ]
