"""The grants: whose tokens an action may use, and their life; a `user` connection yields its principal's own alone."""

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from engine.connections.accounts import Accounts, Chosen
from engine.connections.connection import SHARED, Connection
from engine.connections.dpop import ProofKey
from engine.connections.oauth import TokenRefused
from engine.connections.revocations import Revocations, bound_to_grant
from engine.connections.sign_in.methods import SignIn
from engine.connections.tokens import Tokens
from engine.db.database import Database, now
from engine.db.tables import GrantRow
from engine.errors import AccountUnclear, BylineError, ConnectionMisconfigured, UpstreamUnavailable
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault

_RENEW_BEFORE = timedelta(seconds=30)
_LEASE = timedelta(seconds=45)
_LEASE_POLL_SECONDS = 0.05
_IN_FORCE = (col(GrantRow.revoked_at).is_(None), col(GrantRow.lapsed_at).is_(None))


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
class Renewal:
    """What came of renewing an idle grant: the new token's fingerprint, or None where the provider ended the grant."""

    grant_id: str
    holder: str
    account: str
    fingerprint: str | None


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
    """Owner of the table of grants."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        sign_in: Callable[[Connection], SignIn],
        accounts: Accounts,
        revocations: Revocations,
    ) -> None:
        self._database = database
        self._vault = vault
        self._sign_in = sign_in
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
            row = await self._in_force(connection, SHARED) or await self._obtain_shared(connection)
        else:
            async with self._database.reading() as session:
                standing, rows = await self._standing(session, connection, principal_id, tool, run_id)
            is_settled = standing.chosen.is_settled or not run_id
            row = None if standing.grant is None else rows[standing.grant.id]
        if row is not None and row.expires_at is not None and row.expires_at < now() + _RENEW_BEFORE:
            row = await self._renew(connection, row)
        return None if row is None else await self._credential(row, is_settled=is_settled)

    async def renewed(self, connection: Connection, principal_id: str, used: Credential) -> Credential | None:
        """A newer credential of the account of `used`, which the upstream refused; None where there is none."""
        row = await self._in_force(connection, connection.holder(principal_id), used.account)
        if row is not None and (row.id, row.version) == (used.grant_id, used.version):
            row = await self._renew(connection, row)
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
        earlier = update(GrantRow).where(
            col(GrantRow.holder) == holder,
            col(GrantRow.connection) == connection.name,
            col(GrantRow.revoked_at).is_(None),
        )
        if connection.mode == "user":
            earlier = earlier.where(col(GrantRow.account) == account)
        await session.exec(earlier.values(revoked_at=now(), sealed_tokens=b""))
        row = await self._row(connection, holder, tokens, account)
        session.add(row)
        return row.id

    async def scopes_held(
        self, connection: Connection, principal_id: str, account: str | None = None
    ) -> tuple[str, ...]:
        """The scopes of the grant in force with this account, or of all that are, so that a step-up keeps them."""
        query = _in_force(connection, connection.holder(principal_id), account)
        async with self._database.reading() as session:
            rows = (await session.exec(query)).all()
        return tuple(dict.fromkeys(scope for row in rows for scope in row.scopes.split()))

    async def invalidate(self, credential: Credential) -> None:
        """Stop using a grant that the upstream refuses."""
        await self._lapse(credential.grant_id)

    async def remove(
        self, connection: Connection, principal_id: str, account: str | None = None
    ) -> str | None:
        """Remove the holder's grant with this account, or their only one, here and revoke it upstream.

        Returns its account, or None where there was none. Raises AccountUnclear where there are several, and what kept
        the upstream from being told: the grant is gone here all the same, and the word is owed.
        """
        holder = connection.holder(principal_id)
        async with self._database.reading() as session:
            rows = (await session.exec(_kept(connection, holder))).all()
        found = [row for row in rows if account is None or row.account == account]
        if len(found) > 1:
            named = ", ".join(f"'{row.account}'" for row in found)
            msg = f"There are several accounts on connection '{connection.name}': say which of {named}."
            raise AccountUnclear(msg)
        for row in found:
            if await self._end(row):
                await self._revocations.settle(connection, row.id)
                return row.account
        return None

    async def end_all(self, holder: str) -> list[Grant]:
        """Remove every grant of a holder here, and owe the upstreams word of each; those that are gone now."""
        return [_grant(row) for row in await self._all_kept(holder) if await self._end(row)]

    async def holders(self) -> frozenset[str]:
        """Everybody who has a grant in force."""
        query = select(GrantRow.holder).where(col(GrantRow.revoked_at).is_(None)).distinct()
        async with self._database.reading() as session:
            return frozenset((await session.exec(query)).all())

    async def idle(self, connection: Connection, since: datetime, limit: int = 100) -> list[str]:
        """The ids of grants in force whose tokens nobody renewed since then, the longest idle first."""
        query = select(GrantRow.id).where(
            GrantRow.connection == connection.name, *_IN_FORCE, col(GrantRow.renewed_at) < since
        )
        async with self._database.reading() as session:
            return list((await session.exec(query.order_by(col(GrantRow.renewed_at)).limit(limit))).all())

    async def keep(self, connection: Connection, grant_id: str) -> Renewal | None:
        """Renew a grant though no action needs it, or None where it has nothing to be renewed by."""
        row = await self._by_id(grant_id)
        if row is None or not _is_in_force(row) or (await self._tokens(row)).refresh_token is None:
            return None
        renewed = await self._renew(connection, row)
        return Renewal(row.id, row.holder, row.account, None if renewed is None else renewed.fingerprint)

    async def given_up(self, connection: Connection, principal_id: str) -> set[str]:
        """The accounts whose latest grant was taken back here, by their holder or by an administrator."""
        query = select(GrantRow.account, GrantRow.given_up).where(
            GrantRow.holder == connection.holder(principal_id), GrantRow.connection == connection.name
        )
        async with self._database.reading() as session:
            latest = dict((await session.exec(query.order_by(col(GrantRow.created_at)))).all())
        return {account for account, given_up in latest.items() if given_up}

    async def of(self, holder: str) -> list[Grant]:
        """Every grant that a holder did not give up, those that lapsed included."""
        return [_grant(row) for row in await self._all_kept(holder)]

    async def usable(self, holder: str, connection: str) -> list[Grant]:
        """A holder's grants in force on the connection of this name, by account."""
        return [
            grant
            for grant in await self.of(holder)
            if grant.connection == connection and not grant.has_lapsed
        ]

    @property
    def sealed(self) -> SealedColumn:
        """Where this table keeps what the vault sealed."""
        return SealedColumn("grants", GrantRow, "sealed_tokens", _bound_to)

    async def _standing(
        self, session: AsyncSession, connection: Connection, principal_id: str, tool: str, run_id: str
    ) -> tuple[Standing, dict[str, GrantRow]]:
        rows = (await session.exec(_kept(connection, connection.holder(principal_id)))).all()
        chosen = await self._accounts.chosen(session, principal_id, connection.name, tool=tool, run_id=run_id)
        return Standing(tuple(_grant(row) for row in rows), chosen), {row.id: row for row in rows}

    async def _all_kept(self, holder: str) -> Sequence[GrantRow]:
        query = select(GrantRow).where(GrantRow.holder == holder, col(GrantRow.revoked_at).is_(None))
        async with self._database.reading() as session:
            return (await session.exec(query.order_by(GrantRow.connection, GrantRow.account))).all()

    async def _in_force(
        self, connection: Connection, holder: str, account: str | None = None
    ) -> GrantRow | None:
        async with self._database.reading() as session:
            return (await session.exec(_in_force(connection, holder, account))).one_or_none()

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
                lapsed = col(GrantRow.holder) == SHARED, col(GrantRow.lapsed_at).is_not(None)
                await session.exec(
                    update(GrantRow)
                    .where(*lapsed, col(GrantRow.connection) == connection.name)
                    .values(revoked_at=now())
                )
                session.add(row)
        except IntegrityError:
            return await self._in_force(connection, SHARED)
        return row

    async def _renew(self, connection: Connection, row: GrantRow) -> GrantRow | None:
        """Renew once, however many ask in however many processes: one takes the lease, the others wait for it."""
        deadline = now() + _LEASE
        current: GrantRow | None = row
        while now() < deadline:
            if current is None or not _is_in_force(current):
                return await self._in_force(connection, row.holder, row.account)
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
                *_IN_FORCE,
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
            await self._lapse(row.id)
            return None
        return await self._replace_tokens(row.id, fresh)

    async def _fresh_tokens(self, connection: Connection, row: GrantRow) -> Tokens | None:
        return await self._sign_in(connection).renewed(row.holder, await self._tokens(row))

    async def _replace_tokens(self, grant_id: str, tokens: Tokens) -> GrantRow | None:
        async with self._database.writing() as session:
            row = await session.get(GrantRow, grant_id, with_for_update=True)
            if row is None:
                return None
            if not _is_in_force(row):
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
        """Owe word of tokens that came after their grant ended, unless a newer one may rest on their consent."""
        in_force = select(GrantRow.id).where(
            GrantRow.holder == row.holder,
            GrantRow.connection == row.connection,
            GrantRow.account == row.account,
            *_IN_FORCE,
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
            if held.sealed_tokens:
                await self._revocations.owe(
                    session, held.id, held.holder, held.connection, held.sealed_tokens
                )
            held.revoked_at, held.sealed_tokens, held.given_up = now(), b"", True
            session.add(held)
        return True

    async def _release(self, grant_id: str) -> None:
        async with self._database.writing() as session:
            await session.exec(
                update(GrantRow).where(col(GrantRow.id) == grant_id).values(refreshing_until=None)
            )

    async def _lapse(self, grant_id: str) -> None:
        """Keep that there was a grant, and none of its tokens, which its upstream ended."""
        async with self._database.writing() as session:
            await session.exec(
                update(GrantRow)
                .where(col(GrantRow.id) == grant_id, *_IN_FORCE)
                .values(lapsed_at=now(), sealed_tokens=b"")
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
        return await self._vault.seal(tokens.text().encode(), _bound_to(row))

    async def _tokens(self, row: GrantRow) -> Tokens:
        return Tokens.from_text(await self._vault.open(row.sealed_tokens, _bound_to(row)))

    async def _credential(self, row: GrantRow, *, is_settled: bool = True) -> Credential:
        tokens = await self._tokens(row)
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


def _kept(connection: Connection, holder: str) -> SelectOfScalar[GrantRow]:
    return (
        select(GrantRow)
        .where(
            GrantRow.holder == holder,
            GrantRow.connection == connection.name,
            col(GrantRow.revoked_at).is_(None),
        )
        .order_by(GrantRow.account)
    )


def _in_force(connection: Connection, holder: str, account: str | None) -> SelectOfScalar[GrantRow]:
    """The grants that can be used, with this account or any; a service has one, whatever its account."""
    query = _kept(connection, holder).where(col(GrantRow.lapsed_at).is_(None))
    return query if account is None or holder == SHARED else query.where(GrantRow.account == account)


def _is_in_force(row: GrantRow) -> bool:
    return row.revoked_at is None and row.lapsed_at is None


def _grant(row: GrantRow) -> Grant:
    scopes = tuple(row.scopes.split())
    return Grant(row.id, row.connection, row.account, scopes, row.created_at, row.lapsed_at is not None)


def _is_free(row: GrantRow) -> bool:
    return row.refreshing_until is None or row.refreshing_until < now()


def _bound_to(row: GrantRow) -> str:
    return bound_to_grant(row.id, row.holder, row.connection)


def _fingerprint(tokens: Tokens) -> str:
    return hashlib.sha256(tokens.access_token.encode()).hexdigest()[:16]


def _expiry(tokens: Tokens) -> datetime | None:
    return None if tokens.expires_at is None else datetime.fromtimestamp(tokens.expires_at, UTC)
