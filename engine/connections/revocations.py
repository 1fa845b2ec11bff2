"""The outbox of upstream revocations: grants that ended here and are still to be revoked at their upstreams."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.connections.connection import Connection
from engine.connections.sign_in.methods import SignIn
from engine.connections.tokens import Tokens
from engine.db.database import Database, now
from engine.db.tables import RevocationRow
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault

_TOLD_WITHIN: Final = timedelta(minutes=1)
_FIRST_RETRY: Final = timedelta(minutes=5)
_LONGEST_RETRY: Final = timedelta(hours=12)
_PATIENCE: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Revocation:
    """A grant that is to be revoked upstream. `is_last_try` says that it is not tried again after this."""

    grant_id: str
    holder: str
    connection: str
    is_last: bool


class Revocations:
    """Owns the table of revocations. It holds sealed tokens until the upstream revoked them or a week has passed."""

    def __init__(self, database: Database, vault: Vault, sign_in: Callable[[Connection], SignIn]) -> None:
        self._database = database
        self._vault = vault
        self._sign_in = sign_in

    async def owe(
        self, session: AsyncSession, grant_id: str, holder: str, connection: str, sealed: bytes
    ) -> None:
        """Enqueue the revocation of the tokens that were sealed for this grant, in the caller's transaction.

        The caller revokes them upstream afterwards. If that does not happen, the revocation is due after one minute.
        """
        row = RevocationRow(
            grant_id=grant_id,
            holder=holder,
            connection=connection,
            sealed_tokens=sealed,
            created_at=now(),
            due_at=now() + _TOLD_WITHIN,
        )
        await session.merge(row)

    async def due(self, limit: int = 100) -> list[Revocation]:
        """Return the revocations that are due now, the longest due first."""
        query = select(RevocationRow).where(col(RevocationRow.due_at) <= now())
        async with self._database.reading() as session:
            rows = (await session.exec(query.order_by(col(RevocationRow.due_at)).limit(limit))).all()
        return [
            Revocation(row.grant_id, row.holder, row.connection, row.created_at + _PATIENCE <= now())
            for row in rows
        ]

    async def settle(self, connection: Connection, grant_id: str) -> bool:
        """Revoke a grant's tokens upstream and delete them here.

        Returns False if the upstream has no revocation endpoint (RFC 7009) or refuses. Raises the error that kept the
        upstream from being reached. The revocation then stays enqueued.
        """
        async with self._database.reading() as session:
            row = await session.get(RevocationRow, grant_id)
        if row is None:
            return True
        tokens = Tokens.from_text(await self._vault.open(row.sealed_tokens, _bound_to(row)))
        taken = await self._sign_in(connection).revoke(tokens)
        await self.forget(grant_id)
        return taken

    async def put_off(self, grant_id: str) -> None:
        """Postpone the next try. The delay grows with the age of the revocation, from 5 minutes to 12 hours."""
        async with self._database.writing() as session:
            row = await session.get(RevocationRow, grant_id, with_for_update=True)
            if row is not None:
                row.due_at = _later(row.created_at)
                session.add(row)

    async def forget(self, grant_id: str) -> None:
        """Delete the revocation of this grant."""
        async with self._database.writing() as session:
            await session.exec(delete(RevocationRow).where(col(RevocationRow.grant_id) == grant_id))

    @property
    def sealed(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn("revocations", RevocationRow, "sealed_tokens", _bound_to)


def _later(created_at: datetime) -> datetime:
    return now() + min(max(now() - created_at, _FIRST_RETRY), _LONGEST_RETRY)


def bound_to_grant(grant_id: str, holder: str, connection: str) -> str:
    """Return the associated data to which the vault binds the sealed tokens of a grant.

    It is the same in the tables of grants and of revocations, so sealed tokens move without being opened.
    """
    return f"grant:{grant_id}:{holder}:{connection}"


def _bound_to(row: RevocationRow) -> str:
    return bound_to_grant(row.grant_id, row.holder, row.connection)
