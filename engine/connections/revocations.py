"""Grants that ended here and that their upstreams are still to be told of: an outbox, so that no revocation is lost."""

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
    """A grant whose upstream is to be told that it ended; `is_last` says that this is the last try."""

    grant_id: str
    holder: str
    connection: str
    is_last: bool


class Revocations:
    """Owner of the table of revocations. Tokens lie here, sealed, until the upstream was told or a week has passed."""

    def __init__(self, database: Database, vault: Vault, sign_in: Callable[[Connection], SignIn]) -> None:
        self._database = database
        self._vault = vault
        self._sign_in = sign_in

    async def owe(
        self, session: AsyncSession, grant_id: str, holder: str, connection: str, sealed: bytes
    ) -> None:
        """Owe the upstream word of the tokens that were sealed for this grant, in the caller's transaction.

        The caller tells it afterwards; what they did not come to is due a minute later.
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
        """What is to be tried now, the longest due first."""
        query = select(RevocationRow).where(col(RevocationRow.due_at) <= now())
        async with self._database.reading() as session:
            rows = (await session.exec(query.order_by(col(RevocationRow.due_at)).limit(limit))).all()
        return [
            Revocation(row.grant_id, row.holder, row.connection, row.created_at + _PATIENCE <= now())
            for row in rows
        ]

    async def settle(self, connection: Connection, grant_id: str) -> bool:
        """Tell the upstream and forget the tokens; False where it has no way to be told (RFC 7009) or does not take it.

        Raises what kept the upstream from being told, which is owed still.
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
        """Try again later: the longer it has been due, the later."""
        async with self._database.writing() as session:
            row = await session.get(RevocationRow, grant_id, with_for_update=True)
            if row is not None:
                row.due_at = _later(row.created_at)
                session.add(row)

    async def forget(self, grant_id: str) -> None:
        """Owe nothing of this grant any more."""
        async with self._database.writing() as session:
            await session.exec(delete(RevocationRow).where(col(RevocationRow.grant_id) == grant_id))

    @property
    def sealed(self) -> SealedColumn:
        """Where this table keeps what the vault sealed."""
        return SealedColumn("revocations", RevocationRow, "sealed_tokens", _bound_to)


def _later(created_at: datetime) -> datetime:
    return now() + min(max(now() - created_at, _FIRST_RETRY), _LONGEST_RETRY)


def bound_to_grant(grant_id: str, holder: str, connection: str) -> str:
    """What the tokens of a grant are bound to, in its own row and here: they move without being opened."""
    return f"grant:{grant_id}:{holder}:{connection}"


def _bound_to(row: RevocationRow) -> str:
    return bound_to_grant(row.grant_id, row.holder, row.connection)
