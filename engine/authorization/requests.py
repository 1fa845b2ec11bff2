"""Open questions to people and who waits for the answer; it shows no page, sends no signal and holds no token."""

import asyncio
import uuid
from collections.abc import Collection, Sequence
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
from engine.identity.runs import Runs

_WAITERS = uuid.UUID("0d6f4c1e-3a52-4a8e-9c55-0f3f6f2f6b11")


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


@dataclass(frozen=True, slots=True)
class ParkedAction:
    """The place that an answer wakes: a workflow run, and the action in it that waits."""

    workflow_id: str
    workflow_run_id: str
    key: str


@dataclass(frozen=True, slots=True)
class WakeUp:
    """A signal that a waiter is owed."""

    waiter: str
    workflow_id: str


class AuthorizationRequests:
    """Owner of the tables of authorization requests and waiters."""

    def __init__(
        self,
        database: Database,
        principals: Principals,
        runs: Runs,
        grants: Grants,
        trail: Trail,
        wait_limit: timedelta,
    ) -> None:
        self._database = database
        self._principals = principals
        self._runs = runs
        self._grants = grants
        self._trail = trail
        self._wait_limit = wait_limit
        self.owed = asyncio.Event()
        """Set when waiters are owed a wake-up by this process, so that delivery need not wait for its next sweep."""

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
            waiter = await _join(session, row.id, identity, parked, run_id, expires_at)
            await self._runs.parked(session, run_id)
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
            row = await session.get(WaiterRow, waiter_id, with_for_update=True)
            if row is None or row.principal_id != identity.principal_id:
                return
            request = await session.get_one(AuthorizationRequestRow, row.awaits)
            if row.outcome == "waiting" and timed_out:
                row.outcome = "expired"
                session.add(row)
                expired = _event("authorization.expired", request, identity=identity, run_id=row.run_id)
                await record(session, expired)
        what = f"connection '{request.connection}'"
        if row.outcome == "expired":
            msg = f"{identity.name} did not sign in to {what} in time. Call the tool again to get a new link."
            raise AuthorizationExpired(msg)
        if row.outcome == "denied":
            msg = f"{identity.name} declined to let this run use {what}."
            raise AuthorizationDenied(msg)
        if row.outcome == "cancelled":
            msg = f"The wait for {what} was cancelled."
            raise AuthorizationCancelled(msg)

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
        query = select(WaiterRow.run_id).where(WaiterRow.awaits == request_id, WaiterRow.outcome == "waiting")
        async with self._database.reading() as session:
            run_ids = set((await session.exec(query)).all())
        return await self._runs.tools(run_ids)

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

    async def awaited_in(self, run_ids: Collection[str]) -> dict[str, dict[str, datetime]]:
        """For each of these runs that waits, the requests it waits for and since when, by one query for all."""
        query = select(WaiterRow.run_id, WaiterRow.awaits, WaiterRow.created_at).where(
            col(WaiterRow.run_id).in_(run_ids), WaiterRow.outcome == "waiting"
        )
        found: dict[str, dict[str, datetime]] = {}
        async with self._database.reading() as session:
            for run_id, request_id, created_at in (await session.exec(query)).all():
                requests = found.setdefault(run_id, {})
                requests[request_id] = max(created_at, requests.get(request_id, created_at))
        return found

    async def grant(
        self,
        request: AuthorizationRequest,
        connection: Connection,
        principal: Principal,
        tokens: Tokens,
        account: str,
    ) -> None:
        """Store the grant, close every request that it answers and owe each waiter its wake-up, in one transaction."""
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
                if row.id == request.id or set(row.scopes.split()) <= set(tokens.scopes):
                    await _answer(session, row, "granted")
            granted = AuditEvent(
                kind="authorization.granted",
                principal=principal,
                connection=connection.name,
                mode=connection.mode,
                system=connection.system,
                scopes=tokens.scopes,
                account=account,
                grant_id=grant_id,
                request_id=request.id,
            )
            await record(session, granted)
        self.owed.set()

    async def deny(self, request_id: str, principal: Principal) -> bool:
        """Close an open request with a no; False where it is not open any more."""
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            await self._principals.hold(session, principal.id)
            row = await session.get(AuthorizationRequestRow, request_id)
            if row is None or row.state != "open" or row.principal_id != principal.id:
                return False
            await _answer(session, row, "denied")
            await record(session, _event("authorization.denied", row, principal=principal))
        self.owed.set()
        return True

    async def withdraw(self, waiter_ids: Sequence[str]) -> None:
        """Forget waits whose workflow was cancelled."""
        async with self._database.writing() as session:
            await session.exec(
                update(WaiterRow)
                .where(col(WaiterRow.id).in_(waiter_ids), col(WaiterRow.outcome) == "waiting")
                .values(outcome="cancelled")
            )

    async def wake_ups(self, limit: int) -> list[WakeUp]:
        """The wake-ups that are owed now, oldest first."""
        query = (
            select(WaiterRow)
            .where(col(WaiterRow.due_at) <= now())
            .order_by(col(WaiterRow.due_at))
            .limit(limit)
        )
        async with self._database.reading() as session:
            rows = (await session.exec(query)).all()
        return [WakeUp(row.id, row.workflow_id) for row in rows]

    async def delivered(self, waiter_ids: Sequence[str]) -> None:
        """Owe these waiters nothing more."""
        await self._set_due(waiter_ids, None)

    async def postpone(self, waiter_ids: Sequence[str], until: datetime) -> None:
        """Try these wake-ups again later."""
        await self._set_due(waiter_ids, until)

    async def _set_due(self, waiter_ids: Sequence[str], due_at: datetime | None) -> None:
        async with self._database.writing() as session:
            await session.exec(
                update(WaiterRow).where(col(WaiterRow.id).in_(waiter_ids)).values(due_at=due_at)
            )

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


async def _join(
    session: AsyncSession,
    request_id: str,
    identity: Identity,
    parked: ParkedAction,
    run_id: str,
    expires_at: datetime,
) -> WaiterRow:
    # The id follows from the place that waits, so that a retried attempt finds its waiter instead of adding one.
    waiter_id = str(uuid.uuid5(_WAITERS, f"{request_id}:{parked.workflow_run_id}:{parked.key}"))
    row = await session.get(WaiterRow, waiter_id)
    if row is None:
        row = WaiterRow(
            id=waiter_id,
            awaits=request_id,
            principal_id=identity.principal_id,
            run_id=run_id,
            workflow_id=parked.workflow_id,
            workflow_run_id=parked.workflow_run_id,
            created_at=now(),
            expires_at=expires_at,
        )
        session.add(row)
    return row


async def _answer(session: AsyncSession, row: AuthorizationRequestRow, outcome: str) -> None:
    row.state = outcome
    row.answered_at = now()
    session.add(row)
    await session.exec(
        update(WaiterRow)
        .where(col(WaiterRow.awaits) == row.id, col(WaiterRow.outcome) == "waiting")
        .values(outcome=outcome, due_at=now())
    )


def _event(
    kind: Literal["authorization.requested", "authorization.denied", "authorization.expired"],
    row: AuthorizationRequestRow,
    *,
    identity: Identity | None = None,
    principal: Principal | None = None,
    run_id: str | None = None,
) -> AuditEvent:
    return AuditEvent(
        kind=kind,
        identity=identity,
        principal=principal,
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
