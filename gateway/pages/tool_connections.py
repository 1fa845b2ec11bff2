"""The page on which a person connects what a tool needs before they call it, one button each. It calls no tool."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fastapi import APIRouter
from fastapi.responses import Response

from engine.authorization.answer_recorder import AnswerRecorder
from engine.authorization.requests import AuthorizationRequests
from engine.errors import AuthorizationRefused, BylineError, ConnectionUnknown
from engine.identity.model import Principal
from engine.policy.policy import Policy
from engine.sign_in.sign_ins import SignIns
from engine.tools.readiness import ConnectionReadiness, ReadinessChecker
from engine.tools.registry import CompositeTool, Registry
from engine.waiting.page_paths import build_connect_path, build_tool_path
from gateway.browser.page_requests import OwnForm, SignedInSession
from gateway.browser.rendering import redirect_see_other, render_notice, render_page
from gateway.browser.sessions import BrowserSession
from gateway.error_codes import to_http_status

_STATE_TEXTS: Final = {
    "connected": "connected",
    "missing": "not connected yet",
    "lapsed": "its sign-in has lapsed",
    "too_narrow": "connected, and lacks something that this tool needs",
    "choice_needed": "more than one account: say which one this tool uses",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolConnectionPages:
    """Shows the state of each connection of a tool, and begins the sign-in that is missing."""

    readiness_checker: ReadinessChecker
    authorization_requests: AuthorizationRequests
    answer_recorder: AnswerRecorder
    sign_ins: SignIns
    policy: Policy
    tool_registry: Registry

    def build_router(self) -> APIRouter:
        """GET and POST /connect/tools/{tool}."""
        page_router = APIRouter(include_in_schema=False)
        page_router.add_api_route("/connect/tools/{name}", self.show_connections, methods=["GET"])
        page_router.add_api_route("/connect/tools/{name}", self.connect_account, methods=["POST"])
        return page_router

    async def show_connections(self, browser_session: SignedInSession, name: str) -> Response:
        """GET /connect/tools/{name}."""
        try:
            tool, connection_needs = await self._load_readiness(browser_session.principal, name)
        except BylineError as error:
            return _render_refusal(browser_session, error)
        return self._render_page(browser_session, tool, connection_needs)

    async def connect_account(self, submission: OwnForm, name: str) -> Response:
        """POST /connect/tools/{name}: connect what is missing, or use an account that is there."""
        browser_session, principal, form_fields = (
            submission.browser_session,
            submission.browser_session.principal,
            submission.form_fields,
        )
        try:
            tool, connection_needs = await self._load_readiness(principal, name)
            connection_need = next(
                (
                    candidate_need
                    for candidate_need in connection_needs
                    if candidate_need.connection.name == form_fields.get("connection")
                ),
                None,
            )
            if connection_need is None:
                raise ConnectionUnknown("This tool does not use that connection.")
            next_address = await self._apply_decision(
                browser_session, principal, tool, connection_need, form_fields
            )
        except BylineError as error:
            return _render_refusal(browser_session, error)
        return redirect_see_other(next_address)

    async def _load_readiness(
        self, principal: Principal, tool_name: str
    ) -> tuple[CompositeTool, list[ConnectionReadiness]]:
        tool = self.tool_registry.find_tool(tool_name)
        await self.policy.require_permission(principal, tool_name)
        connection_needs = self.tool_registry.needs[tool_name]
        return tool, await self.readiness_checker.check_connections(principal.id, tool_name, connection_needs)

    async def _apply_decision(
        self,
        browser_session: BrowserSession,
        principal: Principal,
        tool: CompositeTool,
        connection_need: ConnectionReadiness,
        form_fields: Mapping[str, str],
    ) -> str:
        """Do what the pressed button says; returns the path to go to."""
        connection, tool_page_path = connection_need.connection, build_tool_path(tool.name)
        if form_fields.get("decision") == "use":
            account_name = next(
                (
                    usable_account.account
                    for usable_account in connection_need.usable_grants
                    if usable_account.id == form_fields.get("account")
                ),
                None,
            )
            if account_name is not None:
                chosen_tool_name = tool.name if form_fields.get("reach") == "tool" else ""
                await self.answer_recorder.choose_account(
                    connection, principal, account_name, tool_name=chosen_tool_name
                )
            return tool_page_path
        if connection_need.state == "connected":
            return tool_page_path
        account_name = connection_need.account if connection_need.state == "too_narrow" else None
        authorization_request = await self.authorization_requests.open_request_ahead(
            principal,
            connection,
            connection_need.missing_scopes,
            account=account_name,
            tool_name=tool.name,
        )
        try:
            redirect_step = await self.sign_ins.begin_redirect(authorization_request, browser_session.id)
        except AuthorizationRefused:
            # The page of the authorization request offers another device.
            redirect_step = None
        return build_connect_path(authorization_request.id) if redirect_step is None else redirect_step.url

    def _render_page(
        self,
        browser_session: BrowserSession,
        tool: CompositeTool,
        connection_needs: list[ConnectionReadiness],
    ) -> Response:
        return render_page(
            "tool_connections.html",
            page_title=f"What {tool.declaration.title} needs",
            browser_session=browser_session,
            tool=tool,
            needs=connection_needs,
            words=_STATE_TEXTS,
            is_ready=all(connection_need.is_ready for connection_need in connection_needs),
            may_leave_site=True,
        )


def _render_refusal(browser_session: BrowserSession, error: BylineError) -> Response:
    status_code = to_http_status(error)
    notice_link = ("/connections", "See your connections")
    return render_notice(
        "This cannot be connected",
        str(error),
        status_code=status_code,
        browser_session=browser_session,
        next_link=notice_link,
    )
