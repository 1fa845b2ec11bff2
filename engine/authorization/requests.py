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

from engine.audit.trail import AuditEvent, AuditTrail
from engine.connections.connection import Connection
from engine.db.database import Database, utc_now
from engine.db.tables import AuthorizationRequestRow, WaiterRow
from engine.errors import (
    AuthorizationCancelled,
    AuthorizationDenied,
    AuthorizationExpired,
    AuthorizationRequired,
    NotAllowed,
    PrincipalInactive,
)
from engine.grants.grants import Grants, GrantSituation
from engine.identity.model import Identity, Principal
from engine.identity.principals import Principals
from engine.runs.records import RunRecords
from engine.waiting.waiters import ParkedAction, Waiters

RequestKind = Literal["any_account", "account", "choice"]
"""A sign-in to any account, a sign-in to one certain account, or a choice of the account that a tool shall use."""

RequestState = Literal["open", "granted", "denied", "expired"]
"""The state of a request. An expired one may stay `open` in the table until upkeep closes it."""


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """A question to one principal: may Byline use your account on this connection with these scopes?

    `about` holds the account that is asked for (`account`), the tool that a choice is asked for (`choice`), or the
    tool for which a sign-in was requested ahead of a call (`any_account`, else empty).
    """

    id: str
    principal_id: str
    connection_name: str
    scopes: tuple[str, ...]
    request_kind: RequestKind
    about: str
    state: RequestState
    expires_at: datetime

    @property
    def is_open(self) -> bool:
        """Whether it can still be answered."""
        return self.state == "open" and self.expires_at > utc_now()

    @property
    def account(self) -> str | None:
        """The account that is asked for, or None if any account will do."""
        return self.about if self.request_kind == "account" else None


class AuthorizationRequests:
    """Opens, lists and closes authorization requests, and owns their table."""

    def __init__(
        self,
        database: Database,
        principals: Principals,
        run_records: RunRecords,
        grants: Grants,
        waiters: Waiters,
        trail: AuditTrail,
        wait_limit: timedelta,
    ) -> None:
        self._database = database
        self._principals = principals
        self._run_records = run_records
        self._grants = grants
        self._waiters = waiters
        self._trail = trail
        self._wait_limit = wait_limit

    async def require_authorization(
        self,
        identity: Identity,
        connection: Connection,
        scopes: Collection[str],
        parked_action: ParkedAction,
        *,
        run_id: str,
        needed_scopes: Collection[str] = (),
        refused_grant_id: str | None = None,
    ) -> AuthorizationRequired | None:
        """Wait for the open request for this principal, connection and scopes, and open one if there is none.

        Returns the error that parks the action, or None if the principal already has a sufficient grant: one of the
        account to use that has the `needed_scopes` and is not `refused_grant_id`, the grant that the upstream refused.
        If the run has already used an account, only that account is asked for. Raises PrincipalInactive if the
        principal was deactivated while the action ran.
        """
        scope_string = " ".join(sorted(scopes))
        async with self._trail.open_transaction() as transaction:
            # The lock orders asking and answering: an answer either finds this waiter, or its grant is visible here.
            if not await self._principals.lock_principal(transaction.db_session, identity.principal_id):
                raise PrincipalInactive(identity.name)
            grant_situation = await self._grants.find_situation(
                transaction.db_session,
                connection,
                identity.principal_id,
                tool_name=identity.tool_name,
                run_id=run_id,
            )
            selected_grant = grant_situation.selected_grant
            if (
                selected_grant is not None
                and selected_grant.id != refused_grant_id
                and set(needed_scopes) <= set(selected_grant.scopes)
            ):
                return None
            request_kind, about = _determine_question(grant_situation, identity.tool_name)
            request_row, is_new = await self._open_or_extend_request(
                transaction.db_session, identity.principal_id, connection, scope_string, request_kind, about
            )
            expires_at = utc_now() + (connection.wait_limit or self._wait_limit)
            waiter = await self._waiters.join_wait(
                transaction.db_session,
                request_row.id,
                identity,
                parked_action,
                run_id=run_id,
                expires_at=expires_at,
            )
            if is_new:
                transaction.record(
                    _build_request_event(
                        "authorization.requested", request_row, identity=identity, run_id=run_id
                    ),
                )
        return AuthorizationRequired(
            waiter_id=waiter.id,
            request_id=request_row.id,
            connection_name=connection.name,
            principal_id=identity.principal_id,
            expires_at=waiter.expires_at.timestamp(),
        )

    async def open_request_ahead(
        self,
        principal: Principal,
        connection: Connection,
        scopes: Collection[str],
        *,
        account: str | None = None,
        tool_name: str = "",
    ) -> AuthorizationRequest:
        """Open a request that no run waits for yet, for a sign-in to this account, or to any if `account` is None.

        With `tool_name`, the person returns to that tool's other connections after signing in. Raises NotAllowed if
        the connection is shared.
        """
        if connection.mode == "shared":
            raise NotAllowed(f"Nobody connects an account of their own to {connection.title}: it is shared.")
        scope_string = " ".join(sorted(scopes))
        request_kind, about = _determine_ahead_question(account, tool_name)
        async with self._trail.open_transaction() as transaction:
            await self._principals.lock_principal(transaction.db_session, principal.id)
            request_row, is_new = await self._open_or_extend_request(
                transaction.db_session, principal.id, connection, scope_string, request_kind, about
            )
            if is_new:
                transaction.record(
                    _build_request_event("authorization.requested", request_row, principal=principal),
                )
        return _build_request(request_row)

    async def check_wait_outcome(self, waiter_id: str, *, has_timed_out: bool, identity: Identity) -> None:
        """Return if the action that waited may try again.

        Raises AuthorizationExpired, AuthorizationDenied or AuthorizationCancelled if the wait ended without a grant.
        """
        async with self._trail.open_transaction() as transaction:
            resumed_wait = await self._waiters.resume_waiter(
                transaction.db_session, waiter_id, identity, has_timed_out=has_timed_out
            )
            if resumed_wait is None:
                return
            waiter, has_expired = resumed_wait
            request_row = await transaction.db_session.get_one(AuthorizationRequestRow, waiter.awaited_id)
            if has_expired:
                expired_event = _build_request_event(
                    "authorization.expired", request_row, identity=identity, run_id=waiter.run_id
                )
                transaction.record(expired_event)
        connection_label = f"connection '{request_row.connection}'"
        if waiter.outcome == "expired":
            raise AuthorizationExpired(
                f"{identity.name} did not sign in to {connection_label} in time. Call the tool again to get a new link."
            )
        if waiter.outcome == "denied":
            raise AuthorizationDenied(f"{identity.name} declined to let this run use {connection_label}.")
        if waiter.outcome == "cancelled":
            raise AuthorizationCancelled(f"The wait for {connection_label} was cancelled.")

    async def expire_overdue_requests(self) -> int:
        """Mark the open requests whose time is over as expired, and return how many.

        Runs that waited for them time out by timers of their own.
        """
        statement = (
            update(AuthorizationRequestRow)
            .where(
                col(AuthorizationRequestRow.state) == "open",
                col(AuthorizationRequestRow.expires_at) <= utc_now(),
            )
            .values(state="expired")
        )
        async with self._database.open_write_session() as db_session:
            return (await db_session.exec(statement)).rowcount

    async def find_request(self, request_id: str) -> AuthorizationRequest | None:
        """Return the request with this id."""
        async with self._database.open_read_session() as db_session:
            request_row = await db_session.get(AuthorizationRequestRow, request_id)
        return None if request_row is None else _build_request(request_row)

    async def list_open_requests(
        self, principal_id: str, *, should_include_unawaited: bool = False
    ) -> list[AuthorizationRequest]:
        """Return the open requests to this principal that a run waits for, oldest first.

        With `should_include_unawaited`, the requests that no run waits for are included.
        """
        statement = (
            select(AuthorizationRequestRow)
            .where(
                AuthorizationRequestRow.principal_id == principal_id,
                AuthorizationRequestRow.state == "open",
                col(AuthorizationRequestRow.expires_at) > utc_now(),
            )
            .order_by(col(AuthorizationRequestRow.created_at))
        )
        if not should_include_unawaited:
            awaited_ids = select(WaiterRow.awaits).where(WaiterRow.outcome == "waiting")
            statement = statement.where(col(AuthorizationRequestRow.id).in_(awaited_ids))
        async with self._database.open_read_session() as db_session:
            return [_build_request(request_row) for request_row in (await db_session.exec(statement)).all()]

    async def collect_requested_scopes(
        self, authorization_request: AuthorizationRequest, connection: Connection
    ) -> tuple[str, ...]:
        """Return the scopes to request at the provider: those that the account granted already, and the request's."""
        granted_scopes: tuple[str, ...] = ()
        if authorization_request.account is not None:
            granted_scopes = await self._grants.list_active_scopes(
                connection, authorization_request.principal_id, authorization_request.account
            )
        return tuple(dict.fromkeys((*granted_scopes, *authorization_request.scopes)))

    async def has_had_waiters(self, request_id: str) -> bool:
        """Whether any run ever waited for this request. No run waits for one that was opened ahead of a call."""
        return await self._waiters.has_had_waiters(request_id)

    async def list_waiting_tools(self, request_id: str) -> list[str]:
        """Return the names of the tools whose runs wait for this request."""
        async with self._database.open_read_session() as db_session:
            run_ids = await self._waiters.list_waiting_runs(db_session, request_id)
        return await self._run_records.list_tools(run_ids)

    async def list_awaited_requests(self, run_id: str) -> list[AuthorizationRequest]:
        """Return the open requests that a run and its descendants wait for, oldest first."""
        statement = (
            select(AuthorizationRequestRow)
            .join(WaiterRow, col(WaiterRow.awaits) == AuthorizationRequestRow.id)
            .where(
                WaiterRow.run_id == run_id,
                WaiterRow.outcome == "waiting",
                AuthorizationRequestRow.state == "open",
            )
            .distinct()
        )
        async with self._database.open_read_session() as db_session:
            request_rows = (await db_session.exec(statement)).all()
        return [
            _build_request(request_row)
            for request_row in sorted(request_rows, key=lambda request_row: request_row.created_at)
        ]

    async def deny_request(
        self, request_id: str, principal: Principal, *, administrator: Principal | None = None
    ) -> bool:
        """Deny an open request, and return False if it is not open any more or is not this principal's.

        `administrator` is who answers for a service.
        """
        async with self._trail.open_transaction() as transaction:
            await self._principals.lock_principal(transaction.db_session, principal.id)
            request_row = await transaction.db_session.get(AuthorizationRequestRow, request_id)
            if request_row is None or request_row.state != "open" or request_row.principal_id != principal.id:
                return False
            await self._close_request(transaction.db_session, request_row, "denied")
            transaction.record(
                _build_request_event(
                    "authorization.denied", request_row, principal=principal, administrator=administrator
                ),
            )
        self._waiters.wake_ups_due.set()
        return True

    async def list_open_on_connection(
        self, db_session: AsyncSession, principal_id: str, connection_name: str
    ) -> list[AuthorizationRequest]:
        """Return the open requests to this principal on this connection, read in the caller's transaction."""
        return [
            _build_request(request_row)
            for request_row in await self._select_open_rows(db_session, principal_id, connection_name)
        ]

    async def grant_request(self, db_session: AsyncSession, request_id: str) -> bool:
        """Grant a request in the caller's transaction, and return False if it is not open any more."""
        request_row = await db_session.get(AuthorizationRequestRow, request_id)
        if request_row is None or request_row.state != "open":
            return False
        await self._close_request(db_session, request_row, "granted")
        return True

    async def _close_request(
        self,
        db_session: AsyncSession,
        request_row: AuthorizationRequestRow,
        outcome: Literal["granted", "denied"],
    ) -> None:
        request_row.state = outcome
        request_row.answered_at = utc_now()
        db_session.add(request_row)
        await self._waiters.enqueue_wake_ups(db_session, request_row.id, outcome)

    async def _select_open_rows(
        self, db_session: AsyncSession, principal_id: str, connection_name: str
    ) -> list[AuthorizationRequestRow]:
        statement = select(AuthorizationRequestRow).where(
            AuthorizationRequestRow.principal_id == principal_id,
            AuthorizationRequestRow.connection == connection_name,
            AuthorizationRequestRow.state == "open",
        )
        return list((await db_session.exec(statement)).all())

    async def _open_or_extend_request(
        self,
        db_session: AsyncSession,
        principal_id: str,
        connection: Connection,
        scope_string: str,
        request_kind: RequestKind,
        about: str,
    ) -> tuple[AuthorizationRequestRow, bool]:
        """Return the open request for these values, and whether it is new.

        An existing request's expiry is extended to that of a new one.
        """
        expires_at = utc_now() + (connection.wait_limit or self._wait_limit)
        for request_row in await self._select_open_rows(db_session, principal_id, connection.name):
            if (request_row.scopes, request_row.asks, request_row.about) == (
                scope_string,
                request_kind,
                about,
            ):
                if request_row.expires_at > utc_now():
                    request_row.expires_at = max(expires_at, request_row.expires_at)
                    return request_row, False
                request_row.state = "expired"
                await db_session.flush()
        request_row = AuthorizationRequestRow(
            id=str(uuid.uuid4()),
            principal_id=principal_id,
            connection=connection.name,
            scopes=scope_string,
            asks=request_kind,
            about=about,
            created_at=utc_now(),
            expires_at=expires_at,
        )
        db_session.add(request_row)
        await db_session.flush()
        return request_row, True


def _determine_question(grant_situation: GrantSituation, tool_name: str) -> tuple[RequestKind, str]:
    """Return what to ask for if no account to use is known or its grant is not sufficient: the kind and its `about`."""
    account_choices = grant_situation.account_choices
    if account_choices.pinned_account is not None:
        return "account", account_choices.pinned_account
    if grant_situation.selected_grant is not None:
        return "account", grant_situation.selected_grant.account
    if grant_situation.active_grants or (account_choices.tool_account, account_choices.default_account) != (
        None,
        None,
    ):
        return "choice", tool_name
    return "any_account", ""


def _determine_ahead_question(account: str | None, tool_name: str) -> tuple[RequestKind, str]:
    return ("any_account", tool_name) if account is None else ("account", account)


def _build_request_event(
    event_kind: Literal["authorization.requested", "authorization.denied", "authorization.expired"],
    request_row: AuthorizationRequestRow,
    *,
    identity: Identity | None = None,
    principal: Principal | None = None,
    administrator: Principal | None = None,
    run_id: str | None = None,
) -> AuditEvent:
    return AuditEvent(
        kind=event_kind,
        identity=identity,
        principal=principal,
        by=administrator,
        run_id=run_id,
        connection=request_row.connection,
        scopes=tuple(request_row.scopes.split()),
        request_id=request_row.id,
    )


def _build_request(request_row: AuthorizationRequestRow) -> AuthorizationRequest:
    return AuthorizationRequest(
        id=request_row.id,
        principal_id=request_row.principal_id,
        connection_name=request_row.connection,
        scopes=tuple(request_row.scopes.split()),
        request_kind=cast("RequestKind", request_row.asks),
        about=request_row.about,
        state=cast("RequestState", request_row.state),
        expires_at=request_row.expires_at,
    )
