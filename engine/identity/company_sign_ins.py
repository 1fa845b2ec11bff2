"""Stores the sealed tokens of each person's sign-in at the external identity provider, for later assertions.

It makes no request to the identity provider.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, update
from sqlmodel import col, or_

from engine.db.database import Database, now
from engine.db.tables import CompanySignInRow
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault

_LEASE = timedelta(seconds=45)


@dataclass(frozen=True, slots=True)
class CompanySignIn:
    """A person's latest sign-in at the identity provider.

    `expires_at` is when the ID token expires, in seconds since the epoch.
    """

    version: int
    id_token: str
    refresh_token: str | None
    expires_at: float

    def __repr__(self) -> str:
        return f"CompanySignIn(version={self.version}, expires_at={self.expires_at})"


class CompanySignIns:
    """Stores, leases and deletes sign-ins at the identity provider, and owns their table."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def keep(
        self, principal_id: str, id_token: str, refresh_token: str | None, expires_at: float
    ) -> None:
        """Store a sign-in and replace the person's earlier one."""
        async with self._database.writing() as session:
            row = await session.get(CompanySignInRow, principal_id, with_for_update=True)
            signed_in = CompanySignIn(
                1 if row is None else row.version + 1, id_token, refresh_token, expires_at
            )
            row = row or CompanySignInRow(principal_id=principal_id, sealed_tokens=b"")
            row.version = signed_in.version
            row.sealed_tokens = await self._vault.seal(
                json.dumps(asdict(signed_in)).encode(), _bound_to(principal_id)
            )
            row.expires_at = datetime.fromtimestamp(expires_at, UTC)
            row.refreshing_until = None
            session.add(row)

    async def of(self, principal_id: str) -> CompanySignIn | None:
        """Return a person's latest sign-in, or None if there is none or it was deleted."""
        async with self._database.reading() as session:
            row = await session.get(CompanySignInRow, principal_id)
        if row is None:
            return None
        opened = await self._vault.open(row.sealed_tokens, _bound_to(principal_id))
        return CompanySignIn(**json.loads(opened))

    async def take_turn(self, principal_id: str, version: int) -> bool:
        """Lease the refresh of this version to this process for 45 seconds; returns False if another process has it."""
        free = or_(
            col(CompanySignInRow.refreshing_until).is_(None), col(CompanySignInRow.refreshing_until) < now()
        )
        turn = (
            update(CompanySignInRow)
            .where(
                col(CompanySignInRow.principal_id) == principal_id,
                col(CompanySignInRow.version) == version,
                free,
            )
            .values(refreshing_until=now() + _LEASE)
        )
        async with self._database.writing() as session:
            return (await session.exec(turn)).rowcount == 1

    async def end_turn(self, principal_id: str) -> None:
        """Release the lease, so that another process can refresh."""
        end = update(CompanySignInRow).where(col(CompanySignInRow.principal_id) == principal_id)
        async with self._database.writing() as session:
            await session.exec(end.values(refreshing_until=None))

    async def forget(self, principal_id: str) -> None:
        """Delete a sign-in that the identity provider does not accept any more."""
        gone = delete(CompanySignInRow).where(col(CompanySignInRow.principal_id) == principal_id)
        async with self._database.writing() as session:
            await session.exec(gone)

    @property
    def sealed(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn(
            "company sign-ins", CompanySignInRow, "sealed_tokens", lambda row: _bound_to(row.principal_id)
        )


def _bound_to(principal_id: str) -> str:
    return f"company_sign_in:{principal_id}"
