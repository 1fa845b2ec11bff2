"""The page on which people see and manage their grants: the accounts, the scopes, the tools and the last use."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from engine.connections.connection import Connection
from engine.connections.grants import Grant
from engine.errors import AccountUnknown, BylineError
from engine.identity.model import Principal
from engine.registry import Registry, Tool
from engine.services import Services
from engine.waiting.addresses import connect_path, tool_path
from gateway.browser.rendering import on_to, page, stale_form
from gateway.browser.sessions import BrowserSession, Sessions
from gateway.errors import http_status
from gateway.grants import give_up
from gateway.pages.connect import waiting_links
from gateway.sign_in.pages import to_sign_in

_PATH: Final = "/connections"
_FOR_ALL: Final = "for_all"
_FOR_TOOL: Final = "for_tool:"


@dataclass(frozen=True, slots=True)
class ShownAccount:
    """A grant as its owner sees it. `tool_title` is the title of the tool that used it last."""

    grant: Grant
    used_at: datetime | None
    tool: str | None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which account one tool or every tool uses. `account` is None where none was chosen."""

    field: str
    title: str
    account: str | None


@dataclass(frozen=True, slots=True)
class Shown:
    """A connection with a person's accounts on it. It has choices only where there is something to choose."""

    connection: Connection
    accounts: list[ShownAccount]
    for_all: Choice | None
    for_tools: list[Choice]


def connection_pages(services: Services, registry: Registry) -> APIRouter:
    """GET /connections, and POST /connections/{name}."""
    router = APIRouter(include_in_schema=False)
    pages = ConnectionPages(services, registry)
    router.add_api_route(_PATH, pages.show, methods=["GET"])
    router.add_api_route(f"{_PATH}/{{name}}", pages.govern, methods=["POST"])
    return router


class ConnectionPages:
    """Shows a person's own grants, and does what they decide."""

    def __init__(self, services: Services, registry: Registry) -> None:
        self._services = services
        self._registry = registry
        self._sessions = Sessions(services)

    async def show(self, request: Request) -> Response:
        """GET /connections."""
        session = await self._sessions.current(request)
        if session is None:
            return to_sign_in(_PATH)
        return await self._page(session, session.principal)

    async def govern(self, request: Request, name: str) -> Response:
        """POST /connections/{name}."""
        submission = await self._sessions.submitted(request)
        if submission is None:
            return stale_form(_PATH)
        session, principal = submission.session, submission.session.principal
        try:
            target = await self._decide(name, principal, submission.fields)
        except BylineError as error:
            return await self._page(session, principal, problem=str(error), status=http_status(error))
        return on_to(target)

    async def _decide(self, name: str, principal: Principal, fields: Mapping[str, str]) -> str:
        """Do what the pressed button says; returns the path to go to."""
        connection = await self._services.catalogue.get(name)
        grants = {grant.id: grant for grant in await self._services.grants.of(principal.id)}
        match fields.get("decision"):
            case "another":
                asked = await self._services.authorization.ask_ahead(principal, connection, connection.scopes)
                return connect_path(asked.id)
            case "choose":
                await self._choose(connection, principal, fields, grants)
            case "disconnect":
                # A grant that is gone already is no error: the page shows that it is gone.
                grant = grants.get(fields.get("grant", ""))
                if grant is not None and grant.connection == name:
                    await give_up(self._services, connection, principal, grant.account)
        return _PATH

    async def _choose(
        self,
        connection: Connection,
        principal: Principal,
        fields: Mapping[str, str],
        grants: Mapping[str, Grant],
    ) -> None:
        chosen = (await self._services.accounts.of(principal.id)).get(connection.name, {})
        answering = self._services.answering
        for field, value in fields.items():
            if field != _FOR_ALL and not field.startswith(_FOR_TOOL):
                continue
            tool = "" if field == _FOR_ALL else self._registry.tool(field.removeprefix(_FOR_TOOL)).name
            grant = grants.get(value)
            if value == "" and tool in chosen:
                await answering.forget(connection, principal, tool=tool)
            elif grant is not None and chosen.get(tool) != grant.account:
                await answering.use(connection, principal, grant.account, tool=tool)
            elif value not in {"", "keep"} and grant is None:
                raise AccountUnknown("The account that you chose is not connected any more. Choose another.")

    async def _page(
        self, session: BrowserSession, principal: Principal, *, problem: str | None = None, status: int = 200
    ) -> Response:
        waiting = await self._services.authorization.open_for(principal.id)
        tools = await self._tools(principal)
        return page(
            "connections.html",
            title="My connections",
            session=session,
            status=status,
            problem=problem,
            waiting=await waiting_links(self._services, waiting),
            connections=await self._shown(principal.id, tools),
            tools=[(tool_path(tool.name), tool.declaration.title) for tool in tools],
        )

    async def _tools(self, principal: Principal) -> list[Tool]:
        """Return the tools that this person may call and that need a connection."""
        needing = sorted(name for name in self._registry.tools if self._registry.needs[name])
        allowed = await self._services.policy.allowed(principal, needing)
        found = [self._registry.tools[name] for name in allowed]
        return sorted(found, key=lambda tool: tool.declaration.title.casefold())

    async def _shown(self, principal_id: str, tools: list[Tool]) -> list[Shown]:
        known = await self._services.catalogue.all()
        accounts: dict[str, list[ShownAccount]] = {}
        for grant in await self._services.grants.of(principal_id):
            if grant.connection in known:
                accounts.setdefault(grant.connection, []).append(await self._account(principal_id, grant))
        chosen = await self._services.accounts.of(principal_id)
        shown = [self._one(known[name], accounts[name], chosen.get(name, {}), tools) for name in accounts]
        return sorted(shown, key=lambda each: each.connection.title.casefold())

    async def _account(self, principal_id: str, grant: Grant) -> ShownAccount:
        used = await self._services.trail.last_use(principal_id, grant.id, since=grant.created_at)
        tool = None if used is None else self._registry.title(used.event.get("tool") or "")
        return ShownAccount(grant, None if used is None else used.time, tool)

    def _one(
        self,
        connection: Connection,
        accounts: list[ShownAccount],
        chosen: Mapping[str, str],
        tools: list[Tool],
    ) -> Shown:
        if len(accounts) < 2 and not chosen:
            return Shown(connection, accounts, None, [])
        using = [tool for tool in tools if self._registry.uses(tool.name, connection.name)]
        for_tools = [
            Choice(f"{_FOR_TOOL}{tool.name}", tool.declaration.title, chosen.get(tool.name)) for tool in using
        ]
        return Shown(connection, accounts, Choice(_FOR_ALL, "Every tool", chosen.get("")), for_tools)
