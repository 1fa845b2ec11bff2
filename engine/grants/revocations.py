"""The outbox of upstream revocations: grants that ended here and are still to be revoked at their upstreams."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.connections.connection import Connection
from engine.db.database import Database, utc_now
from engine.db.tables import RevocationRow
from engine.grants.token_source import TokenSource
from engine.oauth.tokens import UpstreamTokens
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault
from engine.wire import GRANT_SEAL

_FIRST_TRY_DELAY: Final = timedelta(minutes=1)
_MIN_RETRY_DELAY: Final = timedelta(minutes=5)
_MAX_RETRY_DELAY: Final = timedelta(hours=12)
_RETRY_PERIOD: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class PendingRevocation:
    """A grant that is to be revoked upstream. `is_last_try` says that it is not tried again after this."""

    grant_id: str
    holder: str
    connection_name: str
    is_last_try: bool


class Revocations:
    """Owns the table of revocations. It holds sealed tokens until the upstream revoked them or a week has passed."""

    def __init__(
        self, database: Database, vault: Vault, find_token_source: Callable[[Connection], TokenSource]
    ) -> None:
        self._database = database
        self._vault = vault
        self._find_token_source = find_token_source

    async def enqueue_revocation(
        self, db_session: AsyncSession, grant_id: str, holder: str, connection_name: str, sealed_tokens: bytes
    ) -> None:
        """Enqueue the revocation of the tokens that were sealed for this grant, in the caller's transaction.

        The caller revokes them upstream afterwards. If that does not happen, the revocation is due after one minute.
        """
        revocation_row = RevocationRow(
            grant_id=grant_id,
            holder=holder,
            connection=connection_name,
            sealed_tokens=sealed_tokens,
            created_at=utc_now(),
            due_at=utc_now() + _FIRST_TRY_DELAY,
        )
        await db_session.merge(revocation_row)

    async def list_due_revocations(self, max_rows: int = 100) -> list[PendingRevocation]:
        """Return the revocations that are due now, the longest due first."""
        statement = select(RevocationRow).where(col(RevocationRow.due_at) <= utc_now())
        async with self._database.open_read_session() as db_session:
            revocation_rows = (
                await db_session.exec(statement.order_by(col(RevocationRow.due_at)).limit(max_rows))
            ).all()
        return [
            PendingRevocation(
                revocation_row.grant_id,
                revocation_row.holder,
                revocation_row.connection,
                revocation_row.created_at + _RETRY_PERIOD <= utc_now(),
            )
            for revocation_row in revocation_rows
        ]

    async def revoke_upstream(self, connection: Connection, grant_id: str) -> bool:
        """Revoke a grant's tokens upstream and delete them here.

        Returns False if the upstream has no revocation endpoint (RFC 7009) or refuses. Raises the error that kept the
        upstream from being reached. The revocation then stays enqueued.
        """
        async with self._database.open_read_session() as db_session:
            revocation_row = await db_session.get(RevocationRow, grant_id)
        if revocation_row is None:
            return True
        tokens = UpstreamTokens.from_json(
            await self._vault.open_secret(
                revocation_row.sealed_tokens, _build_associated_data(revocation_row)
            )
        )
        is_accepted = await self._find_token_source(connection).revoke(tokens)
        await self.delete_revocation(grant_id)
        return is_accepted

    async def postpone_revocation(self, grant_id: str) -> None:
        """Postpone the next try. The delay grows with the age of the revocation, from 5 minutes to 12 hours."""
        async with self._database.open_write_session() as db_session:
            revocation_row = await db_session.get(RevocationRow, grant_id, with_for_update=True)
            if revocation_row is not None:
                revocation_row.due_at = _compute_retry_time(revocation_row.created_at)
                db_session.add(revocation_row)

    async def delete_revocation(self, grant_id: str) -> None:
        """Delete the revocation of this grant."""
        async with self._database.open_write_session() as db_session:
            await db_session.exec(delete(RevocationRow).where(col(RevocationRow.grant_id) == grant_id))

    @property
    def sealed_column(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn("revocations", RevocationRow, "sealed_tokens", _build_associated_data)


def _compute_retry_time(created_at: datetime) -> datetime:
    return utc_now() + min(max(utc_now() - created_at, _MIN_RETRY_DELAY), _MAX_RETRY_DELAY)


def build_grant_associated_data(grant_id: str, holder: str, connection_name: str) -> str:
    """Return the associated data to which the vault binds the sealed tokens of a grant.

    It is the same in the tables of grants and of revocations, so sealed tokens move without being opened.
    """
    return GRANT_SEAL.format(grant_id=grant_id, holder=holder, connection=connection_name)


def _build_associated_data(revocation_row: RevocationRow) -> str:
    return build_grant_associated_data(
        revocation_row.grant_id, revocation_row.holder, revocation_row.connection
    )
