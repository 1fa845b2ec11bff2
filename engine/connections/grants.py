"""Selects the grant that an action uses, and stores and revokes grants.

On a `user` connection an action uses only its own principal's grants.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlmodel.ext.asyncio.session import AsyncSession

from engine.connections.accounts import Accounts, Chosen
from engine.connections.connection import Connection
from engine.connections.dpop import ProofKey
from engine.connections.grant_records import GrantRecords
from engine.connections.renewals import Renewals
from engine.connections.revocations import Revocations
from engine.connections.tokens import Tokens
from engine.db.database import Database
from engine.db.tables import GrantRow
from engine.errors import AccountUnclear
from engine.vault.resealing import SealedColumn


@dataclass(frozen=True, slots=True)
class Credential:
    """A usable access token, and what the audit trail may record about it. `repr` hides the token.

    `is_pinned` says whether the run that asked for the credential is already pinned to this account until it ends.
    """

    grant_id: str
    account: str
    scopes: tuple[str, ...]
    fingerprint: str
    version: int
    access_token: str
    proof_key: ProofKey | None
    is_settled: bool = True

    def __repr__(self) -> str:
        return f"Credential(grant_id={self.grant_id!r}, account={self.account!r}, version={self.version})"


@dataclass(frozen=True, slots=True)
class Grant:
    """A holder's consent on a connection, with one account. It cannot be used once it `has_lapsed`."""

    id: str
    connection: str
    account: str
    scopes: tuple[str, ...]
    created_at: datetime
    has_lapsed: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """The grants from which a principal's action selects on a connection, and the principal's account choices."""

    grants: tuple[Grant, ...]
    chosen: Chosen

    @property
    def account(self) -> str | None:
        """The account to use, or None if the owner must choose one or there is none."""
        return self.chosen.among([grant.account for grant in self.grants])

    @property
    def usable(self) -> tuple[Grant, ...]:
        """The grants that can be used."""
        return tuple(grant for grant in self.grants if not grant.has_lapsed)

    @property
    def grant(self) -> Grant | None:
        """The grant to use, or None if the selected account has no active grant."""
        account = self.account
        return next((grant for grant in self.usable if grant.account == account), None)


class Grants:
    """The grants of principals, and the credentials of their actions."""

    def __init__(
        self,
        database: Database,
        records: GrantRecords,
        renewals: Renewals,
        accounts: Accounts,
        revocations: Revocations,
    ) -> None:
        self._database = database
        self._records = records
        self._renewals = renewals
        self._accounts = accounts
        self._revocations = revocations

    async def credential(
        self, connection: Connection, principal_id: str, *, tool: str = "", run_id: str = ""
    ) -> Credential | None:
        """Return the credential of this principal's actions on this connection, renewed if about to expire, or None.

        Of several accounts, the one to which the run is pinned is used, then the one chosen for the tool, then the one
        chosen for all tools.
        """
        is_settled = True
        if connection.mode == "shared":
            row = await self._renewals.shared(connection)
        else:
            async with self._database.reading() as session:
                standing, rows = await self._standing(session, connection, principal_id, tool, run_id)
            is_settled = standing.chosen.is_settled or not run_id
            row = None if standing.grant is None else rows[standing.grant.id]
        if row is not None:
            row = await self._renewals.in_time(connection, row)
        return None if row is None else await self._credential(row, is_settled=is_settled)

    async def renewed(self, connection: Connection, principal_id: str, used: Credential) -> Credential | None:
        """Return a newer credential of the account whose credential the upstream refused, or None if there is none."""
        row = await self._records.in_force(connection, connection.holder(principal_id), used.account)
        if row is not None and (row.id, row.version) == (used.grant_id, used.version):
            row = await self._renewals.renewed(connection, row)
        return None if row is None else await self._credential(row)

    async def standing(
        self,
        session: AsyncSession,
        connection: Connection,
        principal_id: str,
        *,
        tool: str = "",
        run_id: str = "",
    ) -> Standing:
        """Return the situation of an action of this run of this tool, read in the caller's transaction."""
        return (await self._standing(session, connection, principal_id, tool, run_id))[0]

    async def settle(
        self, connection: Connection, principal_id: str, run_id: str, credential: Credential
    ) -> bool:
        """Pin the run to the account of this credential. Returns False if it is pinned to another account by now."""
        if credential.is_settled:
            return True
        kept = await self._accounts.keep(principal_id, connection.name, run_id, credential.account)
        return kept == credential.account

    async def store(
        self, session: AsyncSession, connection: Connection, principal_id: str, tokens: Tokens, account: str
    ) -> str:
        """Store a new grant in place of the holder's earlier one with this account, and return its id.

        Writes in the caller's transaction. A shared connection has one grant, whatever its account.
        """
        holder = connection.holder(principal_id)
        return await self._records.replace(session, connection, holder, tokens, account)

    async def scopes_held(
        self, connection: Connection, principal_id: str, account: str | None = None
    ) -> tuple[str, ...]:
        """Return the scopes of the active grant with this account, or of all active grants if `account` is None.

        A step-up authorization requests them again, so that it loses none.
        """
        return await self._records.scopes(connection, connection.holder(principal_id), account)

    async def invalidate(self, credential: Credential) -> None:
        """Mark the grant of a credential that the upstream refuses as lapsed."""
        await self._records.lapse(credential.grant_id)

    async def remove(
        self, connection: Connection, principal_id: str, account: str | None = None
    ) -> str | None:
        """Revoke the holder's grant with this account, or their only one, here and upstream.

        Returns its account, or None if there was none. Raises AccountUnclear if there are several. Raises the error
        that kept the upstream from revoking it: the grant is revoked here nevertheless, and its upstream revocation
        stays enqueued.
        """
        async with self._database.reading() as session:
            rows = await self._records.kept(session, connection, connection.holder(principal_id))
        found = [row for row in rows if account is None or row.account == account]
        if len(found) > 1:
            named = ", ".join(f"'{row.account}'" for row in found)
            raise AccountUnclear(
                f"There are several accounts on connection '{connection.name}': say which of {named}."
            )
        for row in found:
            if await self._records.end(row.id):
                await self._revocations.settle(connection, row.id)
                return row.account
        return None

    async def end_all(self, holder: str) -> list[Grant]:
        """Revoke every grant of a holder here, enqueue their upstream revocations, and return the revoked grants."""
        rows = await self._records.all_kept(holder)
        return [_grant(row) for row in rows if await self._records.end(row.id)]

    async def holders(self) -> frozenset[str]:
        """Return every holder of an unrevoked grant."""
        return await self._records.holders()

    async def given_up(self, connection: Connection, principal_id: str) -> set[str]:
        """Return the accounts whose latest grant was revoked here, by its holder or by an administrator."""
        return await self._records.given_up(connection, connection.holder(principal_id))

    async def is_given_up(
        self, session: AsyncSession, connection: Connection, principal_id: str, account: str
    ) -> bool:
        """Return whether this account's latest grant was revoked here.

        The answer holds until the caller's transaction ends.
        """
        return await self._records.is_given_up(session, connection, connection.holder(principal_id), account)

    async def of(self, holder: str) -> list[Grant]:
        """Return every unrevoked grant of a holder, including lapsed ones."""
        return [_grant(row) for row in await self._records.all_kept(holder)]

    async def usable(self, holder: str, connection: str) -> list[Grant]:
        """Return a holder's active grants on the connection with this name, ordered by account."""
        return [
            grant
            for grant in await self.of(holder)
            if grant.connection == connection and not grant.has_lapsed
        ]

    @property
    def sealed(self) -> SealedColumn:
        """The column of the table of grants that the vault seals."""
        return self._records.sealed

    async def _standing(
        self, session: AsyncSession, connection: Connection, principal_id: str, tool: str, run_id: str
    ) -> tuple[Standing, dict[str, GrantRow]]:
        rows = await self._records.kept(session, connection, connection.holder(principal_id))
        chosen = await self._accounts.chosen(session, principal_id, connection.name, tool=tool, run_id=run_id)
        return Standing(tuple(_grant(row) for row in rows), chosen), {row.id: row for row in rows}

    async def _credential(self, row: GrantRow, *, is_settled: bool = True) -> Credential:
        tokens = await self._records.tokens(row)
        return Credential(
            grant_id=row.id,
            account=row.account,
            scopes=tuple(row.scopes.split()),
            fingerprint=row.fingerprint,
            version=row.version,
            access_token=tokens.access_token,
            proof_key=None if tokens.proof_key is None else ProofKey.from_jwk(tokens.proof_key),
            is_settled=is_settled,
        )


def _grant(row: GrantRow) -> Grant:
    scopes = tuple(row.scopes.split())
    return Grant(row.id, row.connection, row.account, scopes, row.created_at, row.lapsed_at is not None)
