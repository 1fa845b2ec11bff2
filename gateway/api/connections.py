"""Connections as their caller sees them: each with their own grant on it, which they may give up; it shows no token."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from engine.connections.catalogue import Connection
from engine.connections.grants import Grant
from engine.services import Services
from gateway.api.callers import Calling, CallingInPerson
from gateway.api.cursors import USUAL_LIMIT, After, Cursors, Limit, Page
from gateway.api.problems import Refused, problems
from gateway.grants import give_up
from gateway.runs import Caller

_NAME = Annotated[str, Path(max_length=200)]


class GrantShown(BaseModel):
    """What the caller consented to."""

    account: str = Field(description="The upstream's own name for the account; empty where it has none.")
    scopes: list[str]
    since: datetime


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
        description="The caller's own; always null where the connection is shared."
    )


def routes(services: Services) -> APIRouter:
    """List and read connections, and give up one's own grant."""
    router = APIRouter(tags=["connections"])
    cursors = Cursors(services.vault, "connections")

    @router.get("/connections", summary="List connections, with your grants", responses=problems(400, 422))
    async def list_connections(
        caller: Calling, after: After = None, limit: Limit = USUAL_LIMIT
    ) -> Page[ConnectionShown]:
        position = cursors.open(after)
        start = "" if position is None else str(position[0])
        known = await services.catalogue.all()
        names = sorted(name for name in known if name > start)[: limit + 1]
        granted = await _granted(services, caller)
        shown = [_shown(known[name], granted.get(name)) for name in names]
        return cursors.page(shown, [[name] for name in names], limit)

    @router.get(
        "/connections/{name}", summary="Get a connection, with your grant", responses=problems(404, 422)
    )
    async def get_connection(caller: Calling, name: _NAME) -> ConnectionShown:
        connection = await services.catalogue.get(name)
        return _shown(connection, (await _granted(services, caller)).get(name))

    @router.delete(
        "/connections/{name}/grant",
        summary="Give up your grant on a connection",
        status_code=HTTPStatus.NO_CONTENT,
        responses=problems(403, 404, 422, 502),
    )
    async def delete_grant(caller: CallingInPerson, name: _NAME) -> None:
        """It is forgotten here and revoked upstream; the next action that needs it asks again."""
        connection = await services.catalogue.get(name)
        if not await give_up(services, connection, caller.principal):
            detail = f"You have no grant on connection '{name}'."
            raise Refused(HTTPStatus.NOT_FOUND, "grant_unknown", detail)

    return router


async def _granted(services: Services, caller: Caller) -> dict[str, Grant]:
    return {grant.connection: grant for grant in await services.grants.of(caller.principal.id)}


def _shown(connection: Connection, grant: Grant | None) -> ConnectionShown:
    return ConnectionShown(
        name=connection.name,
        title=connection.title,
        system=connection.system,
        mode=connection.mode,
        scopes=list(connection.scopes),
        grant=None
        if grant is None
        else GrantShown(account=grant.account, scopes=list(grant.scopes), since=grant.created_at),
    )
