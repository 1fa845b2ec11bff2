"""Finds the sign-ins that a call of a tool would wait for, from stored grants alone. It starts no sign-in."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from engine.connections.catalogue import ConnectionCatalogue
from engine.connections.connection import Connection
from engine.db.database import Database
from engine.grants.grants import Grant, Grants
from engine.tools.needs import ConnectionNeed

ReadinessState = Literal["connected", "missing", "lapsed", "too_narrow", "choice_needed"]


@dataclass(frozen=True, slots=True)
class ConnectionReadiness:
    """The state of one connection that a tool may use, for one principal.

    `account` is the account that would be used, if there is one. `missing_scopes` are the scopes that it lacks.
    """

    connection: Connection
    state: ReadinessState
    account: str | None
    missing_scopes: tuple[str, ...]
    usable_grants: tuple[Grant, ...]
    """All grants of the principal on this connection that can be used."""

    @property
    def is_ready(self) -> bool:
        """Whether no action would wait for a sign-in or an account choice, judged without asking the upstream."""
        return self.state == "connected"


class ReadinessChecker:
    """Compares the connections that a tool may use with the grants and account choices of a principal."""

    def __init__(self, database: Database, catalogue: ConnectionCatalogue, grants: Grants) -> None:
        self._database = database
        self._catalogue = catalogue
        self._grants = grants

    async def check_connections(
        self, principal_id: str, tool_name: str, needs: Iterable[ConnectionNeed]
    ) -> list[ConnectionReadiness]:
        """Return the state of each connection that the tool may use, sorted by title; raises ConnectionUnknown."""
        connection_states = [
            await self._check_connection(principal_id, tool_name, connection_need)
            for connection_need in needs
        ]
        return sorted(connection_states, key=lambda readiness: readiness.connection.title.casefold())

    async def _check_connection(
        self, principal_id: str, tool_name: str, connection_need: ConnectionNeed
    ) -> ConnectionReadiness:
        connection = await self._catalogue.get_connection(connection_need.connection_name)
        if connection.mode == "shared":
            return ConnectionReadiness(connection, "connected", None, (), ())
        async with self._database.open_read_session() as db_session:
            grant_situation = await self._grants.find_situation(
                db_session, connection, principal_id, tool_name=tool_name
            )
        if grant_situation.selected_grant is not None:
            missing_scopes = tuple(
                sorted(set(connection_need.scopes) - set(grant_situation.selected_grant.scopes))
            )
            readiness_state: ReadinessState = "too_narrow" if missing_scopes else "connected"
            return ConnectionReadiness(
                connection,
                readiness_state,
                grant_situation.selected_account,
                missing_scopes,
                grant_situation.active_grants,
            )
        readiness_state = (
            "choice_needed"
            if grant_situation.active_grants
            else "lapsed"
            if grant_situation.grants
            else "missing"
        )
        missing_scopes = tuple(sorted({*connection.scopes, *connection_need.scopes}))
        return ConnectionReadiness(
            connection,
            readiness_state,
            grant_situation.selected_account,
            missing_scopes,
            grant_situation.active_grants,
        )
