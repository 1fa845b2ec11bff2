"""Whose grant an action uses, and what people do with theirs; a `user` connection yields its principal's own alone."""

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
    """A usable access token, and what the trail may say of it. `repr` hides the token.

    `is_settled` says whether the run that asked uses this account for its whole life already.
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
    """What a holder consented to on a connection, with one account; of no use once it `has_lapsed`."""

    id: str
    connection: str
    account: str
    scopes: tuple[str, ...]
    created_at: datetime
    has_lapsed: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """What a principal's action has to go by: their grants on the connection, and what they chose."""

    grants: tuple[Grant, ...]
    chosen: Chosen

    @property
    def account(self) -> str | None:
        """The account to use; None where only its owner can say which, or there is none."""
        return self.chosen.among([grant.account for grant in self.grants])

    @property
    def usable(self) -> tuple[Grant, ...]:
        """The grants in force."""
        return tuple(grant for grant in self.grants if not grant.has_lapsed)

    @property
    def grant(self) -> Grant | None:
        """The grant to use; None where there is none in force of the account to use."""
        account = self.account
        return next((grant for grant in self.usable if grant.account == account), None)


class Grants:
    """What principals granted, and what their actions go by."""

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
        """The credential of this principal's actions on this connection, renewed if about to expire, or None.

        Of several accounts it is the one that was settled on in the run, or else chosen for the tool, or for all tools.
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
        """A newer credential of the account of `used`, which the upstream refused; None where there is none."""
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
        """What an action of this run of this tool has to go by, seen from the caller's transaction."""
        return (await self._standing(session, connection, principal_id, tool, run_id))[0]

    async def settle(
        self, connection: Connection, principal_id: str, run_id: str, credential: Credential
    ) -> bool:
        """Let the run keep the account of this credential; False where it keeps another by now."""
        if credential.is_settled:
            return True
        kept = await self._accounts.keep(principal_id, connection.name, run_id, credential.account)
        return kept == credential.account

    async def store(
        self, session: AsyncSession, connection: Connection, principal_id: str, tokens: Tokens, account: str
    ) -> str:
        """Put a new grant in the place of the holder's earlier one with this account, in the caller's transaction.

        Returns its id. A shared connection has one grant, whatever its account.
        """
        holder = connection.holder(principal_id)
        return await self._records.replace(session, connection, holder, tokens, account)

    async def scopes_held(
        self, connection: Connection, principal_id: str, account: str | None = None
    ) -> tuple[str, ...]:
        """The scopes of the grant in force with this account, or of all that are, so that a step-up keeps them."""
        return await self._records.scopes(connection, connection.holder(principal_id), account)

    async def invalidate(self, credential: Credential) -> None:
        """Stop using a grant that the upstream refuses."""
        await self._records.lapse(credential.grant_id)

    async def remove(
        self, connection: Connection, principal_id: str, account: str | None = None
    ) -> str | None:
        """Remove the holder's grant with this account, or their only one, here and revoke it upstream.

        Returns its account, or None where there was none. Raises AccountUnclear where there are several, and what kept
        the upstream from being told: the grant is gone here all the same, and the word is owed.
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
        """Remove every grant of a holder here, and owe the upstreams word of each; those that are gone now."""
        rows = await self._records.all_kept(holder)
        return [_grant(row) for row in rows if await self._records.end(row.id)]

    async def holders(self) -> frozenset[str]:
        """Everybody who has a grant that they did not give up."""
        return await self._records.holders()

    async def given_up(self, connection: Connection, principal_id: str) -> set[str]:
        """The accounts whose latest grant was taken back here, by their holder or by an administrator."""
        return await self._records.given_up(connection, connection.holder(principal_id))

    async def is_given_up(
        self, session: AsyncSession, connection: Connection, principal_id: str, account: str
    ) -> bool:
        """Whether this account is among these; it stays so until the caller's transaction ends."""
        return await self._records.is_given_up(session, connection, connection.holder(principal_id), account)

    async def of(self, holder: str) -> list[Grant]:
        """Every grant that a holder did not give up, those that lapsed included."""
        return [_grant(row) for row in await self._records.all_kept(holder)]

    async def usable(self, holder: str, connection: str) -> list[Grant]:
        """A holder's grants in force on the connection of this name, by account."""
        return [
            grant
            for grant in await self.of(holder)
            if grant.connection == connection and not grant.has_lapsed
        ]

    @property
    def sealed(self) -> SealedColumn:
        """Where the table of grants keeps what the vault sealed."""
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
