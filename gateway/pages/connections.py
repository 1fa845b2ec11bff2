"""The page on which people see and manage their grants: the accounts, the scopes, the tools and the last use."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from engine.audit.trail import AuditTrail
from engine.authorization.answer_recorder import AnswerRecorder
from engine.authorization.requests import AuthorizationRequests
from engine.connections.catalogue import ConnectionCatalogue
from engine.connections.connection import Connection
from engine.errors import AccountUnknown, BylineError
from engine.grants.accounts import Accounts
from engine.grants.grants import Grant, Grants
from engine.identity.model import Principal
from engine.policy.policy import Policy
from engine.tools.registry import CompositeTool, Registry
from engine.waiting.page_paths import build_connect_path, build_tool_path
from gateway.browser.page_requests import SignedInSession, require_form
from gateway.browser.rendering import PageProblem, redirect_see_other, render_page
from gateway.browser.sessions import BrowserSession, FormSubmission
from gateway.grants import OwnGrantRemoval
from gateway.pages.authorization_requests import list_waiting_links

_CONNECTIONS_PATH: Final = "/connections"
_ALL_TOOLS_FIELD: Final = "for_all"
_TOOL_FIELD_PREFIX: Final = "for_tool:"
_ConnectionsForm = Annotated[FormSubmission, Depends(require_form(_CONNECTIONS_PATH))]


@dataclass(frozen=True, slots=True)
class AccountView:
    """A grant as its owner sees it. `tool_title` is the title of the tool that used it last."""

    grant: Grant
    used_at: datetime | None
    tool_title: str | None


@dataclass(frozen=True, slots=True)
class AccountChoice:
    """Which account one tool or every tool uses. `account` is None where none was chosen."""

    field: str
    title: str
    account: str | None


@dataclass(frozen=True, slots=True)
class ConnectionView:
    """A connection with a person's accounts on it. It has choices only where there is something to choose."""

    connection: Connection
    accounts: list[AccountView]
    choice_for_all: AccountChoice | None
    choices_for_tools: list[AccountChoice]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPages:
    """Shows a person's own grants, and does what they decide."""

    catalogue: ConnectionCatalogue
    grants: Grants
    accounts: Accounts
    authorization_requests: AuthorizationRequests
    answer_recorder: AnswerRecorder
    policy: Policy
    audit_trail: AuditTrail
    tool_registry: Registry
    remove_own_grant: OwnGrantRemoval

    def build_router(self) -> APIRouter:
        """GET /connections, and POST /connections/{name}."""
        page_router = APIRouter(include_in_schema=False)
        page_router.add_api_route(_CONNECTIONS_PATH, self.show_connections, methods=["GET"])
        page_router.add_api_route(f"{_CONNECTIONS_PATH}/{{name}}", self.change_connection, methods=["POST"])
        return page_router

    async def show_connections(self, browser_session: SignedInSession) -> Response:
        """GET /connections."""
        return await self._render_page(browser_session)

    async def change_connection(self, submission: _ConnectionsForm, name: str) -> Response:
        """POST /connections/{name}."""
        browser_session, principal = submission.browser_session, submission.browser_session.principal
        try:
            next_path = await self._apply_decision(name, principal, submission.form_fields)
        except BylineError as error:
            return await self._render_page(browser_session, PageProblem.from_error(error))
        return redirect_see_other(next_path)

    async def _apply_decision(
        self, connection_name: str, principal: Principal, form_fields: Mapping[str, str]
    ) -> str:
        """Do what the pressed button says; returns the path to go to."""
        connection = await self.catalogue.get_connection(connection_name)
        grants_by_id = {grant.id: grant for grant in await self.grants.list_grants(principal.id)}
        match form_fields.get("decision"):
            case "another":
                authorization_request = await self.authorization_requests.open_request_ahead(
                    principal, connection, connection.scopes
                )
                return build_connect_path(authorization_request.id)
            case "choose":
                await self._choose_accounts(connection, principal, form_fields, grants_by_id)
            case "disconnect":
                # A grant that is gone already is no error: the page shows that it is gone.
                grant = grants_by_id.get(form_fields.get("grant", ""))
                if grant is not None and grant.connection_name == connection_name:
                    await self.remove_own_grant(connection, principal, grant.account)
        return _CONNECTIONS_PATH

    async def _choose_accounts(
        self,
        connection: Connection,
        principal: Principal,
        form_fields: Mapping[str, str],
        grants_by_id: Mapping[str, Grant],
    ) -> None:
        chosen_accounts = (await self.accounts.list_choices(principal.id)).get(connection.name, {})
        for field_name, field_value in form_fields.items():
            if field_name != _ALL_TOOLS_FIELD and not field_name.startswith(_TOOL_FIELD_PREFIX):
                continue
            tool_name = (
                ""
                if field_name == _ALL_TOOLS_FIELD
                else self.tool_registry.find_tool(field_name.removeprefix(_TOOL_FIELD_PREFIX)).name
            )
            grant = grants_by_id.get(field_value)
            if field_value == "" and tool_name in chosen_accounts:
                await self.answer_recorder.forget_choice(connection, principal, tool_name=tool_name)
            elif grant is not None and chosen_accounts.get(tool_name) != grant.account:
                await self.answer_recorder.choose_account(
                    connection, principal, grant.account, tool_name=tool_name
                )
            elif field_value not in {"", "keep"} and grant is None:
                raise AccountUnknown("The account that you chose is not connected any more. Choose another.")

    async def _render_page(
        self, browser_session: BrowserSession, page_problem: PageProblem | None = None
    ) -> Response:
        principal = browser_session.principal
        open_requests = await self.authorization_requests.list_open_requests(principal.id)
        callable_tools = await self._list_tools(principal)
        return render_page(
            "connections.html",
            page_title="My connections",
            browser_session=browser_session,
            page_problem=page_problem,
            waiting=await list_waiting_links(self.catalogue, open_requests),
            connections=await self._build_views(principal.id, callable_tools),
            tools=[(build_tool_path(tool.name), tool.declaration.title) for tool in callable_tools],
        )

    async def _list_tools(self, principal: Principal) -> list[CompositeTool]:
        """Return the tools that this person may call and that need a connection."""
        tool_names = sorted(
            tool_name for tool_name in self.tool_registry.tools if self.tool_registry.needs[tool_name]
        )
        allowed_names = await self.policy.filter_allowed_tools(principal, tool_names)
        allowed_tools = [self.tool_registry.tools[tool_name] for tool_name in allowed_names]
        return sorted(allowed_tools, key=lambda tool: tool.declaration.title.casefold())

    async def _build_views(
        self, principal_id: str, callable_tools: list[CompositeTool]
    ) -> list[ConnectionView]:
        known_connections = await self.catalogue.list_connections()
        accounts_by_connection: dict[str, list[AccountView]] = {}
        for grant in await self.grants.list_grants(principal_id):
            if grant.connection_name in known_connections:
                accounts_by_connection.setdefault(grant.connection_name, []).append(
                    await self._build_account(principal_id, grant)
                )
        chosen_by_connection = await self.accounts.list_choices(principal_id)
        connection_views = [
            self._build_view(
                known_connections[connection_name],
                accounts_by_connection[connection_name],
                chosen_by_connection.get(connection_name, {}),
                callable_tools,
            )
            for connection_name in accounts_by_connection
        ]
        return sorted(
            connection_views, key=lambda connection_view: connection_view.connection.title.casefold()
        )

    async def _build_account(self, principal_id: str, grant: Grant) -> AccountView:
        last_use = await self.audit_trail.find_last_use(principal_id, grant.id, granted_at=grant.created_at)
        tool_title = (
            None if last_use is None else self.tool_registry.find_title(last_use.event.get("tool") or "")
        )
        return AccountView(grant, None if last_use is None else last_use.time, tool_title)

    def _build_view(
        self,
        connection: Connection,
        account_views: list[AccountView],
        chosen_accounts: Mapping[str, str],
        callable_tools: list[CompositeTool],
    ) -> ConnectionView:
        if len(account_views) < 2 and not chosen_accounts:
            return ConnectionView(connection, account_views, None, [])
        using_tools = [
            tool
            for tool in callable_tools
            if self.tool_registry.may_use_connection(tool.name, connection.name)
        ]
        tool_choices = [
            AccountChoice(
                f"{_TOOL_FIELD_PREFIX}{tool.name}",
                tool.declaration.title,
                chosen_accounts.get(tool.name),
            )
            for tool in using_tools
        ]
        return ConnectionView(
            connection,
            account_views,
            AccountChoice(_ALL_TOOLS_FIELD, "Every tool", chosen_accounts.get("")),
            tool_choices,
        )
