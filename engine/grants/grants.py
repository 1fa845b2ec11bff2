"""Selects the grant that an action uses, and stores and revokes grants.

On a `user` connection an action uses only its own principal's grants.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlmodel.ext.asyncio.session import AsyncSession

from engine.connections.connection import Connection
from engine.db.database import Database
from engine.db.tables import GrantRow
from engine.grants.accounts import AccountChoices, Accounts
from engine.grants.grant_records import GrantRecords
from engine.grants.renewals import GrantRenewals
from engine.oauth.dpop import ProofKey
from engine.oauth.tokens import UpstreamTokens


@dataclass(frozen=True, slots=True)
class Credential:
    """A usable access token, and what the audit trail may record about it. `repr` hides the token.

    `is_pinned` says whether the run that asked for the credential is already pinned to this account until it ends.
    """

    grant_id: str
    account: str
    scopes: tuple[str, ...]
    fingerprint: str
    grant_version: int
    access_token: str
    proof_key: ProofKey | None
    is_pinned: bool = True

    def __repr__(self) -> str:
        return (
            f"Credential(grant_id={self.grant_id!r}, account={self.account!r}, version={self.grant_version})"
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """A holder's consent on a connection, with one account. It cannot be used once it `has_lapsed`."""

    id: str
    connection_name: str
    account: str
    scopes: tuple[str, ...]
    created_at: datetime
    has_lapsed: bool


@dataclass(frozen=True, slots=True)
class GrantSituation:
    """The grants from which a principal's action selects on a connection, and the principal's account choices."""

    grants: tuple[Grant, ...]
    account_choices: AccountChoices

    @property
    def selected_account(self) -> str | None:
        """The account to use, or None if the owner must choose one or there is none."""
        return self.account_choices.select_account([grant.account for grant in self.grants])

    @property
    def active_grants(self) -> tuple[Grant, ...]:
        """The grants that can be used."""
        return tuple(grant for grant in self.grants if not grant.has_lapsed)

    @property
    def selected_grant(self) -> Grant | None:
        """The grant to use, or None if the selected account has no active grant."""
        account = self.selected_account
        return next((grant for grant in self.active_grants if grant.account == account), None)


class Grants:
    """The grants of principals, and the credentials of their actions."""

    def __init__(
        self,
        database: Database,
        grant_records: GrantRecords,
        renewals: GrantRenewals,
        accounts: Accounts,
    ) -> None:
        self._database = database
        self._grant_records = grant_records
        self._renewals = renewals
        self._accounts = accounts

    async def find_credential(
        self, connection: Connection, principal_id: str, *, tool_name: str = "", run_id: str = ""
    ) -> Credential | None:
        """Return the credential of this principal's actions on this connection, renewed if about to expire, or None.

        Of several accounts, the one to which the run is pinned is used, then the one chosen for the tool, then the one
        chosen for all tools.
        """
        is_pinned = True
        if connection.mode == "shared":
            grant_row = await self._renewals.obtain_shared_grant(connection)
        else:
            async with self._database.open_read_session() as db_session:
                grant_situation, rows_by_grant_id = await self._load_situation(
                    db_session, connection, principal_id, tool_name, run_id
                )
            is_pinned = grant_situation.account_choices.is_pinned or not run_id
            grant_row = (
                None
                if grant_situation.selected_grant is None
                else rows_by_grant_id[grant_situation.selected_grant.id]
            )
        if grant_row is not None:
            grant_row = await self._renewals.renew_if_expiring(connection, grant_row)
        return None if grant_row is None else await self._build_credential(grant_row, is_pinned=is_pinned)

    async def renew_credential(
        self, connection: Connection, principal_id: str, refused_credential: Credential
    ) -> Credential | None:
        """Return a newer credential of the account whose credential the upstream refused, or None if there is none."""
        grant_row = await self._grant_records.find_active_grant(
            connection, connection.resolve_holder(principal_id), refused_credential.account
        )
        if grant_row is not None and (grant_row.id, grant_row.version) == (
            refused_credential.grant_id,
            refused_credential.grant_version,
        ):
            grant_row = await self._renewals.renew_grant(connection, grant_row)
        return None if grant_row is None else await self._build_credential(grant_row)

    async def find_situation(
        self,
        db_session: AsyncSession,
        connection: Connection,
        principal_id: str,
        *,
        tool_name: str = "",
        run_id: str = "",
    ) -> GrantSituation:
        """Return the situation of an action of this run of this tool, read in the caller's transaction."""
        return (await self._load_situation(db_session, connection, principal_id, tool_name, run_id))[0]

    async def pin_account(
        self, connection: Connection, principal_id: str, run_id: str, credential: Credential
    ) -> bool:
        """Pin the run to the account of this credential. Returns False if it is pinned to another account by now."""
        if credential.is_pinned:
            return True
        pinned_account = await self._accounts.pin_account(
            principal_id, connection.name, run_id, credential.account
        )
        return pinned_account == credential.account

    async def store_grant(
        self,
        db_session: AsyncSession,
        connection: Connection,
        principal_id: str,
        tokens: UpstreamTokens,
        account: str,
    ) -> str:
        """Store a new grant in place of the holder's earlier one with this account, and return its id.

        Writes in the caller's transaction. A shared connection has one grant, whatever its account.
        """
        holder = connection.resolve_holder(principal_id)
        return await self._grant_records.replace_grant(db_session, connection, holder, tokens, account)

    async def list_active_scopes(
        self, connection: Connection, principal_id: str, account: str | None = None
    ) -> tuple[str, ...]:
        """Return the scopes of the active grant with this account, or of all active grants if `account` is None.

        A step-up authorization requests them again, so that it loses none.
        """
        return await self._grant_records.list_active_scopes(
            connection, connection.resolve_holder(principal_id), account
        )

    async def lapse_grant(self, credential: Credential) -> None:
        """Mark the grant of a credential that the upstream refuses as lapsed."""
        await self._grant_records.lapse_grant(credential.grant_id)

    async def revoke_grant(self, db_session: AsyncSession, grant_id: str) -> bool:
        """Revoke a grant here in the caller's transaction, which also enqueues its upstream revocation.

        Returns False if it is revoked already.
        """
        return await self._grant_records.revoke_grant(db_session, grant_id)

    async def list_holders(self) -> frozenset[str]:
        """Return every holder of an unrevoked grant."""
        return await self._grant_records.list_holders()

    async def list_accounts_revoked_by_owner(self, connection: Connection, principal_id: str) -> set[str]:
        """Return the accounts whose latest grant was revoked here, by its holder or by an administrator."""
        return await self._grant_records.list_accounts_revoked_by_owner(
            connection, connection.resolve_holder(principal_id)
        )

    async def is_revoked_by_owner(
        self, db_session: AsyncSession, connection: Connection, principal_id: str, account: str
    ) -> bool:
        """Return whether this account's latest grant was revoked here.

        The answer holds until the caller's transaction ends.
        """
        return await self._grant_records.is_revoked_by_owner(
            db_session, connection, connection.resolve_holder(principal_id), account
        )

    async def list_grants(self, holder: str) -> list[Grant]:
        """Return every unrevoked grant of a holder, including lapsed ones."""
        return [
            _to_grant(grant_row) for grant_row in await self._grant_records.list_all_unrevoked_grants(holder)
        ]

    async def list_active_grants(self, holder: str, connection_name: str) -> list[Grant]:
        """Return a holder's active grants on the connection with this name, ordered by account."""
        return [
            grant
            for grant in await self.list_grants(holder)
            if grant.connection_name == connection_name and not grant.has_lapsed
        ]

    async def _load_situation(
        self, db_session: AsyncSession, connection: Connection, principal_id: str, tool_name: str, run_id: str
    ) -> tuple[GrantSituation, dict[str, GrantRow]]:
        grant_rows = await self._grant_records.list_unrevoked_grants(
            db_session, connection, connection.resolve_holder(principal_id)
        )
        account_choices = await self._accounts.find_choices(
            db_session, principal_id, connection.name, tool_name=tool_name, run_id=run_id
        )
        return GrantSituation(tuple(_to_grant(grant_row) for grant_row in grant_rows), account_choices), {
            grant_row.id: grant_row for grant_row in grant_rows
        }

    async def _build_credential(self, grant_row: GrantRow, *, is_pinned: bool = True) -> Credential:
        tokens = await self._grant_records.open_tokens(grant_row)
        return Credential(
            grant_id=grant_row.id,
            account=grant_row.account,
            scopes=tuple(grant_row.scopes.split()),
            fingerprint=grant_row.fingerprint,
            grant_version=grant_row.version,
            access_token=tokens.access_token,
            proof_key=None if tokens.proof_key is None else ProofKey.from_jwk(tokens.proof_key),
            is_pinned=is_pinned,
        )


def _to_grant(grant_row: GrantRow) -> Grant:
    scopes = tuple(grant_row.scopes.split())
    return Grant(
        grant_row.id,
        grant_row.connection,
        grant_row.account,
        scopes,
        grant_row.created_at,
        grant_row.lapsed_at is not None,
    )
