"""The grants: whose tokens an action may use, and their life; a `user` connection yields its principal's own alone."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from engine.connections.catalogue import SHARED, Connection
from engine.connections.dpop import ProofKey
from engine.connections.oauth import TokenRefused, Tokens
from engine.connections.revocations import Revocations, bound_to_grant
from engine.connections.sign_in.methods import SignIn
from engine.db.database import Database, now
from engine.db.tables import GrantRow
from engine.errors import BylineError, ConnectionMisconfigured, UpstreamUnavailable
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault

_RENEW_BEFORE = timedelta(seconds=30)
_LEASE = timedelta(seconds=45)
_LEASE_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Credential:
    """A usable access token, and what the trail may say of it. `repr` hides the token."""

    grant_id: str
    account: str
    scopes: tuple[str, ...]
    fingerprint: str
    version: int
    access_token: str
    proof_key: ProofKey | None

    def __repr__(self) -> str:
        return f"Credential(grant_id={self.grant_id!r}, account={self.account!r}, version={self.version})"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a holder consented to on a connection."""

    connection: str
    account: str
    scopes: tuple[str, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Renewal:
    """What came of renewing an idle grant: the new token's fingerprint, or None where the provider ended the grant."""

    grant_id: str
    account: str
    fingerprint: str | None


class Grants:
    """Owner of the table of grants."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        sign_in: Callable[[Connection], SignIn],
        revocations: Revocations,
    ) -> None:
        self._database = database
        self._vault = vault
        self._sign_in = sign_in
        self._revocations = revocations

    async def credential(self, connection: Connection, principal_id: str) -> Credential | None:
        """The credential of this principal's actions on this connection, renewed if about to expire, or None."""
        row = await self._in_force(connection, connection.holder(principal_id))
        if row is None and connection.mode == "shared":
            row = await self._obtain_shared(connection)
        if row is not None and row.expires_at is not None and row.expires_at < now() + _RENEW_BEFORE:
            row = await self._renew(connection, row)
        return None if row is None else await self._credential(row)

    async def renewed(self, connection: Connection, principal_id: str, used: Credential) -> Credential | None:
        """A newer credential than `used`, which the upstream refused; None where it cannot be renewed."""
        row = await self._in_force(connection, connection.holder(principal_id))
        if row is not None and (row.id, row.version) == (used.grant_id, used.version):
            row = await self._renew(connection, row)
        return None if row is None else await self._credential(row)

    async def store(
        self, session: AsyncSession, connection: Connection, principal_id: str, tokens: Tokens, account: str
    ) -> str:
        """Put a new grant in the place of the holder's earlier one, in the caller's transaction; return its id."""
        holder = connection.holder(principal_id)
        await session.exec(
            update(GrantRow)
            .where(
                col(GrantRow.holder) == holder,
                col(GrantRow.connection) == connection.name,
                col(GrantRow.revoked_at).is_(None),
            )
            .values(revoked_at=now(), sealed_tokens=b"")
        )
        row = await self._row(connection, holder, tokens, account)
        session.add(row)
        return row.id

    async def scopes_held(self, connection: Connection, principal_id: str) -> tuple[str, ...]:
        """The scopes of the grant in force, so that a step-up keeps them."""
        row = await self._in_force(connection, connection.holder(principal_id))
        return () if row is None else tuple(row.scopes.split())

    async def covers(
        self,
        session: AsyncSession,
        connection: Connection,
        principal_id: str,
        scopes: Collection[str],
        *,
        besides: str | None,
    ) -> bool:
        """Whether a grant in force, other than `besides`, has all these scopes, seen from the caller's transaction."""
        row = (await session.exec(_in_force(connection, connection.holder(principal_id)))).one_or_none()
        return row is not None and row.id != besides and set(scopes) <= set(row.scopes.split())

    async def invalidate(self, credential: Credential) -> None:
        """Stop using a grant that the upstream refuses."""
        await self._revoke_row(credential.grant_id)

    async def remove(self, connection: Connection, principal_id: str) -> bool:
        """Remove the holder's grant here and revoke it upstream; False where there was none.

        Raises what kept the upstream from being told: the grant is gone here all the same, and the word is owed.
        """
        row = await self._in_force(connection, connection.holder(principal_id))
        if row is None or not await self._end(row):
            return False
        await self._revocations.settle(connection, row.id)
        return True

    async def end_all(self, holder: str) -> list[tuple[str, str]]:
        """Remove every grant of a holder here, and owe the upstreams word of each: grant ids and connections."""
        query = select(GrantRow).where(GrantRow.holder == holder, col(GrantRow.revoked_at).is_(None))
        async with self._database.reading() as session:
            rows = (await session.exec(query.order_by(GrantRow.connection))).all()
        return [(row.id, row.connection) for row in rows if await self._end(row)]

    async def holders(self) -> frozenset[str]:
        """Everybody who has a grant in force."""
        query = select(GrantRow.holder).where(col(GrantRow.revoked_at).is_(None)).distinct()
        async with self._database.reading() as session:
            return frozenset((await session.exec(query)).all())

    async def idle(self, connection: Connection, since: datetime, limit: int = 100) -> list[str]:
        """The holders of grants whose tokens nobody renewed since then, the longest idle first."""
        query = select(GrantRow.holder).where(
            GrantRow.connection == connection.name,
            col(GrantRow.revoked_at).is_(None),
            col(GrantRow.renewed_at) < since,
        )
        async with self._database.reading() as session:
            return list((await session.exec(query.order_by(col(GrantRow.renewed_at)).limit(limit))).all())

    async def keep(self, connection: Connection, holder: str) -> Renewal | None:
        """Renew a grant though no action needs it, or None where it has nothing to be renewed by."""
        row = await self._in_force(connection, holder)
        if row is None or (await self._tokens(row)).refresh_token is None:
            return None
        renewed = await self._renew(connection, row)
        return Renewal(row.id, row.account, None if renewed is None else renewed.fingerprint)

    async def was_given_up(self, connection: Connection, principal_id: str) -> bool:
        """Whether the holder's latest grant was taken back here, by themselves or by an administrator."""
        latest = (
            select(GrantRow.given_up)
            .where(GrantRow.holder == connection.holder(principal_id), GrantRow.connection == connection.name)
            .order_by(col(GrantRow.created_at).desc())
            .limit(1)
        )
        async with self._database.reading() as session:
            return (await session.exec(latest)).one_or_none() is True

    async def of(self, holder: str) -> list[Grant]:
        """Every grant of a holder that is in force."""
        query = select(GrantRow).where(GrantRow.holder == holder, col(GrantRow.revoked_at).is_(None))
        async with self._database.reading() as session:
            rows = (await session.exec(query.order_by(GrantRow.connection))).all()
        return [Grant(row.connection, row.account, tuple(row.scopes.split()), row.created_at) for row in rows]

    @property
    def sealed(self) -> SealedColumn:
        """Where this table keeps what the vault sealed."""
        return SealedColumn("grants", GrantRow, "sealed_tokens", _bound_to)

    async def _in_force(self, connection: Connection, holder: str) -> GrantRow | None:
        async with self._database.reading() as session:
            return (await session.exec(_in_force(connection, holder))).one_or_none()

    async def _obtain_shared(self, connection: Connection) -> GrantRow | None:
        try:
            tokens = await self._sign_in(connection).unasked(SHARED, connection.scopes)
        except TokenRefused as error:
            msg = f"The shared connection '{connection.name}' cannot sign in: {error}"
            raise ConnectionMisconfigured(msg) from None
        if tokens is None:
            return None
        account = tokens.account or connection.client_id
        row = await self._row(connection, SHARED, tokens, f"{account} (shared)".lstrip())
        try:
            async with self._database.writing() as session:
                session.add(row)
        except IntegrityError:
            return await self._in_force(connection, SHARED)
        return row

    async def _renew(self, connection: Connection, row: GrantRow) -> GrantRow | None:
        """Renew once, however many ask in however many processes: one takes the lease, the others wait for it."""
        deadline = now() + _LEASE
        current: GrantRow | None = row
        while now() < deadline:
            if current is None or current.revoked_at is not None:
                return await self._in_force(connection, row.holder)
            if current.version != row.version:
                return current
            if _is_free(current) and await self._take_lease(current):
                # A token endpoint that rotates has spent the old token: its answer is kept even if nobody waits for it.
                return await asyncio.shield(self._renew_leased(connection, current))
            await asyncio.sleep(_LEASE_POLL_SECONDS)
            current = await self._by_id(row.id)
        msg = (
            f"The tokens of connection '{connection.name}' are being renewed elsewhere and are not done yet."
        )
        raise UpstreamUnavailable(msg)

    async def _take_lease(self, row: GrantRow) -> bool:
        free = or_(col(GrantRow.refreshing_until).is_(None), col(GrantRow.refreshing_until) < now())
        take = (
            update(GrantRow)
            .where(
                col(GrantRow.id) == row.id,
                col(GrantRow.version) == row.version,
                col(GrantRow.revoked_at).is_(None),
                free,
            )
            .values(refreshing_until=now() + _LEASE)
        )
        async with self._database.writing() as session:
            result = await session.exec(take)
        return result.rowcount == 1

    async def _renew_leased(self, connection: Connection, row: GrantRow) -> GrantRow | None:
        try:
            fresh = await self._fresh_tokens(connection, row)
        except TokenRefused as error:
            if error.error != "invalid_grant":
                await self._release(row.id)
                msg = f"Connection '{connection.name}' cannot renew its tokens: {error}"
                raise ConnectionMisconfigured(msg) from None
            fresh = None
        except BylineError:
            await self._release(row.id)
            raise
        if fresh is None:
            await self._revoke_row(row.id)
            return None
        return await self._replace_tokens(row.id, fresh)

    async def _fresh_tokens(self, connection: Connection, row: GrantRow) -> Tokens | None:
        return await self._sign_in(connection).renewed(row.holder, await self._tokens(row))

    async def _replace_tokens(self, grant_id: str, tokens: Tokens) -> GrantRow | None:
        async with self._database.writing() as session:
            row = await session.get(GrantRow, grant_id, with_for_update=True)
            if row is None:
                return None
            if row.revoked_at is not None:
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

    async def _owe_late(self, session: AsyncSession, row: GrantRow, tokens: Tokens) -> None:
        """Owe word of tokens that came after their grant was removed, unless a newer one may rest on their consent."""
        in_force = select(GrantRow.id).where(
            GrantRow.holder == row.holder,
            GrantRow.connection == row.connection,
            col(GrantRow.revoked_at).is_(None),
        )
        if (await session.exec(in_force)).first() is None:
            sealed = await self._seal(row, tokens)
            await self._revocations.owe(session, row.id, row.holder, row.connection, sealed)

    async def _end(self, row: GrantRow) -> bool:
        """End a grant and owe its upstream word, in one transaction; False where somebody did already."""
        async with self._database.writing() as session:
            held = await session.get(GrantRow, row.id, with_for_update=True)
            if held is None or held.revoked_at is not None:
                return False
            sealed = held.sealed_tokens
            await self._revocations.owe(session, held.id, held.holder, held.connection, sealed)
            held.revoked_at, held.sealed_tokens, held.given_up = now(), b"", True
            session.add(held)
        return True

    async def _release(self, grant_id: str) -> None:
        async with self._database.writing() as session:
            await session.exec(
                update(GrantRow).where(col(GrantRow.id) == grant_id).values(refreshing_until=None)
            )

    async def _revoke_row(self, grant_id: str) -> None:
        async with self._database.writing() as session:
            await session.exec(
                update(GrantRow)
                .where(col(GrantRow.id) == grant_id, col(GrantRow.revoked_at).is_(None))
                .values(revoked_at=now(), sealed_tokens=b"")
            )

    async def _by_id(self, grant_id: str) -> GrantRow | None:
        async with self._database.reading() as session:
            return await session.get(GrantRow, grant_id)

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
        return await self._vault.seal(json.dumps(asdict(tokens)).encode(), _bound_to(row))

    async def _tokens(self, row: GrantRow) -> Tokens:
        fields = json.loads(await self._vault.open(row.sealed_tokens, _bound_to(row)))
        return Tokens(**{**fields, "scopes": tuple(fields["scopes"])})

    async def _credential(self, row: GrantRow) -> Credential:
        tokens = await self._tokens(row)
        return Credential(
            grant_id=row.id,
            account=row.account,
            scopes=tuple(row.scopes.split()),
            fingerprint=row.fingerprint,
            version=row.version,
            access_token=tokens.access_token,
            proof_key=None if tokens.proof_key is None else ProofKey.from_jwk(tokens.proof_key),
        )


def _in_force(connection: Connection, holder: str) -> SelectOfScalar[GrantRow]:
    return select(GrantRow).where(
        GrantRow.holder == holder, GrantRow.connection == connection.name, col(GrantRow.revoked_at).is_(None)
    )


def _is_free(row: GrantRow) -> bool:
    return row.refreshing_until is None or row.refreshing_until < now()


def _bound_to(row: GrantRow) -> str:
    return bound_to_grant(row.id, row.holder, row.connection)


def _fingerprint(tokens: Tokens) -> str:
    return hashlib.sha256(tokens.access_token.encode()).hexdigest()[:16]


def _expiry(tokens: Tokens) -> datetime | None:
    return None if tokens.expires_at is None else datetime.fromtimestamp(tokens.expires_at, UTC)
