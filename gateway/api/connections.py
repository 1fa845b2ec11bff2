"""REST routes for connections as the caller sees them: their own grants, and which account is used. Shows no token."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from engine.connections.accounts import Chosen as AccountsChosen
from engine.connections.connection import Connection
from engine.connections.grants import Grant, Standing
from engine.errors import NotAllowed
from engine.registry import Registry
from engine.services import Services
from gateway.api.callers import Calling, CallingInPerson
from gateway.api.cursors import USUAL_LIMIT, After, Cursors, Limit, Page
from gateway.api.problems import Refused, problems
from gateway.grants import give_up
from gateway.runs.runs import Caller

_NAME = Annotated[str, Path(max_length=200)]
_ACCOUNT = Annotated[
    str | None,
    Query(max_length=1000, description="Which account, where you have several on the connection."),
]
_TOOL = Annotated[
    str | None,
    Query(max_length=200, description="A tool; without it, every tool that has no account of its own."),
]


class GrantShown(BaseModel):
    """What the caller consented to."""

    account: str = Field(description="The upstream's own name for the account; empty where it has none.")
    scopes: list[str]
    since: datetime
    lapsed: bool = Field(
        description="Whether the upstream took it back, so that it has to be signed in to again."
    )


class Chosen(BaseModel):
    """Which account is used."""

    tool: str | None = Field(description="By this tool; null where by every tool that has none of its own.")
    account: str


class Choice(BaseModel):
    """Which account to use from now on."""

    model_config = ConfigDict(extra="forbid")

    account: str = Field(max_length=1000, description="One that you have connected.")
    tool: str | None = Field(
        default=None,
        max_length=200,
        description="For this tool; without it, for every tool that has none of its own.",
    )


class ConnectionShown(BaseModel):
    """One way to sign in to one upstream system."""

    name: str
    title: str
    system: str
    mode: Literal["user", "shared"] = Field(
        description="`user`: each person's own account. `shared`: one account of the service, for everybody."
    )
    scopes: list[str] = Field(description="What is asked for when somebody signs in.")
    grant: GrantShown | None = Field(
        description="The caller's own that tools without an account of their own use; null where there is none, where "
        "it has to be chosen, and where the connection is shared."
    )
    accounts: list[GrantShown] = Field(
        description="All of the caller's own; for a token that is limited to tools, those that these use."
    )
    chosen: list[Chosen] = Field(
        description="What the caller chose; runs that have begun to use an account keep it."
    )


def routes(services: Services, registry: Registry) -> APIRouter:
    """Build the router that lists and reads connections, chooses accounts, and gives up the caller's own grants."""
    router = APIRouter(tags=["connections"])
    cursors = Cursors(services.vault, "connections")

    @router.get("/connections", summary="List connections, with your grants", responses=problems(400, 422))
    async def list_connections(
        caller: Calling, after: After = None, limit: Limit = USUAL_LIMIT
    ) -> Page[ConnectionShown]:
        """A token that is limited to some tools sees what these use, and the accounts that they use there."""
        position = cursors.open(after)
        start = "" if position is None else str(position[0])
        known = await services.catalogue.all()
        own = await _own(services, registry, caller)
        names = sorted(name for name in known if name > start and own.reach.has(name))[: limit + 1]
        shown = [own.shown(known[name]) for name in names]
        return cursors.page(shown, [[name] for name in names], limit)

    @router.get(
        "/connections/{name}", summary="Get a connection, with your grant", responses=problems(403, 404, 422)
    )
    async def get_connection(caller: Calling, name: _NAME) -> ConnectionShown:
        connection = await services.catalogue.get(name)
        own = await _own(services, registry, caller)
        own.reach.require(name)
        return own.shown(connection)

    @router.put(
        "/connections/{name}/choice",
        summary="Choose which of your accounts is used",
        responses=problems(403, 404, 422),
    )
    async def choose(caller: CallingInPerson, name: _NAME, choice: Choice) -> ConnectionShown:
        """It holds until you change it, for runs that begin to use the connection from now on."""
        connection = await _personal(services, name)
        tool = "" if choice.tool is None else registry.tool(choice.tool).name
        await services.answering.use(connection, caller.principal, choice.account, tool=tool)
        return (await _own(services, registry, caller)).shown(connection)

    @router.delete(
        "/connections/{name}/choice",
        summary="Take back what you chose",
        status_code=HTTPStatus.NO_CONTENT,
        responses=problems(403, 404, 422),
    )
    async def unchoose(caller: CallingInPerson, name: _NAME, tool: _TOOL = None) -> None:
        """Without a choice your only account is used, and of several you are asked which."""
        connection = await _personal(services, name)
        await services.answering.forget(connection, caller.principal, tool=tool or "")

    @router.delete(
        "/connections/{name}/grant",
        summary="Give up your grant on a connection",
        status_code=HTTPStatus.NO_CONTENT,
        responses=problems(403, 404, 409, 422, 502),
    )
    async def delete_grant(caller: CallingInPerson, name: _NAME, account: _ACCOUNT = None) -> None:
        """It is forgotten here and revoked upstream; the next action that needs it asks again."""
        connection = await services.catalogue.get(name)
        if not await give_up(services, connection, caller.principal, account):
            of = "" if account is None else f" of account '{account}'"
            detail = f"You have no grant{of} on connection '{name}'."
            raise Refused(HTTPStatus.NOT_FOUND, "grant_unknown", detail)

    return router


@dataclass(frozen=True, slots=True)
class Reach:
    """The connections that a caller's token covers: those that its `tools` use, or all where `tools` is None."""

    registry: Registry
    tools: frozenset[str] | None

    def has(self, connection: str) -> bool:
        """Return whether the token covers the connection."""
        return self.tools is None or bool(self.on(connection))

    def on(self, connection: str) -> list[str]:
        """Return those of the tools that the token is limited to that use the connection, sorted by name."""
        return sorted(tool for tool in self.tools or () if self.registry.uses(tool, connection))

    def require(self, connection: str) -> None:
        """Raise NotAllowed where the token does not cover the connection."""
        if not self.has(connection):
            raise NotAllowed(
                f"This token is for tools that do not use '{connection}'. Make one for others, or sign in."
            )


@dataclass(frozen=True, slots=True)
class _Own:
    """The caller's grants and chosen accounts by connection, as far as their token covers these."""

    grants: Mapping[str, list[Grant]]
    chosen: Mapping[str, Mapping[str, str]]
    reach: Reach

    def shown(self, connection: Connection) -> ConnectionShown:
        grants, chosen = self.grants.get(connection.name, []), self.chosen.get(connection.name, {})
        used = Standing(tuple(grants), AccountsChosen(for_all=chosen.get(""))).grant
        if self.reach.tools is not None:
            tools = self.reach.on(connection.name)
            accounts = {
                Standing(tuple(grants), AccountsChosen(None, chosen.get(tool), chosen.get(""))).account
                for tool in tools
            }
            grants = [grant for grant in grants if grant.account in accounts]
            used = used if used in grants else None
            chosen = {
                tool: account
                for tool, account in chosen.items()
                if account in accounts and tool in {"", *tools}
            }
        return ConnectionShown(
            name=connection.name,
            title=connection.title,
            system=connection.system,
            mode=connection.mode,
            scopes=list(connection.scopes),
            grant=None if used is None else _grant_shown(used),
            accounts=[_grant_shown(grant) for grant in grants],
            chosen=[Chosen(tool=tool or None, account=account) for tool, account in sorted(chosen.items())],
        )


async def _own(services: Services, registry: Registry, caller: Caller) -> _Own:
    grants: dict[str, list[Grant]] = {}
    for grant in await services.grants.of(caller.principal.id):
        grants.setdefault(grant.connection, []).append(grant)
    chosen = await services.accounts.of(caller.principal.id)
    return _Own(grants, chosen, Reach(registry, caller.tools))


async def _personal(services: Services, name: str) -> Connection:
    connection = await services.catalogue.get(name)
    if connection.mode == "shared":
        raise NotAllowed(
            f"Connection '{name}' is shared: it has one account, for everybody, and nobody chooses."
        )
    return connection


def _grant_shown(grant: Grant) -> GrantShown:
    return GrantShown(
        account=grant.account, scopes=list(grant.scopes), since=grant.created_at, lapsed=grant.has_lapsed
    )
