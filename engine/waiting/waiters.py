"""Who waits for a person's answer, and the wake-ups they are owed; it knows no question and sends no signal."""

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

# A worker that was away for as long finds that it has to ask again.
_REMEMBERED: Final = timedelta(days=30)
_AT_ONCE: Final = 10_000

_WAITERS = uuid.UUID("0d6f4c1e-3a52-4a8e-9c55-0f3f6f2f6b11")


@dataclass(frozen=True, slots=True)
class ParkedAction:
    """The place that an answer wakes: a workflow run, and the action in it that waits."""

    workflow_id: str
    workflow_run_id: str
    key: str


@dataclass(frozen=True, slots=True)
class Waiter:
    """A place that waits; `awaits` is the id of the authorization request or the question that it waits for."""

    id: str
    awaits: str
    run_id: str
    workflow_id: str
    outcome: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class WakeUp:
    """A signal that a waiter is owed."""

    waiter: str
    workflow_id: str


class Waiters:
    """Owner of the table of waiters."""

    def __init__(self, database: Database, runs: RunRecords) -> None:
        self._database = database
        self._runs = runs
        self.owed = asyncio.Event()
        """Set when waiters are owed a wake-up by this process, so that delivery need not wait for its next sweep."""

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
        """Wait, in the caller's transaction, for an answer; a place that waits already keeps its waiter."""
        # The id follows from the place that waits, so that a retried attempt finds its waiter instead of adding one.
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
        """Owe, in the caller's transaction, a wake-up to everybody who waits; set `owed` once it is committed."""
        await session.exec(
            update(WaiterRow)
            .where(col(WaiterRow.awaits) == awaits, col(WaiterRow.outcome) == "waiting")
            .values(outcome=outcome, due_at=now())
        )

    async def looked_again(
        self, session: AsyncSession, waiter_id: str, identity: Identity, *, timed_out: bool
    ) -> tuple[Waiter, bool] | None:
        """The waiter that looks again, and whether its time ran out just now; None where it is not this principal's."""
        row = await session.get(WaiterRow, waiter_id, with_for_update=True)
        if row is None or row.principal_id != identity.principal_id:
            return None
        ran_out = row.outcome == "waiting" and timed_out
        if ran_out:
            row.outcome = "expired"
            session.add(row)
        return _waiter(row), ran_out

    async def withdraw(self, waiter_ids: Sequence[str], *, of: str | None = None) -> None:
        """Forget waits whose workflow was cancelled; those `of` one workflow alone, where it is the one that asks."""
        these = update(WaiterRow).where(
            col(WaiterRow.id).in_(waiter_ids), col(WaiterRow.outcome) == "waiting"
        )
        if of is not None:
            these = these.where(col(WaiterRow.workflow_id) == of)
        async with self._database.writing() as session:
            await session.exec(these.values(outcome="cancelled"))

    async def waiting(self, run_id: str) -> list[Waiter]:
        """Every place in a run and its descendants that waits now, oldest first."""
        query = (
            select(WaiterRow)
            .where(WaiterRow.run_id == run_id, WaiterRow.outcome == "waiting")
            .order_by(col(WaiterRow.created_at))
        )
        async with self._database.reading() as session:
            return [_waiter(row) for row in (await session.exec(query)).all()]

    async def take(self, run_id: str, awaits: Collection[str]) -> None:
        """Note that a chat client took these waits of a run to its person, who need not be asked by it again."""
        these = update(WaiterRow).where(col(WaiterRow.run_id) == run_id, col(WaiterRow.awaits).in_(awaits))
        async with self._database.writing() as session:
            await session.exec(these.values(taken_at=now()))

    async def taken(self, run_id: str) -> set[str]:
        """What a run waits for, as far as a chat client took it to its person."""
        query = select(WaiterRow.awaits).where(
            WaiterRow.run_id == run_id, WaiterRow.outcome == "waiting", col(WaiterRow.taken_at).is_not(None)
        )
        async with self._database.reading() as session:
            return set((await session.exec(query)).all())

    async def runs_awaiting(self, session: AsyncSession, awaits: str) -> set[str]:
        """The runs that wait for this answer, seen from the caller's transaction."""
        query = select(WaiterRow.run_id).where(WaiterRow.awaits == awaits, WaiterRow.outcome == "waiting")
        return set((await session.exec(query)).all())

    async def has_waited(self, awaits: str) -> bool:
        """Whether anybody ever waited for this answer."""
        query = select(WaiterRow.id).where(WaiterRow.awaits == awaits).limit(1)
        async with self._database.reading() as session:
            return (await session.exec(query)).one_or_none() is not None

    async def awaited_in(self, run_ids: Collection[str]) -> dict[str, dict[str, datetime]]:
        """For each of these runs that waits, what it waits for and since when, by one query for all."""
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

    async def forget(self) -> int:
        """Forget waits that ran out a month ago, answered or not, unless a wake-up is owed; returns how many."""
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
