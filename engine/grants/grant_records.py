"""Stores grants with their sealed tokens. This module calls no provider."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from engine.connections.connection import SHARED_HOLDER, Connection
from engine.db.database import Database, utc_now
from engine.db.lease import Lease
from engine.db.tables import GrantRow
from engine.grants.revocations import Revocations, build_grant_associated_data
from engine.oauth.tokens import UpstreamTokens
from engine.vault.digests import digest_secret
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault

_UNREVOKED_CONDITION = col(GrantRow.revoked_at).is_(None)
_ACTIVE_CONDITIONS = (_UNREVOKED_CONDITION, col(GrantRow.lapsed_at).is_(None))


class GrantRecords:
    """Owns the table of grants."""

    def __init__(self, database: Database, vault: Vault, revocations: Revocations) -> None:
        self._database = database
        self._vault = vault
        self._revocations = revocations
        self.lease = Lease(database, GrantRow.refreshing_until)

    async def find_grant(self, grant_id: str) -> GrantRow | None:
        """Return the grant with this id, or None."""
        async with self._database.open_read_session() as db_session:
            return await db_session.get(GrantRow, grant_id)

    async def list_unrevoked_grants(
        self, db_session: AsyncSession, connection: Connection, holder: str
    ) -> Sequence[GrantRow]:
        """Return a holder's unrevoked grants on a connection, ordered by account, read in the caller's transaction."""
        return (await db_session.exec(_select_unrevoked_grants(connection, holder))).all()

    async def list_all_unrevoked_grants(self, holder: str) -> Sequence[GrantRow]:
        """Return a holder's unrevoked grants on all connections, ordered by connection and account."""
        statement = select(GrantRow).where(GrantRow.holder == holder, _UNREVOKED_CONDITION)
        async with self._database.open_read_session() as db_session:
            return (await db_session.exec(statement.order_by(GrantRow.connection, GrantRow.account))).all()

    async def find_active_grant(
        self, connection: Connection, holder: str, account: str | None = None
    ) -> GrantRow | None:
        """Return the active grant with this account, or None. The service has one grant, whatever its account."""
        async with self._database.open_read_session() as db_session:
            return (await db_session.exec(_select_active_grants(connection, holder, account))).one_or_none()

    async def list_active_scopes(
        self, connection: Connection, holder: str, account: str | None
    ) -> tuple[str, ...]:
        """Return the scopes of the active grant with this account, or of all active grants if `account` is None."""
        async with self._database.open_read_session() as db_session:
            grant_rows = (await db_session.exec(_select_active_grants(connection, holder, account))).all()
        return tuple(dict.fromkeys(scope for grant_row in grant_rows for scope in grant_row.scopes.split()))

    async def list_holders(self) -> frozenset[str]:
        """Return every holder of an unrevoked grant."""
        statement = select(GrantRow.holder).where(_UNREVOKED_CONDITION).distinct()
        async with self._database.open_read_session() as db_session:
            return frozenset((await db_session.exec(statement)).all())

    async def list_idle_grant_ids(
        self, connection: Connection, renewed_before: datetime, max_rows: int
    ) -> list[str]:
        """Return the ids of active grants whose tokens were last renewed before this time, the longest idle first."""
        statement = select(GrantRow.id).where(
            GrantRow.connection == connection.name,
            *_ACTIVE_CONDITIONS,
            col(GrantRow.renewed_at) < renewed_before,
        )
        async with self._database.open_read_session() as db_session:
            return list(
                (await db_session.exec(statement.order_by(col(GrantRow.renewed_at)).limit(max_rows))).all()
            )

    async def list_accounts_revoked_by_owner(self, connection: Connection, holder: str) -> set[str]:
        """Return the accounts whose latest grant was revoked here."""
        statement = select(GrantRow.account, GrantRow.given_up).where(
            GrantRow.holder == holder, GrantRow.connection == connection.name
        )
        async with self._database.open_read_session() as db_session:
            revoked_by_account = dict(
                (await db_session.exec(statement.order_by(col(GrantRow.created_at)))).all()
            )
        return {account for account, is_revoked in revoked_by_account.items() if is_revoked}

    async def is_revoked_by_owner(
        self, db_session: AsyncSession, connection: Connection, holder: str, account: str
    ) -> bool:
        """Return whether the account's latest grant was revoked here.

        The row stays locked until the caller's transaction ends, so the answer holds until then.
        """
        statement = select(GrantRow).where(
            GrantRow.holder == holder, GrantRow.connection == connection.name, GrantRow.account == account
        )
        latest_statement = statement.order_by(col(GrantRow.created_at).desc()).limit(1).with_for_update()
        grant_row = (await db_session.exec(latest_statement)).first()
        return grant_row is not None and grant_row.given_up

    async def open_tokens(self, grant_row: GrantRow) -> UpstreamTokens:
        """Open and return the tokens of a grant."""
        return UpstreamTokens.from_json(
            await self._vault.open_secret(grant_row.sealed_tokens, _build_associated_data(grant_row))
        )

    async def replace_grant(
        self,
        db_session: AsyncSession,
        connection: Connection,
        holder: str,
        tokens: UpstreamTokens,
        account: str,
    ) -> str:
        """Store a new grant in place of the holder's earlier ones, in the caller's transaction, and return its id.

        On a `user` connection only earlier grants with the same account are replaced.
        """
        revoke_statement = update(GrantRow).where(
            col(GrantRow.holder) == holder, col(GrantRow.connection) == connection.name, _UNREVOKED_CONDITION
        )
        if connection.mode == "user":
            revoke_statement = revoke_statement.where(col(GrantRow.account) == account)
        await db_session.exec(revoke_statement.values(revoked_at=utc_now(), sealed_tokens=b""))
        grant_row = await self._build_grant_row(connection, holder, tokens, account)
        db_session.add(grant_row)
        return grant_row.id

    async def add_shared_grant(
        self, connection: Connection, tokens: UpstreamTokens, account: str
    ) -> GrantRow | None:
        """Store a grant of the service in place of a lapsed one. Returns None if another process stored one first."""
        grant_row = await self._build_grant_row(connection, SHARED_HOLDER, tokens, account)
        revoke_statement = update(GrantRow).where(
            col(GrantRow.holder) == SHARED_HOLDER,
            col(GrantRow.lapsed_at).is_not(None),
            col(GrantRow.connection) == connection.name,
        )
        try:
            async with self._database.open_write_session() as db_session:
                await db_session.exec(revoke_statement.values(revoked_at=utc_now()))
                db_session.add(grant_row)
        except IntegrityError:
            return None
        return grant_row

    async def store_renewed_tokens(self, grant_id: str, tokens: UpstreamTokens) -> GrantRow | None:
        """Store the new tokens of a grant, release the lease, and return the grant.

        If the grant has ended meanwhile, returns None. A revocation of the new tokens is then enqueued, unless a newer
        grant may rest on the same consent.
        """
        async with self._database.open_write_session() as db_session:
            grant_row = await db_session.get(GrantRow, grant_id, with_for_update=True)
            if grant_row is None:
                return None
            if not is_active_grant(grant_row):
                await self._enqueue_late_revocation(db_session, grant_row, tokens)
                return None
            grant_row.sealed_tokens = await self._seal_tokens(grant_row, tokens)
            grant_row.scopes = " ".join(tokens.scopes)
            grant_row.fingerprint = _compute_fingerprint(tokens)
            grant_row.expires_at = _compute_expiry(tokens)
            grant_row.version += 1
            grant_row.renewed_at = utc_now()
            grant_row.refreshing_until = None
            db_session.add(grant_row)
        return grant_row

    async def lapse_grant(self, grant_id: str) -> None:
        """Mark a grant as lapsed, because the upstream ended it, and delete its tokens."""
        lapse_statement = update(GrantRow).where(col(GrantRow.id) == grant_id, *_ACTIVE_CONDITIONS)
        async with self._database.open_write_session() as db_session:
            await db_session.exec(lapse_statement.values(lapsed_at=utc_now(), sealed_tokens=b""))

    async def revoke_grant(self, grant_id: str) -> bool:
        """Revoke a grant and enqueue its upstream revocation in one transaction. Returns False if it already was."""
        async with self._database.open_write_session() as db_session:
            grant_row = await db_session.get(GrantRow, grant_id, with_for_update=True)
            if grant_row is None or grant_row.revoked_at is not None:
                return False
            if grant_row.sealed_tokens:
                await self._revocations.enqueue_revocation(
                    db_session, grant_row.id, grant_row.holder, grant_row.connection, grant_row.sealed_tokens
                )
            grant_row.revoked_at, grant_row.sealed_tokens, grant_row.given_up = utc_now(), b"", True
            db_session.add(grant_row)
        return True

    @property
    def sealed_column(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn("grants", GrantRow, "sealed_tokens", _build_associated_data)

    async def _enqueue_late_revocation(
        self, db_session: AsyncSession, grant_row: GrantRow, tokens: UpstreamTokens
    ) -> None:
        """Enqueue the revocation of tokens that arrived after their grant ended.

        Nothing is enqueued if the account has a newer active grant, which may rest on the same consent.
        """
        active_grants = select(GrantRow.id).where(
            GrantRow.holder == grant_row.holder,
            GrantRow.connection == grant_row.connection,
            GrantRow.account == grant_row.account,
            *_ACTIVE_CONDITIONS,
        )
        if (await db_session.exec(active_grants)).first() is None:
            sealed_tokens = await self._seal_tokens(grant_row, tokens)
            await self._revocations.enqueue_revocation(
                db_session, grant_row.id, grant_row.holder, grant_row.connection, sealed_tokens
            )

    async def _build_grant_row(
        self, connection: Connection, holder: str, tokens: UpstreamTokens, account: str
    ) -> GrantRow:
        grant_row = GrantRow(
            id=str(uuid.uuid4()),
            holder=holder,
            connection=connection.name,
            account=account,
            scopes=" ".join(tokens.scopes),
            fingerprint=_compute_fingerprint(tokens),
            sealed_tokens=b"",
            expires_at=_compute_expiry(tokens),
            created_at=utc_now(),
            renewed_at=utc_now(),
        )
        grant_row.sealed_tokens = await self._seal_tokens(grant_row, tokens)
        return grant_row

    async def _seal_tokens(self, grant_row: GrantRow, tokens: UpstreamTokens) -> bytes:
        return await self._vault.seal_secret(tokens.to_json().encode(), _build_associated_data(grant_row))


def is_active_grant(grant_row: GrantRow) -> bool:
    """Return whether a grant can be used: it was not revoked, and its upstream did not end it."""
    return grant_row.revoked_at is None and grant_row.lapsed_at is None


def select_version(grant_row: GrantRow) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions that select this grant while it is active and nobody has renewed it."""
    return (col(GrantRow.id) == grant_row.id, col(GrantRow.version) == grant_row.version, *_ACTIVE_CONDITIONS)


def _select_unrevoked_grants(connection: Connection, holder: str) -> SelectOfScalar[GrantRow]:
    return (
        select(GrantRow)
        .where(GrantRow.holder == holder, GrantRow.connection == connection.name, _UNREVOKED_CONDITION)
        .order_by(GrantRow.account)
    )


def _select_active_grants(
    connection: Connection, holder: str, account: str | None
) -> SelectOfScalar[GrantRow]:
    statement = _select_unrevoked_grants(connection, holder).where(col(GrantRow.lapsed_at).is_(None))
    return (
        statement
        if account is None or holder == SHARED_HOLDER
        else statement.where(GrantRow.account == account)
    )


def _build_associated_data(grant_row: GrantRow) -> str:
    return build_grant_associated_data(grant_row.id, grant_row.holder, grant_row.connection)


def _compute_fingerprint(tokens: UpstreamTokens) -> str:
    return digest_secret(tokens.access_token)[:16]


def _compute_expiry(tokens: UpstreamTokens) -> datetime | None:
    return None if tokens.expires_at is None else datetime.fromtimestamp(tokens.expires_at, UTC)
