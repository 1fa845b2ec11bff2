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

from engine.db.database import Database, now
from engine.db.tables import WaiterRow
from engine.identity.model import Identity
from engine.identity.runs import RunRecords

# An action whose worker was down for longer asks again.
_REMEMBERED: Final = timedelta(days=30)
_AT_ONCE: Final = 10_000

_WAITERS = uuid.UUID("0d6f4c1e-3a52-4a8e-9c55-0f3f6f2f6b11")


@dataclass(frozen=True, slots=True)
class ParkedAction:
    """An action that waits, and the workflow run that a wake-up is sent to."""

    workflow_id: str
    workflow_run_id: str
    key: str


@dataclass(frozen=True, slots=True)
class Waiter:
    """An action that waits for an answer.

    `awaited_id` is the id of the authorization request or the question that it waits for.
    """

    id: str
    awaits: str
    run_id: str
    workflow_id: str
    outcome: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class WakeUp:
    """A signal that is due for a waiter."""

    waiter: str
    workflow_id: str


class Waiters:
    """Adds, wakes and lists waiters, and owns their table."""

    def __init__(self, database: Database, runs: RunRecords) -> None:
        self._database = database
        self._runs = runs
        self.owed = asyncio.Event()
        """Set when this process has made wake-ups due, so that delivery does not wait for its next sweep."""

    async def join(
        self,
        session: AsyncSession,
        awaits: str,
        identity: Identity,
        parked: ParkedAction,
        *,
        run_id: str,
        expires_at: datetime,
    ) -> Waiter:
        """Add a waiter for this action in the caller's transaction, or return the one that it has already."""
        # The id is derived from the waiting action, so that a retried attempt finds its waiter and adds none.
        waiter_id = str(uuid.uuid5(_WAITERS, f"{awaits}:{parked.workflow_run_id}:{parked.key}"))
        row = await session.get(WaiterRow, waiter_id)
        if row is None:
            row = WaiterRow(
                id=waiter_id,
                awaits=awaits,
                principal_id=identity.principal_id,
                run_id=run_id,
                workflow_id=parked.workflow_id,
                workflow_run_id=parked.workflow_run_id,
                created_at=now(),
                expires_at=expires_at,
            )
            session.add(row)
        await self._runs.parked(session, run_id)
        return _waiter(row)

    async def answer(self, session: AsyncSession, awaits: str, outcome: str) -> None:
        """Make wake-ups due for everything that waits for this answer, in the caller's transaction.

        The caller sets `wake_ups_due` after the commit.
        """
        await session.exec(
            update(WaiterRow)
            .where(col(WaiterRow.awaits) == awaits, col(WaiterRow.outcome) == "waiting")
            .values(outcome=outcome, due_at=now())
        )

    async def looked_again(
        self, session: AsyncSession, waiter_id: str, identity: Identity, *, timed_out: bool
    ) -> tuple[Waiter, bool] | None:
        """Return the waiter whose action tries again, and whether it expired just now.

        Returns None if there is no such waiter or it is another principal's.
        """
        row = await session.get(WaiterRow, waiter_id, with_for_update=True)
        if row is None or row.principal_id != identity.principal_id:
            return None
        ran_out = row.outcome == "waiting" and timed_out
        if ran_out:
            row.outcome = "expired"
            session.add(row)
        return _waiter(row), ran_out

    async def withdraw(self, waiter_ids: Sequence[str], *, of: str | None = None) -> None:
        """Cancel the waits of a cancelled workflow. With `workflow_id`, only waits of that workflow are cancelled."""
        these = update(WaiterRow).where(
            col(WaiterRow.id).in_(waiter_ids), col(WaiterRow.outcome) == "waiting"
        )
        if of is not None:
            these = these.where(col(WaiterRow.workflow_id) == of)
        async with self._database.writing() as session:
            await session.exec(these.values(outcome="cancelled"))

    async def waiting(self, run_id: str) -> list[Waiter]:
        """Return everything in a run and its descendants that waits now, oldest first."""
        query = (
            select(WaiterRow)
            .where(WaiterRow.run_id == run_id, WaiterRow.outcome == "waiting")
            .order_by(col(WaiterRow.created_at))
        )
        async with self._database.reading() as session:
            return [_waiter(row) for row in (await session.exec(query)).all()]

    async def take(self, run_id: str, awaits: Collection[str]) -> None:
        """Record that an MCP client announced these waits of a run to its person, and need not announce them again."""
        these = update(WaiterRow).where(col(WaiterRow.run_id) == run_id, col(WaiterRow.awaits).in_(awaits))
        async with self._database.writing() as session:
            await session.exec(these.values(taken_at=now()))

    async def taken(self, run_id: str) -> set[str]:
        """Return the ids of what a run waits for and an MCP client has announced to its person."""
        query = select(WaiterRow.awaits).where(
            WaiterRow.run_id == run_id, WaiterRow.outcome == "waiting", col(WaiterRow.taken_at).is_not(None)
        )
        async with self._database.reading() as session:
            return set((await session.exec(query)).all())

    async def runs_awaiting(self, session: AsyncSession, awaits: str) -> set[str]:
        """Return the ids of the runs that wait for this answer, read in the caller's transaction."""
        query = select(WaiterRow.run_id).where(WaiterRow.awaits == awaits, WaiterRow.outcome == "waiting")
        return set((await session.exec(query)).all())

    async def has_waited(self, awaits: str) -> bool:
        """Whether any run ever waited for this answer."""
        query = select(WaiterRow.id).where(WaiterRow.awaits == awaits).limit(1)
        async with self._database.reading() as session:
            return (await session.exec(query)).one_or_none() is not None

    async def awaited_in(self, run_ids: Collection[str]) -> dict[str, dict[str, datetime]]:
        """Return what each of these runs waits for and since when, for those that wait, by one query."""
        query = select(WaiterRow.run_id, WaiterRow.awaits, WaiterRow.created_at).where(
            col(WaiterRow.run_id).in_(run_ids), WaiterRow.outcome == "waiting"
        )
        found: dict[str, dict[str, datetime]] = {}
        async with self._database.reading() as session:
            for run_id, awaits, created_at in (await session.exec(query)).all():
                awaited = found.setdefault(run_id, {})
                awaited[awaits] = max(created_at, awaited.get(awaits, created_at))
        return found

    async def wake_ups(self, limit: int) -> list[WakeUp]:
        """Return the wake-ups that are due now, oldest first."""
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
        """Record that these waiters' wake-ups were sent."""
        await self._set_due(waiter_ids, None)

    async def postpone(self, waiter_ids: Sequence[str], until: datetime) -> None:
        """Make these waiters' wake-ups due at a later time."""
        await self._set_due(waiter_ids, until)

    async def forget(self) -> int:
        """Delete waiters that expired more than 30 days ago, and return how many.

        Waiters with a wake-up that is still due are kept.
        """
        over = (
            select(WaiterRow.id)
            .where(col(WaiterRow.due_at).is_(None), WaiterRow.expires_at < now() - _REMEMBERED)
            .limit(_AT_ONCE)
        )
        async with self._database.writing() as session:
            gone = await session.exec(delete(WaiterRow).where(col(WaiterRow.id).in_(over)))
        return int(gone.rowcount)

    async def _set_due(self, waiter_ids: Sequence[str], due_at: datetime | None) -> None:
        async with self._database.writing() as session:
            await session.exec(
                update(WaiterRow).where(col(WaiterRow.id).in_(waiter_ids)).values(due_at=due_at)
            )


def _waiter(row: WaiterRow) -> Waiter:
    return Waiter(row.id, row.awaits, row.run_id, row.workflow_id, row.outcome, row.expires_at)
