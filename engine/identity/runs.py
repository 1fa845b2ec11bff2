"""Stores which runs exist, whose they are, and which Temporal run each is bound to."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.db.database import Database, now
from engine.db.tables import PrincipalRow, RunRow
from engine.identity.model import Identity, TriggerKind

# The shortest retention that Temporal allows for closed workflows.
_REMEMBERED = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class RootRun:
    """A root workflow as the Temporal server names it: its id, and the first run in its chain of runs."""

    workflow_id: str
    first_run_id: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What the database says at this moment about a run and its principal."""

    principal_active: bool
    registered: bool
    first_run_id: str | None


@dataclass(frozen=True, slots=True)
class UnansweredRun:
    """A run whose outcome was not delivered to its caller yet. `has_waited` is whether it ever waited for a person."""

    id: str
    has_waited: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a tool.

    `id` is the root workflow's id, and `first_run_id` the id of the Temporal run that it is bound to.
    """

    id: str
    first_run_id: str | None
    principal_id: str
    tool: str
    call: str
    trigger: TriggerKind
    actor: str
    retry_of: str | None
    started_at: datetime


@dataclass(frozen=True, slots=True)
class KeyedRun:
    """The run of a call with an idempotency key, and the digest of that call.

    If `has_begun` is False, its start may have failed and is tried again. It is True once the run has acted, and after
    a day in any case: Temporal may have deleted the run by then, so starting it again could repeat it.
    """

    id: str
    call: str
    begun: bool


class RunRecords:
    """Finds, binds and updates the records of runs, and owns their table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, run_id: str) -> Run | None:
        """Return the run with this id, or None."""
        async with self._database.reading() as session:
            row = await session.get(RunRow, run_id)
        return None if row is None else _run(row)

    async def of(
        self,
        principal_id: str,
        *,
        tools: Collection[str] | None = None,
        trigger: TriggerKind | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int,
    ) -> list[Run]:
        """Return a principal's runs, newest first.

        `page_cursor` is the start time and id of the last run on the previous page.
        """
        query = select(RunRow).where(RunRow.principal_id == principal_id)
        if tools is not None:
            query = query.where(col(RunRow.tool).in_(tools))
        if trigger is not None:
            query = query.where(RunRow.trigger == trigger)
        if since is not None:
            query = query.where(col(RunRow.started_at) >= since)
        if until is not None:
            query = query.where(col(RunRow.started_at) < until)
        if before is not None:
            started_at, run_id = before
            earlier = col(RunRow.started_at) < started_at
            query = query.where(
                earlier | ((col(RunRow.started_at) == started_at) & (col(RunRow.id) < run_id))
            )
        query = query.order_by(col(RunRow.started_at).desc(), col(RunRow.id).desc()).limit(limit)
        async with self._database.reading() as session:
            return [_run(row) for row in (await session.exec(query)).all()]

    async def by_key(self, principal_id: str, idempotency_key: str) -> KeyedRun | None:
        """Return the run that this principal's call with this idempotency key began, or None."""
        acted, long_ago = col(RunRow.first_run_id).is_not(None), col(RunRow.started_at) < now() - _REMEMBERED
        query = select(RunRow.id, RunRow.call, acted | long_ago).where(
            RunRow.principal_id == principal_id, RunRow.idempotency_key == idempotency_key
        )
        async with self._database.reading() as session:
            found = (await session.exec(query)).one_or_none()
        return None if found is None else KeyedRun(*found)

    async def tools(self, run_ids: Collection[str]) -> list[str]:
        """Return the names of the tools of these runs, without duplicates and in order."""
        query = select(RunRow.tool).where(col(RunRow.id).in_(run_ids)).distinct().order_by(RunRow.tool)
        async with self._database.reading() as session:
            return list((await session.exec(query)).all())

    async def unanswered(self, principal_id: str, call: str, trigger: TriggerKind) -> UnansweredRun | None:
        """Return the newest run of the same call of this principal whose outcome was not delivered yet, or None.

        A run from an MCP client counts from its start, since the client waits for the answer. Any other run counts once
        it has waited for a person. Runs with an idempotency key never count.
        """
        has_waited = col(RunRow.parked_at).is_not(None)
        is_owed = has_waited | (RunRow.trigger == "mcp") if trigger == "mcp" else has_waited
        query = (
            select(RunRow.id, has_waited)
            .where(
                RunRow.principal_id == principal_id,
                RunRow.call == call,
                col(RunRow.answered_at).is_(None),
                col(RunRow.idempotency_key).is_(None),
                is_owed,
            )
            .order_by(col(RunRow.started_at).desc())
            .limit(1)
        )
        async with self._database.reading() as session:
            found = (await session.exec(query)).first()
        return None if found is None else UnansweredRun(*found)

    async def parked(self, session: AsyncSession, run_id: str) -> None:
        """Record in the caller's transaction that the run waits for a person."""
        await session.exec(
            update(RunRow)
            .where(col(RunRow.id) == run_id, col(RunRow.parked_at).is_(None))
            .values(parked_at=now())
        )

    async def answered(self, run_ids: Collection[str]) -> None:
        """Record that these outcomes were delivered to their callers, so that equal calls begin new runs afterwards."""
        told = update(RunRow).where(col(RunRow.id).in_(run_ids)).values(answered_at=now())
        async with self._database.writing() as session:
            await session.exec(told)

    async def standing(self, run_id: str, principal_id: str) -> Standing:
        """Return whether the principal is active and which Temporal run this run is bound to, by one query."""
        query = (
            select(PrincipalRow.active, RunRow.id, RunRow.first_run_id)
            .join(
                RunRow,
                (col(RunRow.principal_id) == PrincipalRow.id) & (col(RunRow.id) == run_id),
                isouter=True,
            )
            .where(PrincipalRow.id == principal_id)
        )
        async with self._database.reading() as session:
            found = (await session.exec(query)).one_or_none()
        if found is None:
            return Standing(principal_active=False, registered=False, first_run_id=None)
        active, registered, first_run_id = found
        return Standing(principal_active=active, registered=registered is not None, first_run_id=first_run_id)

    async def bind(self, root: RootRun) -> str | None:
        """Bind a run to the first Temporal run that acts for it, and return the id of the Temporal run it is bound to.

        A binding never changes. Returns None if the run is not registered.
        """
        bind = (
            update(RunRow)
            .where(col(RunRow.id) == root.workflow_id, col(RunRow.first_run_id).is_(None))
            .values(first_run_id=root.first_run_id)
        )
        async with self._database.writing() as session:
            await session.exec(bind)
            row = await session.get(RunRow, root.workflow_id)
        return None if row is None else row.first_run_id


def _run(row: RunRow) -> Run:
    return Run(
        id=row.id,
        first_run_id=row.first_run_id,
        principal_id=row.principal_id,
        tool=row.tool,
        call=row.call,
        trigger=cast("TriggerKind", row.trigger),
        actor=row.actor,
        retry_of=row.retry_of,
        started_at=row.started_at,
    )


def run_row(
    identity: Identity,
    *,
    first_run_id: str | None = None,
    idempotency_key: str | None = None,
    retry_of: str | None = None,
) -> RunRow:
    """Build the row that registers the run of this identity."""
    return RunRow(
        id=identity.root,
        first_run_id=first_run_id,
        idempotency_key=idempotency_key,
        retry_of=retry_of,
        principal_id=identity.principal_id,
        tool=identity.tool,
        call=identity.call,
        trigger=identity.trigger,
        actor=identity.actor.id,
        started_at=now(),
    )
