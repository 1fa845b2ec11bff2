"""Finds the sign-ins that a call of a tool would wait for, from stored grants alone. It starts no sign-in."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from engine.connections.catalogue import Catalogue
from engine.connections.connection import Connection
from engine.connections.grants import Grant, Grants
from engine.db.database import Database
from engine.needs import Need

State = Literal["connected", "missing", "lapsed", "too_narrow", "choice_needed"]


@dataclass(frozen=True, slots=True)
class ConnectionReadiness:
    """The state of one connection that a tool may use, for one principal.

    `account` is the account that would be used, if there is one. `missing_scopes` are the scopes that it lacks.
    """

    connection: Connection
    state: State
    account: str | None
    lacking: tuple[str, ...]
    accounts: tuple[Grant, ...]
    """All grants of the principal on this connection that can be used."""

    @property
    def is_ready(self) -> bool:
        """Whether no action would wait for a sign-in or an account choice, judged without asking the upstream."""
        return self.state == "connected"


class Readiness:
    """Compares the connections that a tool may use with the grants and account choices of a principal."""

    def __init__(self, database: Database, catalogue: Catalogue, grants: Grants) -> None:
        self._database = database
        self._catalogue = catalogue
        self._grants = grants

    async def of(self, principal_id: str, tool: str, needs: Iterable[Need]) -> list[ConnectionReadiness]:
        """Return the state of each connection that the tool may use, sorted by title; raises ConnectionUnknown."""
        found = [await self._one(principal_id, tool, need) for need in needs]
        return sorted(found, key=lambda each: each.connection.title.casefold())

    async def _one(self, principal_id: str, tool: str, need: Need) -> ConnectionReadiness:
        connection = await self._catalogue.get(need.connection)
        if connection.mode == "shared":
            return ConnectionReadiness(connection, "connected", None, (), ())
        async with self._database.reading() as session:
            standing = await self._grants.standing(session, connection, principal_id, tool=tool)
        if standing.grant is not None:
            lacking = tuple(sorted(set(need.scopes) - set(standing.grant.scopes)))
            state: State = "too_narrow" if lacking else "connected"
            return ConnectionReadiness(connection, state, standing.account, lacking, standing.usable)
        state = "choice_needed" if standing.usable else "lapsed" if standing.grants else "missing"
        lacking = tuple(sorted({*connection.scopes, *need.scopes}))
        return ConnectionReadiness(connection, state, standing.account, lacking, standing.usable)
