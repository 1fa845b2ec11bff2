"""Authorization requests: opens them for the actions that need a grant, lists the open ones and closes them.

Grants are stored by `AnswerRecorder`, and the wake-up signals are sent by `WakeUpDelivery`.
"""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, cast

from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.audit.trail import AuditEvent, Trail
from engine.connections.connection import Connection
from engine.connections.grants import Grants, Standing
from engine.db.database import Database, now
from engine.db.tables import AuthorizationRequestRow, WaiterRow
from engine.errors import (
    AuthorizationCancelled,
    AuthorizationDenied,
    AuthorizationExpired,
    AuthorizationRequired,
    NotAllowed,
    PrincipalInactive,
)
from engine.identity.model import Identity, Principal
from engine.identity.principals import Principals
from engine.identity.runs import RunRecords
from engine.waiting.waiters import ParkedAction, Waiters

Asks = Literal["any_account", "account", "choice"]
"""A sign-in to any account, a sign-in to one certain account, or a choice of the account that a tool shall use."""

State = Literal["open", "granted", "denied", "expired"]
"""The state of a request. An expired one may stay `open` in the table until upkeep closes it."""


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """A question to one principal: may Byline use your account on this connection with these scopes?

    `about` holds the account that is asked for (`account`), the tool that a choice is asked for (`choice`), or the
    tool for which a sign-in was requested ahead of a call (`any_account`, else empty).
    """

    id: str
    principal_id: str
    connection: str
    scopes: tuple[str, ...]
    asks: Asks
    about: str
    state: State
    expires_at: datetime

    @property
    def is_open(self) -> bool:
        """Whether it can still be answered."""
        return self.state == "open" and self.expires_at > now()

    @property
    def account(self) -> str | None:
        """The account that is asked for, or None if any account will do."""
        return self.about if self.asks == "account" else None


class AuthorizationRequests:
    """Opens, lists and closes authorization requests, and owns their table."""

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
        """Wait for the open request for this principal, connection and scopes, and open one if there is none.

        Returns the error that parks the action, or None if the principal already has a sufficient grant: one of the
        account to use that has the `needed_scopes` and is not `refused_grant_id`, the grant that the upstream refused.
        If the run has already used an account, only that account is asked for. Raises PrincipalInactive if the
        principal was deactivated while the action ran.
        """
        wanted = " ".join(sorted(scopes))
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            # The lock orders asking and answering: an answer either finds this waiter, or its grant is visible here.
            if not await self._principals.hold(session, identity.principal_id):
                raise PrincipalInactive(identity.name)
            standing = await self._grants.standing(
                session, connection, identity.principal_id, tool=identity.tool, run_id=run_id
            )
            held = standing.grant
            if held is not None and held.id != refused_grant and set(needed) <= set(held.scopes):
                return None
            asks, about = _question(standing, identity.tool)
            row, is_new = await self._opened(session, identity.principal_id, connection, wanted, asks, about)
            expires_at = now() + (connection.wait_limit or self._wait_limit)
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

    async def ask_ahead(
        self,
        principal: Principal,
        connection: Connection,
        scopes: Collection[str],
        *,
        account: str | None = None,
        tool: str = "",
    ) -> AuthorizationRequest:
        """Open a request that no run waits for yet, for a sign-in to this account, or to any if `account` is None.

        With `tool_name`, the person returns to that tool's other connections after signing in. Raises NotAllowed if
        the connection is shared.
        """
        if connection.mode == "shared":
            raise NotAllowed(f"Nobody connects an account of their own to {connection.title}: it is shared.")
        wanted = " ".join(sorted(scopes))
        asks, about = _ahead(account, tool)
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            await self._principals.hold(session, principal.id)
            row, is_new = await self._opened(session, principal.id, connection, wanted, asks, about)
            if is_new:
                await record(session, _event("authorization.requested", row, principal=principal))
        return _request(row)

    async def check_answer(self, waiter_id: str, *, timed_out: bool, identity: Identity) -> None:
        """Return if the action that waited may try again.

        Raises AuthorizationExpired, AuthorizationDenied or AuthorizationCancelled if the wait ended without a grant.
        """
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
            raise AuthorizationExpired(
                f"{identity.name} did not sign in to {what} in time. Call the tool again to get a new link."
            )
        if waiter.outcome == "denied":
            raise AuthorizationDenied(f"{identity.name} declined to let this run use {what}.")
        if waiter.outcome == "cancelled":
            raise AuthorizationCancelled(f"The wait for {what} was cancelled.")

    async def expire(self) -> int:
        """Mark the open requests whose time is over as expired, and return how many.

        Runs that waited for them time out by timers of their own.
        """
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
        """Return the request with this id."""
        async with self._database.reading() as session:
            row = await session.get(AuthorizationRequestRow, request_id)
        return None if row is None else _request(row)

    async def open_for(self, principal_id: str, *, ahead: bool = False) -> list[AuthorizationRequest]:
        """Return the open requests to this principal that a run waits for, oldest first.

        With `should_include_unawaited`, the requests that no run waits for are included.
        """
        query = (
            select(AuthorizationRequestRow)
            .where(
                AuthorizationRequestRow.principal_id == principal_id,
                AuthorizationRequestRow.state == "open",
                col(AuthorizationRequestRow.expires_at) > now(),
            )
            .order_by(col(AuthorizationRequestRow.created_at))
        )
        if not ahead:
            awaited = select(WaiterRow.awaits).where(WaiterRow.outcome == "waiting")
            query = query.where(col(AuthorizationRequestRow.id).in_(awaited))
        async with self._database.reading() as session:
            return [_request(row) for row in (await session.exec(query)).all()]

    async def scopes_to_ask(self, request: AuthorizationRequest, connection: Connection) -> tuple[str, ...]:
        """Return the scopes to request at the provider: those that the account granted already, and the request's."""
        held: tuple[str, ...] = ()
        if request.account is not None:
            held = await self._grants.scopes_held(connection, request.principal_id, request.account)
        return tuple(dict.fromkeys((*held, *request.scopes)))

    async def has_been_waited_for(self, request_id: str) -> bool:
        """Whether any run ever waited for this request. No run waits for one that was opened ahead of a call."""
        return await self._waiters.has_waited(request_id)

    async def waiting_tools(self, request_id: str) -> list[str]:
        """Return the names of the tools whose runs wait for this request."""
        async with self._database.reading() as session:
            runs = await self._waiters.runs_awaiting(session, request_id)
        return await self._runs.tools(runs)

    async def awaited_by(self, run_id: str) -> list[AuthorizationRequest]:
        """Return the open requests that a run and its descendants wait for, oldest first."""
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

    async def deny(self, request_id: str, principal: Principal, *, by: Principal | None = None) -> bool:
        """Deny an open request, and return False if it is not open any more or is not this principal's.

        `administrator` is who answers for a service.
        """
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

    async def open_in(
        self, session: AsyncSession, principal_id: str, connection: str
    ) -> list[AuthorizationRequest]:
        """Return the open requests to this principal on this connection, read in the caller's transaction."""
        return [_request(row) for row in await self._open_rows(session, principal_id, connection)]

    async def granted(self, session: AsyncSession, request_id: str) -> bool:
        """Grant a request in the caller's transaction, and return False if it is not open any more."""
        row = await session.get(AuthorizationRequestRow, request_id)
        if row is None or row.state != "open":
            return False
        await self._answer(session, row, "granted")
        return True

    async def _answer(
        self, session: AsyncSession, row: AuthorizationRequestRow, outcome: Literal["granted", "denied"]
    ) -> None:
        row.state = outcome
        row.answered_at = now()
        session.add(row)
        await self._waiters.answer(session, row.id, outcome)

    async def _open_rows(
        self, session: AsyncSession, principal_id: str, connection: str
    ) -> list[AuthorizationRequestRow]:
        query = select(AuthorizationRequestRow).where(
            AuthorizationRequestRow.principal_id == principal_id,
            AuthorizationRequestRow.connection == connection,
            AuthorizationRequestRow.state == "open",
        )
        return list((await session.exec(query)).all())

    async def _opened(
        self,
        session: AsyncSession,
        principal_id: str,
        connection: Connection,
        scopes: str,
        asks: Asks,
        about: str,
    ) -> tuple[AuthorizationRequestRow, bool]:
        """Return the open request for these values, and whether it is new.

        An existing request's expiry is extended to that of a new one.
        """
        expires_at = now() + (connection.wait_limit or self._wait_limit)
        for row in await self._open_rows(session, principal_id, connection.name):
            if (row.scopes, row.asks, row.about) == (scopes, asks, about):
                if row.expires_at > now():
                    row.expires_at = max(expires_at, row.expires_at)
                    return row, False
                row.state = "expired"
                await session.flush()
        row = AuthorizationRequestRow(
            id=str(uuid.uuid4()),
            principal_id=principal_id,
            connection=connection.name,
            scopes=scopes,
            asks=asks,
            about=about,
            created_at=now(),
            expires_at=expires_at,
        )
        session.add(row)
        await session.flush()
        return row, True


def _question(standing: Standing, tool: str) -> tuple[Asks, str]:
    """Return what to ask for if no account to use is known or its grant is not sufficient: the kind and its `about`."""
    said = standing.chosen
    if said.for_run is not None:
        return "account", said.for_run
    if standing.grant is not None:
        return "account", standing.grant.account
    if standing.usable or (said.for_tool, said.for_all) != (None, None):
        return "choice", tool
    return "any_account", ""


def _ahead(account: str | None, tool: str) -> tuple[Asks, str]:
    return ("any_account", tool) if account is None else ("account", account)


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


def _request(row: AuthorizationRequestRow) -> AuthorizationRequest:
    return AuthorizationRequest(
        id=row.id,
        principal_id=row.principal_id,
        connection=row.connection,
        scopes=tuple(row.scopes.split()),
        asks=cast("Asks", row.asks),
        about=row.about,
        state=cast("State", row.state),
        expires_at=row.expires_at,
    )
