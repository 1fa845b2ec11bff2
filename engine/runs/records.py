"""Stores which runs exist, whose they are, and which Temporal run each is bound to."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.db.database import Database, utc_now
from engine.db.tables import PrincipalRow, RunRow
from engine.identity.model import Identity, TriggerKind

# The shortest retention that Temporal allows for closed workflows.
_TEMPORAL_RETENTION = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class RootRun:
    """A root workflow as the Temporal server names it: its id, and the first run in its chain of runs."""

    workflow_id: str
    first_run_id: str


@dataclass(frozen=True, slots=True)
class RunBinding:
    """What the database says at this moment about a run and its principal."""

    is_principal_active: bool
    is_registered: bool
    first_run_id: str | None


@dataclass(frozen=True, slots=True)
class UndeliveredRun:
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
    tool_name: str
    call_digest: str
    trigger: TriggerKind
    actor_id: str
    retry_of: str | None
    started_at: datetime


@dataclass(frozen=True, slots=True)
class KeyedRun:
    """The run of a call with an idempotency key, and the digest of that call.

    If `has_begun` is False, its start may have failed and is tried again. It is True once the run has acted, and after
    a day in any case: Temporal may have deleted the run by then, so starting it again could repeat it.
    """

    id: str
    call_digest: str
    has_begun: bool


class RunRecords:
    """Finds, binds and updates the records of runs, and owns their table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find_run(self, run_id: str) -> Run | None:
        """Return the run with this id, or None."""
        async with self._database.open_read_session() as db_session:
            run_row = await db_session.get(RunRow, run_id)
        return None if run_row is None else _build_run(run_row)

    async def list_runs(
        self,
        principal_id: str,
        *,
        tool_names: Collection[str] | None = None,
        trigger: TriggerKind | None = None,
        started_since: datetime | None = None,
        started_until: datetime | None = None,
        page_cursor: tuple[datetime, str] | None = None,
        max_rows: int,
    ) -> list[Run]:
        """Return a principal's runs, newest first.

        `page_cursor` is the start time and id of the last run on the previous page.
        """
        statement = select(RunRow).where(RunRow.principal_id == principal_id)
        if tool_names is not None:
            statement = statement.where(col(RunRow.tool).in_(tool_names))
        if trigger is not None:
            statement = statement.where(RunRow.trigger == trigger)
        if started_since is not None:
            statement = statement.where(col(RunRow.started_at) >= started_since)
        if started_until is not None:
            statement = statement.where(col(RunRow.started_at) < started_until)
        if page_cursor is not None:
            started_at, run_id = page_cursor
            has_started_earlier = col(RunRow.started_at) < started_at
            statement = statement.where(
                has_started_earlier | ((col(RunRow.started_at) == started_at) & (col(RunRow.id) < run_id))
            )
        statement = statement.order_by(col(RunRow.started_at).desc(), col(RunRow.id).desc()).limit(max_rows)
        async with self._database.open_read_session() as db_session:
            return [_build_run(run_row) for run_row in (await db_session.exec(statement)).all()]

    async def find_by_idempotency_key(self, principal_id: str, idempotency_key: str) -> KeyedRun | None:
        """Return the run that this principal's call with this idempotency key began, or None."""
        has_acted, has_outlived_retention = (
            col(RunRow.first_run_id).is_not(None),
            col(RunRow.started_at) < utc_now() - _TEMPORAL_RETENTION,
        )
        statement = select(RunRow.id, RunRow.call, has_acted | has_outlived_retention).where(
            RunRow.principal_id == principal_id, RunRow.idempotency_key == idempotency_key
        )
        async with self._database.open_read_session() as db_session:
            run_values = (await db_session.exec(statement)).one_or_none()
        return None if run_values is None else KeyedRun(*run_values)

    async def list_tools(self, run_ids: Collection[str]) -> list[str]:
        """Return the names of the tools of these runs, without duplicates and in order."""
        statement = select(RunRow.tool).where(col(RunRow.id).in_(run_ids)).distinct().order_by(RunRow.tool)
        async with self._database.open_read_session() as db_session:
            return list((await db_session.exec(statement)).all())

    async def find_undelivered_run(
        self, principal_id: str, call_digest: str, trigger: TriggerKind
    ) -> UndeliveredRun | None:
        """Return the newest run of the same call of this principal whose outcome was not delivered yet, or None.

        A run from an MCP client counts from its start, since the client waits for the answer. Any other run counts once
        it has waited for a person. Runs with an idempotency key never count.
        """
        has_waited = col(RunRow.parked_at).is_not(None)
        is_awaiting_delivery = has_waited | (RunRow.trigger == "mcp") if trigger == "mcp" else has_waited
        statement = (
            select(RunRow.id, has_waited)
            .where(
                RunRow.principal_id == principal_id,
                RunRow.call == call_digest,
                col(RunRow.answered_at).is_(None),
                col(RunRow.idempotency_key).is_(None),
                is_awaiting_delivery,
            )
            .order_by(col(RunRow.started_at).desc())
            .limit(1)
        )
        async with self._database.open_read_session() as db_session:
            run_values = (await db_session.exec(statement)).first()
        return None if run_values is None else UndeliveredRun(*run_values)

    async def record_parked(self, db_session: AsyncSession, run_id: str) -> None:
        """Record in the caller's transaction that the run waits for a person."""
        await db_session.exec(
            update(RunRow)
            .where(col(RunRow.id) == run_id, col(RunRow.parked_at).is_(None))
            .values(parked_at=utc_now())
        )

    async def record_delivered(self, run_ids: Collection[str]) -> None:
        """Record that these outcomes were delivered to their callers, so that equal calls begin new runs afterwards."""
        statement = update(RunRow).where(col(RunRow.id).in_(run_ids)).values(answered_at=utc_now())
        async with self._database.open_write_session() as db_session:
            await db_session.exec(statement)

    async def find_binding(self, run_id: str, principal_id: str) -> RunBinding:
        """Return whether the principal is active and which Temporal run this run is bound to, by one query."""
        statement = (
            select(PrincipalRow.active, RunRow.id, RunRow.first_run_id)
            .join(
                RunRow,
                (col(RunRow.principal_id) == PrincipalRow.id) & (col(RunRow.id) == run_id),
                isouter=True,
            )
            .where(PrincipalRow.id == principal_id)
        )
        async with self._database.open_read_session() as db_session:
            binding_values = (await db_session.exec(statement)).one_or_none()
        if binding_values is None:
            return RunBinding(is_principal_active=False, is_registered=False, first_run_id=None)
        is_active, registered_id, first_run_id = binding_values
        return RunBinding(
            is_principal_active=is_active, is_registered=registered_id is not None, first_run_id=first_run_id
        )

    async def bind_run(self, root_run: RootRun) -> str | None:
        """Bind a run to the first Temporal run that acts for it, and return the id of the Temporal run it is bound to.

        A binding never changes. Returns None if the run is not registered.
        """
        statement = (
            update(RunRow)
            .where(col(RunRow.id) == root_run.workflow_id, col(RunRow.first_run_id).is_(None))
            .values(first_run_id=root_run.first_run_id)
        )
        async with self._database.open_write_session() as db_session:
            await db_session.exec(statement)
            run_row = await db_session.get(RunRow, root_run.workflow_id)
        return None if run_row is None else run_row.first_run_id


def _build_run(run_row: RunRow) -> Run:
    return Run(
        id=run_row.id,
        first_run_id=run_row.first_run_id,
        principal_id=run_row.principal_id,
        tool_name=run_row.tool,
        call_digest=run_row.call,
        trigger=cast("TriggerKind", run_row.trigger),
        actor_id=run_row.actor,
        retry_of=run_row.retry_of,
        started_at=run_row.started_at,
    )


def build_run_row(
    identity: Identity,
    *,
    first_run_id: str | None = None,
    idempotency_key: str | None = None,
    retry_of: str | None = None,
) -> RunRow:
    """Build the row that registers the run of this identity."""
    return RunRow(
        id=identity.run_id,
        first_run_id=first_run_id,
        idempotency_key=idempotency_key,
        retry_of=retry_of,
        principal_id=identity.principal_id,
        tool=identity.tool_name,
        call=identity.call_digest,
        trigger=identity.trigger,
        actor=identity.actor.id,
        started_at=utc_now(),
    )
