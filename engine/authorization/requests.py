"""What people are asked to consent to, and their answers; it shows no page, sends no signal and holds no token."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.audit.trail import AuditEvent, Trail
from engine.connections.catalogue import Connection
from engine.connections.grants import Grants
from engine.connections.oauth import Tokens
from engine.db.database import Database, now
from engine.db.tables import AuthorizationRequestRow, WaiterRow
from engine.errors import (
    AuthorizationCancelled,
    AuthorizationDenied,
    AuthorizationExpired,
    AuthorizationRequired,
)
from engine.identity.model import Identity, Principal
from engine.identity.principals import Principals
from engine.identity.runs import RunRecords
from engine.waiting.waiters import ParkedAction, Waiters


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """A question to one principal: may Byline use your account on this connection with these scopes?"""

    id: str
    principal_id: str
    connection: str
    scopes: tuple[str, ...]
    state: str
    expires_at: datetime

    @property
    def is_open(self) -> bool:
        """Whether it can still be answered."""
        return self.state == "open" and self.expires_at > now()


class AuthorizationRequests:
    """Owner of the table of authorization requests."""

    def __init__(
        self,
        database: Database,
        principals: Principals,
        runs: RunRecords,
        grants: Grants,
        waiters: Waiters,
        trail: Trail,
        wait_limit: timedelta,
    ) -> None:
        self._database = database
        self._principals = principals
        self._runs = runs
        self._grants = grants
        self._waiters = waiters
        self._trail = trail
        self._wait_limit = wait_limit

    async def require(
        self,
        identity: Identity,
        connection: Connection,
        scopes: Collection[str],
        parked: ParkedAction,
        *,
        run_id: str,
        needed: Collection[str] = (),
        refused_grant: str | None = None,
    ) -> AuthorizationRequired | None:
        """Join the open request for this principal, connection and scopes, or open it; None where the grant is there.

        A grant counts where it has the `needed` scopes and is not `refused_grant`, one that the upstream refused.
        """
        wanted = " ".join(sorted(scopes))
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            # Asking and answering take turns, so that an answer finds this waiter or leaves its grant to be seen.
            await self._principals.hold(session, identity.principal_id)
            if await self._grants.covers(
                session, connection, identity.principal_id, needed, besides=refused_grant
            ):
                return None
            row = await self._open_row(session, identity.principal_id, connection.name, wanted)
            is_new = row is None
            expires_at = now() + (connection.wait_limit or self._wait_limit)
            if row is None:
                row = _request_row(identity.principal_id, connection.name, wanted, expires_at)
            row.expires_at = max(expires_at, row.expires_at)
            session.add(row)
            await session.flush()
            waiter = await self._waiters.join(
                session, row.id, identity, parked, run_id=run_id, expires_at=expires_at
            )
            if is_new:
                await record(
                    session, _event("authorization.requested", row, identity=identity, run_id=run_id)
                )
        return AuthorizationRequired(
            waiter=waiter.id,
            request=row.id,
            connection=connection.name,
            principal=identity.principal_id,
            expires_at=waiter.expires_at.timestamp(),
        )

    async def check_answer(self, waiter_id: str, *, timed_out: bool, identity: Identity) -> None:
        """Return where the action that waited may try again; raises the AuthorizationEnded that fits otherwise."""
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            again = await self._waiters.looked_again(session, waiter_id, identity, timed_out=timed_out)
            if again is None:
                return
            waiter, ran_out = again
            request = await session.get_one(AuthorizationRequestRow, waiter.awaits)
            if ran_out:
                expired = _event("authorization.expired", request, identity=identity, run_id=waiter.run_id)
                await record(session, expired)
        what = f"connection '{request.connection}'"
        if waiter.outcome == "expired":
            msg = f"{identity.name} did not sign in to {what} in time. Call the tool again to get a new link."
            raise AuthorizationExpired(msg)
        if waiter.outcome == "denied":
            msg = f"{identity.name} declined to let this run use {what}."
            raise AuthorizationDenied(msg)
        if waiter.outcome == "cancelled":
            msg = f"The wait for {what} was cancelled."
            raise AuthorizationCancelled(msg)

    async def expire(self) -> int:
        """Close the questions whose time is over; the runs that waited have clocks of their own. Returns how many."""
        over = (
            update(AuthorizationRequestRow)
            .where(
                col(AuthorizationRequestRow.state) == "open", col(AuthorizationRequestRow.expires_at) <= now()
            )
            .values(state="expired")
        )
        async with self._database.writing() as session:
            return (await session.exec(over)).rowcount

    async def get(self, request_id: str) -> AuthorizationRequest | None:
        """The request with this id."""
        async with self._database.reading() as session:
            row = await session.get(AuthorizationRequestRow, request_id)
        return None if row is None else _request(row)

    async def open_for(self, principal_id: str) -> list[AuthorizationRequest]:
        """Every question that this principal can still answer and that somebody waits for, oldest first."""
        query = (
            select(AuthorizationRequestRow)
            .where(
                AuthorizationRequestRow.principal_id == principal_id,
                AuthorizationRequestRow.state == "open",
                col(AuthorizationRequestRow.expires_at) > now(),
                col(AuthorizationRequestRow.id).in_(
                    select(WaiterRow.awaits).where(WaiterRow.outcome == "waiting")
                ),
            )
            .order_by(col(AuthorizationRequestRow.created_at))
        )
        async with self._database.reading() as session:
            return [_request(row) for row in (await session.exec(query)).all()]

    async def waiting_tools(self, request_id: str) -> list[str]:
        """The tools whose runs wait for this answer."""
        return await self._runs.tools(await self._waiters.runs_awaiting(request_id))

    async def awaited_by(self, run_id: str) -> list[AuthorizationRequest]:
        """What a run and all its descendants wait for."""
        query = (
            select(AuthorizationRequestRow)
            .join(WaiterRow, col(WaiterRow.awaits) == AuthorizationRequestRow.id)
            .where(
                WaiterRow.run_id == run_id,
                WaiterRow.outcome == "waiting",
                AuthorizationRequestRow.state == "open",
            )
            .distinct()
        )
        async with self._database.reading() as session:
            rows = (await session.exec(query)).all()
        return [_request(row) for row in sorted(rows, key=lambda row: row.created_at)]

    async def grant(
        self,
        request: AuthorizationRequest | None,
        connection: Connection,
        principal: Principal,
        tokens: Tokens,
        account: str,
        *,
        by: Principal | None = None,
        run_id: str | None = None,
    ) -> None:
        """Store the grant, close every request that it answers and owe each waiter its wake-up, in one transaction.

        `by` is the administrator who answered for a service; without a `request`, nobody was asked.
        """
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            await self._principals.hold(session, principal.id)
            same_question = select(AuthorizationRequestRow).where(
                AuthorizationRequestRow.principal_id == principal.id,
                AuthorizationRequestRow.connection == connection.name,
                AuthorizationRequestRow.state == "open",
            )
            rows = (await session.exec(same_question)).all()
            grant_id = await self._grants.store(session, connection, principal.id, tokens, account)
            for row in rows:
                is_asked = request is not None and row.id == request.id
                if is_asked or set(row.scopes.split()) <= set(tokens.scopes):
                    await self._answer(session, row, "granted")
            granted = AuditEvent(
                kind="authorization.granted",
                principal=principal,
                by=by,
                connection=connection.name,
                mode=connection.mode,
                system=connection.system,
                scopes=tokens.scopes,
                account=account,
                grant_id=grant_id,
                run_id=run_id,
                request_id=None if request is None else request.id,
            )
            await record(session, granted)
        self._waiters.owed.set()

    async def deny(self, request_id: str, principal: Principal, *, by: Principal | None = None) -> bool:
        """Close an open request with a no, `by` an administrator for a service; False where it is not open any more."""
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            await self._principals.hold(session, principal.id)
            row = await session.get(AuthorizationRequestRow, request_id)
            if row is None or row.state != "open" or row.principal_id != principal.id:
                return False
            await self._answer(session, row, "denied")
            await record(session, _event("authorization.denied", row, principal=principal, by=by))
        self._waiters.owed.set()
        return True

    async def _answer(self, session: AsyncSession, row: AuthorizationRequestRow, outcome: str) -> None:
        row.state = outcome
        row.answered_at = now()
        session.add(row)
        await self._waiters.answer(session, row.id, outcome)

    async def _open_row(
        self, session: AsyncSession, principal_id: str, connection: str, scopes: str
    ) -> AuthorizationRequestRow | None:
        query = select(AuthorizationRequestRow).where(
            AuthorizationRequestRow.principal_id == principal_id,
            AuthorizationRequestRow.connection == connection,
            AuthorizationRequestRow.scopes == scopes,
            AuthorizationRequestRow.state == "open",
        )
        row = (await session.exec(query)).one_or_none()
        if row is not None and row.expires_at <= now():
            row.state = "expired"
            session.add(row)
            await session.flush()
            return None
        return row


def _event(
    kind: Literal["authorization.requested", "authorization.denied", "authorization.expired"],
    row: AuthorizationRequestRow,
    *,
    identity: Identity | None = None,
    principal: Principal | None = None,
    by: Principal | None = None,
    run_id: str | None = None,
) -> AuditEvent:
    return AuditEvent(
        kind=kind,
        identity=identity,
        principal=principal,
        by=by,
        run_id=run_id,
        connection=row.connection,
        scopes=tuple(row.scopes.split()),
        request_id=row.id,
    )


def _request_row(
    principal_id: str, connection: str, scopes: str, expires_at: datetime
) -> AuthorizationRequestRow:
    return AuthorizationRequestRow(
        id=str(uuid.uuid4()),
        principal_id=principal_id,
        connection=connection,
        scopes=scopes,
        created_at=now(),
        expires_at=expires_at,
    )


def _request(row: AuthorizationRequestRow) -> AuthorizationRequest:
    return AuthorizationRequest(
        row.id, row.principal_id, row.connection, tuple(row.scopes.split()), row.state, row.expires_at
    )
