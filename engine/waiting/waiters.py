"""Stores which actions wait for a person's answer, and which wake-ups are due for them.

The wake-ups are sent by `WakeUpDelivery`.
"""

import asyncio
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.db.database import Database, utc_now
from engine.db.tables import WaiterRow
from engine.identity.model import Identity
from engine.runs.records import RunRecords
from engine.wire import WAITER_NAMESPACE

# An action whose worker was down for longer asks again.
_RETENTION: Final = timedelta(days=30)
_MAX_DELETED_ROWS: Final = 10_000


@dataclass(frozen=True, slots=True)
class ParkedAction:
    """An action that waits, and the workflow run that a wake-up is sent to."""

    workflow_id: str
    workflow_run_id: str
    action_key: str


@dataclass(frozen=True, slots=True)
class Waiter:
    """An action that waits for an answer.

    `awaited_id` is the id of the authorization request or the question that it waits for.
    """

    id: str
    awaited_id: str
    run_id: str
    workflow_id: str
    outcome: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class WakeUp:
    """A signal that is due for a waiter."""

    waiter_id: str
    workflow_id: str


class Waiters:
    """Adds, wakes and lists waiters, and owns their table."""

    def __init__(self, database: Database, run_records: RunRecords) -> None:
        self._database = database
        self._run_records = run_records
        self.wake_ups_due = asyncio.Event()
        """Set when this process has made wake-ups due, so that delivery does not wait for its next sweep."""

    async def join_wait(
        self,
        db_session: AsyncSession,
        awaited_id: str,
        identity: Identity,
        parked_action: ParkedAction,
        *,
        run_id: str,
        expires_at: datetime,
    ) -> Waiter:
        """Add a waiter for this action in the caller's transaction, or return the one that it has already."""
        # The id is derived from the waiting action, so that a retried attempt finds its waiter and adds none.
        waiter_id = str(
            uuid.uuid5(
                WAITER_NAMESPACE, f"{awaited_id}:{parked_action.workflow_run_id}:{parked_action.action_key}"
            )
        )
        waiter_row = await db_session.get(WaiterRow, waiter_id)
        if waiter_row is None:
            waiter_row = WaiterRow(
                id=waiter_id,
                awaits=awaited_id,
                principal_id=identity.principal_id,
                run_id=run_id,
                workflow_id=parked_action.workflow_id,
                workflow_run_id=parked_action.workflow_run_id,
                created_at=utc_now(),
                expires_at=expires_at,
            )
            db_session.add(waiter_row)
        await self._run_records.record_parked(db_session, run_id)
        return _build_waiter(waiter_row)

    async def enqueue_wake_ups(self, db_session: AsyncSession, awaited_id: str, outcome: str) -> None:
        """Make wake-ups due for everything that waits for this answer, in the caller's transaction.

        The caller sets `wake_ups_due` after the commit.
        """
        await db_session.exec(
            update(WaiterRow)
            .where(col(WaiterRow.awaits) == awaited_id, col(WaiterRow.outcome) == "waiting")
            .values(outcome=outcome, due_at=utc_now())
        )

    async def resume_waiter(
        self, db_session: AsyncSession, waiter_id: str, identity: Identity, *, has_timed_out: bool
    ) -> tuple[Waiter, bool] | None:
        """Return the waiter whose action tries again, and whether it expired just now.

        Returns None if there is no such waiter or it is another principal's.
        """
        waiter_row = await db_session.get(WaiterRow, waiter_id, with_for_update=True)
        if waiter_row is None or waiter_row.principal_id != identity.principal_id:
            return None
        has_expired = waiter_row.outcome == "waiting" and has_timed_out
        if has_expired:
            waiter_row.outcome = "expired"
            db_session.add(waiter_row)
        return _build_waiter(waiter_row), has_expired

    async def cancel_waits(self, waiter_ids: Sequence[str], *, workflow_id: str | None = None) -> None:
        """Cancel the waits of a cancelled workflow. With `workflow_id`, only waits of that workflow are cancelled."""
        statement = update(WaiterRow).where(
            col(WaiterRow.id).in_(waiter_ids), col(WaiterRow.outcome) == "waiting"
        )
        if workflow_id is not None:
            statement = statement.where(col(WaiterRow.workflow_id) == workflow_id)
        async with self._database.open_write_session() as db_session:
            await db_session.exec(statement.values(outcome="cancelled"))

    async def list_waiters(self, run_id: str) -> list[Waiter]:
        """Return everything in a run and its descendants that waits now, oldest first."""
        statement = (
            select(WaiterRow)
            .where(WaiterRow.run_id == run_id, WaiterRow.outcome == "waiting")
            .order_by(col(WaiterRow.created_at))
        )
        async with self._database.open_read_session() as db_session:
            return [_build_waiter(waiter_row) for waiter_row in (await db_session.exec(statement)).all()]

    async def record_announced(self, run_id: str, awaited_ids: Collection[str]) -> None:
        """Record that an MCP client announced these waits of a run to its person, and need not announce them again."""
        statement = update(WaiterRow).where(
            col(WaiterRow.run_id) == run_id, col(WaiterRow.awaits).in_(awaited_ids)
        )
        async with self._database.open_write_session() as db_session:
            await db_session.exec(statement.values(taken_at=utc_now()))

    async def list_announced(self, run_id: str) -> set[str]:
        """Return the ids of what a run waits for and an MCP client has announced to its person."""
        statement = select(WaiterRow.awaits).where(
            WaiterRow.run_id == run_id, WaiterRow.outcome == "waiting", col(WaiterRow.taken_at).is_not(None)
        )
        async with self._database.open_read_session() as db_session:
            return set((await db_session.exec(statement)).all())

    async def list_waiting_runs(self, db_session: AsyncSession, awaited_id: str) -> set[str]:
        """Return the ids of the runs that wait for this answer, read in the caller's transaction."""
        statement = select(WaiterRow.run_id).where(
            WaiterRow.awaits == awaited_id, WaiterRow.outcome == "waiting"
        )
        return set((await db_session.exec(statement)).all())

    async def has_had_waiters(self, awaited_id: str) -> bool:
        """Whether any run ever waited for this answer."""
        statement = select(WaiterRow.id).where(WaiterRow.awaits == awaited_id).limit(1)
        async with self._database.open_read_session() as db_session:
            return (await db_session.exec(statement)).one_or_none() is not None

    async def list_awaited_by_run(self, run_ids: Collection[str]) -> dict[str, dict[str, datetime]]:
        """Return what each of these runs waits for and since when, for those that wait, by one query."""
        statement = select(WaiterRow.run_id, WaiterRow.awaits, WaiterRow.created_at).where(
            col(WaiterRow.run_id).in_(run_ids), WaiterRow.outcome == "waiting"
        )
        awaited_by_run: dict[str, dict[str, datetime]] = {}
        async with self._database.open_read_session() as db_session:
            for run_id, awaited_id, created_at in (await db_session.exec(statement)).all():
                waiting_since = awaited_by_run.setdefault(run_id, {})
                waiting_since[awaited_id] = max(created_at, waiting_since.get(awaited_id, created_at))
        return awaited_by_run

    async def list_due_wake_ups(self, max_rows: int) -> list[WakeUp]:
        """Return the wake-ups that are due now, oldest first."""
        statement = (
            select(WaiterRow)
            .where(col(WaiterRow.due_at) <= utc_now())
            .order_by(col(WaiterRow.due_at))
            .limit(max_rows)
        )
        async with self._database.open_read_session() as db_session:
            waiter_rows = (await db_session.exec(statement)).all()
        return [WakeUp(waiter_row.id, waiter_row.workflow_id) for waiter_row in waiter_rows]

    async def record_delivered(self, waiter_ids: Sequence[str]) -> None:
        """Record that these waiters' wake-ups were sent."""
        await self._set_due_time(waiter_ids, None)

    async def postpone_wake_ups(self, waiter_ids: Sequence[str], postponed_until: datetime) -> None:
        """Make these waiters' wake-ups due at a later time."""
        await self._set_due_time(waiter_ids, postponed_until)

    async def delete_expired_waiters(self) -> int:
        """Delete waiters that expired more than 30 days ago, and return how many.

        Waiters with a wake-up that is still due are kept.
        """
        expired_ids = (
            select(WaiterRow.id)
            .where(col(WaiterRow.due_at).is_(None), WaiterRow.expires_at < utc_now() - _RETENTION)
            .limit(_MAX_DELETED_ROWS)
        )
        async with self._database.open_write_session() as db_session:
            deleted_rows = await db_session.exec(delete(WaiterRow).where(col(WaiterRow.id).in_(expired_ids)))
        return int(deleted_rows.rowcount)

    async def _set_due_time(self, waiter_ids: Sequence[str], due_at: datetime | None) -> None:
        async with self._database.open_write_session() as db_session:
            await db_session.exec(
                update(WaiterRow).where(col(WaiterRow.id).in_(waiter_ids)).values(due_at=due_at)
            )


def _build_waiter(waiter_row: WaiterRow) -> Waiter:
    return Waiter(
        waiter_row.id,
        waiter_row.awaits,
        waiter_row.run_id,
        waiter_row.workflow_id,
        waiter_row.outcome,
        waiter_row.expires_at,
    )
