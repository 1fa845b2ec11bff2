"""Stores the sealed tokens of each person's sign-in at the external identity provider, for later assertions.

It makes no request to the identity provider.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, delete
from sqlmodel import col

from engine.db.database import Database
from engine.db.lease import Lease
from engine.db.tables import IdpSessionRow
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault
from engine.wire import IDP_SESSION_SEAL


@dataclass(frozen=True, slots=True)
class IdpSession:
    """A person's latest sign-in at the identity provider.

    `expires_at` is when the ID token expires, in seconds since the epoch.
    """

    version: int
    id_token: str
    refresh_token: str | None
    expires_at: float

    def __repr__(self) -> str:
        return f"CompanySignIn(version={self.version}, expires_at={self.expires_at})"


class IdpSessions:
    """Stores and deletes sign-ins at the identity provider, and owns their table."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self.lease = Lease(database, IdpSessionRow.refreshing_until)

    async def store_session(
        self, principal_id: str, id_token: str, refresh_token: str | None, expires_at: float
    ) -> None:
        """Store a sign-in and replace the person's earlier one."""
        async with self._database.open_write_session() as db_session:
            session_row = await db_session.get(IdpSessionRow, principal_id, with_for_update=True)
            idp_session = IdpSession(
                1 if session_row is None else session_row.version + 1, id_token, refresh_token, expires_at
            )
            session_row = session_row or IdpSessionRow(principal_id=principal_id, sealed_tokens=b"")
            session_row.version = idp_session.version
            session_row.sealed_tokens = await self._vault.seal_secret(
                json.dumps(asdict(idp_session)).encode(), _build_associated_data(principal_id)
            )
            session_row.expires_at = datetime.fromtimestamp(expires_at, UTC)
            session_row.refreshing_until = None
            db_session.add(session_row)

    async def find_session(self, principal_id: str) -> IdpSession | None:
        """Return a person's latest sign-in, or None if there is none or it was deleted."""
        async with self._database.open_read_session() as db_session:
            session_row = await db_session.get(IdpSessionRow, principal_id)
        if session_row is None:
            return None
        unsealed_session = await self._vault.open_secret(
            session_row.sealed_tokens, _build_associated_data(principal_id)
        )
        return IdpSession(**json.loads(unsealed_session))

    async def delete_session(self, principal_id: str) -> None:
        """Delete a sign-in that the identity provider does not accept any more."""
        statement = delete(IdpSessionRow).where(col(IdpSessionRow.principal_id) == principal_id)
        async with self._database.open_write_session() as db_session:
            await db_session.exec(statement)

    @property
    def sealed_column(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn(
            "company sign-ins",
            IdpSessionRow,
            "sealed_tokens",
            lambda session_row: _build_associated_data(session_row.principal_id),
        )


def select_version(principal_id: str, version: int) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions that select this sign-in of a person while nobody has renewed it."""
    return col(IdpSessionRow.principal_id) == principal_id, col(IdpSessionRow.version) == version


def _build_associated_data(principal_id: str) -> str:
    return IDP_SESSION_SEAL.format(principal_id=principal_id)
