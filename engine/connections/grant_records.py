"""Stores grants with their sealed tokens. This module calls no provider."""

import hashlib
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from engine.connections.connection import SHARED, Connection
from engine.connections.revocations import Revocations, bound_to_grant
from engine.connections.tokens import Tokens
from engine.db.database import Database, now
from engine.db.tables import GrantRow
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault

_KEPT = col(GrantRow.revoked_at).is_(None)
_IN_FORCE = (_KEPT, col(GrantRow.lapsed_at).is_(None))


class GrantRecords:
    """Owns the table of grants."""

    def __init__(self, database: Database, vault: Vault, revocations: Revocations) -> None:
        self._database = database
        self._vault = vault
        self._revocations = revocations

    async def get(self, grant_id: str) -> GrantRow | None:
        """Return the grant with this id, or None."""
        async with self._database.reading() as session:
            return await session.get(GrantRow, grant_id)

    async def kept(self, session: AsyncSession, connection: Connection, holder: str) -> Sequence[GrantRow]:
        """Return a holder's unrevoked grants on a connection, ordered by account, read in the caller's transaction."""
        return (await session.exec(_kept(connection, holder))).all()

    async def all_kept(self, holder: str) -> Sequence[GrantRow]:
        """Return a holder's unrevoked grants on all connections, ordered by connection and account."""
        query = select(GrantRow).where(GrantRow.holder == holder, _KEPT)
        async with self._database.reading() as session:
            return (await session.exec(query.order_by(GrantRow.connection, GrantRow.account))).all()

    async def in_force(
        self, connection: Connection, holder: str, account: str | None = None
    ) -> GrantRow | None:
        """Return the active grant with this account, or None. The service has one grant, whatever its account."""
        async with self._database.reading() as session:
            return (await session.exec(_in_force(connection, holder, account))).one_or_none()

    async def scopes(self, connection: Connection, holder: str, account: str | None) -> tuple[str, ...]:
        """Return the scopes of the active grant with this account, or of all active grants if `account` is None."""
        async with self._database.reading() as session:
            rows = (await session.exec(_in_force(connection, holder, account))).all()
        return tuple(dict.fromkeys(scope for row in rows for scope in row.scopes.split()))

    async def holders(self) -> frozenset[str]:
        """Return every holder of an unrevoked grant."""
        query = select(GrantRow.holder).where(_KEPT).distinct()
        async with self._database.reading() as session:
            return frozenset((await session.exec(query)).all())

    async def idle(self, connection: Connection, since: datetime, limit: int) -> list[str]:
        """Return the ids of active grants whose tokens were last renewed before this time, the longest idle first."""
        query = select(GrantRow.id).where(
            GrantRow.connection == connection.name, *_IN_FORCE, col(GrantRow.renewed_at) < since
        )
        async with self._database.reading() as session:
            return list((await session.exec(query.order_by(col(GrantRow.renewed_at)).limit(limit))).all())

    async def given_up(self, connection: Connection, holder: str) -> set[str]:
        """Return the accounts whose latest grant was revoked here."""
        query = select(GrantRow.account, GrantRow.given_up).where(
            GrantRow.holder == holder, GrantRow.connection == connection.name
        )
        async with self._database.reading() as session:
            latest = dict((await session.exec(query.order_by(col(GrantRow.created_at)))).all())
        return {account for account, given_up in latest.items() if given_up}

    async def is_given_up(
        self, session: AsyncSession, connection: Connection, holder: str, account: str
    ) -> bool:
        """Return whether the account's latest grant was revoked here.

        The row stays locked until the caller's transaction ends, so the answer holds until then.
        """
        query = select(GrantRow).where(
            GrantRow.holder == holder, GrantRow.connection == connection.name, GrantRow.account == account
        )
        latest = query.order_by(col(GrantRow.created_at).desc()).limit(1).with_for_update()
        row = (await session.exec(latest)).first()
        return row is not None and row.given_up

    async def tokens(self, row: GrantRow) -> Tokens:
        """Open and return the tokens of a grant."""
        return Tokens.from_text(await self._vault.open(row.sealed_tokens, _bound_to(row)))

    async def replace(
        self, session: AsyncSession, connection: Connection, holder: str, tokens: Tokens, account: str
    ) -> str:
        """Store a new grant in place of the holder's earlier ones, in the caller's transaction, and return its id.

        On a `user` connection only earlier grants with the same account are replaced.
        """
        earlier = update(GrantRow).where(
            col(GrantRow.holder) == holder, col(GrantRow.connection) == connection.name, _KEPT
        )
        if connection.mode == "user":
            earlier = earlier.where(col(GrantRow.account) == account)
        await session.exec(earlier.values(revoked_at=now(), sealed_tokens=b""))
        row = await self._row(connection, holder, tokens, account)
        session.add(row)
        return row.id

    async def add_shared(self, connection: Connection, tokens: Tokens, account: str) -> GrantRow | None:
        """Store a grant of the service in place of a lapsed one. Returns None if another process stored one first."""
        row = await self._row(connection, SHARED, tokens, account)
        lapsed = update(GrantRow).where(
            col(GrantRow.holder) == SHARED,
            col(GrantRow.lapsed_at).is_not(None),
            col(GrantRow.connection) == connection.name,
        )
        try:
            async with self._database.writing() as session:
                await session.exec(lapsed.values(revoked_at=now()))
                session.add(row)
        except IntegrityError:
            return None
        return row

    async def lease(self, row: GrantRow, life: timedelta) -> bool:
        """Give the caller the exclusive right to renew this grant for `lease_duration`.

        Returns False if another process holds the lease or has already renewed the grant.
        """
        free = or_(col(GrantRow.refreshing_until).is_(None), col(GrantRow.refreshing_until) < now())
        take = (
            update(GrantRow)
            .where(col(GrantRow.id) == row.id, col(GrantRow.version) == row.version, *_IN_FORCE, free)
            .values(refreshing_until=now() + life)
        )
        async with self._database.writing() as session:
            return (await session.exec(take)).rowcount == 1

    async def release(self, grant_id: str) -> None:
        """Release the lease, so that others may renew the grant."""
        release = update(GrantRow).where(col(GrantRow.id) == grant_id).values(refreshing_until=None)
        async with self._database.writing() as session:
            await session.exec(release)

    async def renew(self, grant_id: str, tokens: Tokens) -> GrantRow | None:
        """Store the new tokens of a grant, release the lease, and return the grant.

        If the grant has ended meanwhile, returns None. A revocation of the new tokens is then enqueued, unless a newer
        grant may rest on the same consent.
        """
        async with self._database.writing() as session:
            row = await session.get(GrantRow, grant_id, with_for_update=True)
            if row is None:
                return None
            if not is_in_force(row):
                await self._owe_late(session, row, tokens)
                return None
            row.sealed_tokens = await self._seal(row, tokens)
            row.scopes = " ".join(tokens.scopes)
            row.fingerprint = _fingerprint(tokens)
            row.expires_at = _expiry(tokens)
            row.version += 1
            row.renewed_at = now()
            row.refreshing_until = None
            session.add(row)
        return row

    async def lapse(self, grant_id: str) -> None:
        """Mark a grant as lapsed, because the upstream ended it, and delete its tokens."""
        lapse = update(GrantRow).where(col(GrantRow.id) == grant_id, *_IN_FORCE)
        async with self._database.writing() as session:
            await session.exec(lapse.values(lapsed_at=now(), sealed_tokens=b""))

    async def end(self, grant_id: str) -> bool:
        """Revoke a grant and enqueue its upstream revocation in one transaction. Returns False if it already was."""
        async with self._database.writing() as session:
            row = await session.get(GrantRow, grant_id, with_for_update=True)
            if row is None or row.revoked_at is not None:
                return False
            if row.sealed_tokens:
                await self._revocations.owe(session, row.id, row.holder, row.connection, row.sealed_tokens)
            row.revoked_at, row.sealed_tokens, row.given_up = now(), b"", True
            session.add(row)
        return True

    @property
    def sealed(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn("grants", GrantRow, "sealed_tokens", _bound_to)

    async def _owe_late(self, session: AsyncSession, row: GrantRow, tokens: Tokens) -> None:
        """Enqueue the revocation of tokens that arrived after their grant ended.

        Nothing is enqueued if the account has a newer active grant, which may rest on the same consent.
        """
        in_force = select(GrantRow.id).where(
            GrantRow.holder == row.holder,
            GrantRow.connection == row.connection,
            GrantRow.account == row.account,
            *_IN_FORCE,
        )
        if (await session.exec(in_force)).first() is None:
            sealed = await self._seal(row, tokens)
            await self._revocations.owe(session, row.id, row.holder, row.connection, sealed)

    async def _row(self, connection: Connection, holder: str, tokens: Tokens, account: str) -> GrantRow:
        row = GrantRow(
            id=str(uuid.uuid4()),
            holder=holder,
            connection=connection.name,
            account=account,
            scopes=" ".join(tokens.scopes),
            fingerprint=_fingerprint(tokens),
            sealed_tokens=b"",
            expires_at=_expiry(tokens),
            created_at=now(),
            renewed_at=now(),
        )
        row.sealed_tokens = await self._seal(row, tokens)
        return row

    async def _seal(self, row: GrantRow, tokens: Tokens) -> bytes:
        return await self._vault.seal(tokens.text().encode(), _bound_to(row))


def is_in_force(row: GrantRow) -> bool:
    """Return whether a grant can be used: it was not revoked, and its upstream did not end it."""
    return row.revoked_at is None and row.lapsed_at is None


def _kept(connection: Connection, holder: str) -> SelectOfScalar[GrantRow]:
    return (
        select(GrantRow)
        .where(GrantRow.holder == holder, GrantRow.connection == connection.name, _KEPT)
        .order_by(GrantRow.account)
    )


def _in_force(connection: Connection, holder: str, account: str | None) -> SelectOfScalar[GrantRow]:
    query = _kept(connection, holder).where(col(GrantRow.lapsed_at).is_(None))
    return query if account is None or holder == SHARED else query.where(GrantRow.account == account)


def _bound_to(row: GrantRow) -> str:
    return bound_to_grant(row.id, row.holder, row.connection)


def _fingerprint(tokens: Tokens) -> str:
    return hashlib.sha256(tokens.access_token.encode()).hexdigest()[:16]


def _expiry(tokens: Tokens) -> datetime | None:
    return None if tokens.expires_at is None else datetime.fromtimestamp(tokens.expires_at, UTC)
