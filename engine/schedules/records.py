"""Stores schedules: the owner, the call and the times of each. It checks no permissions."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy.exc import IntegrityError
from sqlmodel import col, delete, func, select

from engine.audit.trail import AuditEvent
from engine.db.database import now
from engine.db.tables import ScheduleRow
from engine.identity.model import Principal, call_digest
from engine.schedules.timing import Timing
from engine.services import Services

Kind = Literal[
    "schedule.changed",
    "schedule.paused",
    "schedule.resumed",
    "schedule.offered",
    "schedule.transferred",
]


@dataclass(frozen=True, slots=True)
class Content:
    """What a schedule does: its name, the tool that it calls, the arguments and the timing."""

    name: str
    tool: str
    arguments: Mapping[str, Any]
    timing: Timing

    @property
    def call(self) -> str:
        """The digest that identifies the call."""
        return call_digest(self.tool, self.arguments)

    def columns(self) -> dict[str, Any]:
        """Return the values of its columns by name."""
        return {
            "name": self.name,
            "tool": self.tool,
            "arguments": dict(self.arguments),
            "timing": self.timing.model_dump(mode="json"),
        }


@dataclass(frozen=True, slots=True)
class Schedule(Content):
    """A stored schedule. The principal in `offered_to` may accept it and then owns it."""

    id: str
    principal_id: str
    paused_because: str | None
    offered_to: str | None
    version: int
    created_at: datetime
    updated_at: datetime


class ScheduleRecords:
    """Owner of the table of schedules. Each change is recorded in the audit trail in the same transaction."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._trail = services.trail

    async def get(self, schedule_id: str) -> Schedule | None:
        """Return the schedule with this id, whoever owns it, or None."""
        async with self._database.reading() as session:
            row = await session.get(ScheduleRow, schedule_id)
        return None if row is None else _schedule(row)

    async def of(
        self,
        principal_id: str,
        *,
        limit: int,
        after: tuple[datetime, str] | None = None,
        tools: Collection[str] | None = None,
    ) -> list[Schedule]:
        """Return the schedules that a principal owns or is offered, newest first; `tool_names` limits the tools."""
        query = (
            select(ScheduleRow)
            .where((ScheduleRow.principal_id == principal_id) | (ScheduleRow.offered_to == principal_id))
            .order_by(col(ScheduleRow.created_at).desc(), col(ScheduleRow.id).desc())
            .limit(limit)
        )
        if tools is not None:
            query = query.where(col(ScheduleRow.tool).in_(tools))
        if after is not None:
            created_at, schedule_id = after
            query = query.where(
                (col(ScheduleRow.created_at) < created_at)
                | ((col(ScheduleRow.created_at) == created_at) & (col(ScheduleRow.id) < schedule_id))
            )
        async with self._database.reading() as session:
            return [_schedule(row) for row in (await session.exec(query)).all()]

    async def count(self, principal_id: str, *, but_for: str) -> int:
        """Count the schedules that a principal owns, except one."""
        query = (
            select(func.count())
            .select_from(ScheduleRow)
            .where(ScheduleRow.principal_id == principal_id, ScheduleRow.id != but_for)
        )
        async with self._database.reading() as session:
            return (await session.exec(query)).one()

    async def add(self, schedule_id: str, owner: Principal, content: Content) -> Schedule | None:
        """Store a new schedule; None if the id exists already."""
        row = ScheduleRow(
            id=schedule_id,
            principal_id=owner.id,
            created_at=now(),
            updated_at=now(),
            **content.columns(),
        )
        event = AuditEvent(
            kind="schedule.created",
            principal=owner,
            object_id=schedule_id,
            message=f"It calls {content.tool}.",
        )
        try:
            await self._trail.append(event, row)
        except IntegrityError:
            return None
        return _schedule(row)

    async def alter(
        self,
        schedule_id: str,
        kind: Kind,
        by: Principal | None,
        changes: Mapping[str, Any],
        version: int | None = None,
        message: str | None = None,
    ) -> Schedule | None:
        """Change some columns and record an audit event of this kind; None if it is gone or at another version."""
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            row = await session.get(ScheduleRow, schedule_id, with_for_update=True)
            if row is None or version not in {None, row.version}:
                return None
            for name, value in changes.items():
                setattr(row, name, value)
            row.version += 1
            row.updated_at = now()
            session.add(row)
            await record(session, AuditEvent(kind=kind, principal=by, object_id=schedule_id, message=message))
        return _schedule(row)

    async def remove(self, schedule: Schedule, by: Principal) -> bool:
        """Delete the schedule; False if it is gone or at another version."""
        record = await self._trail.recorder()
        this = (col(ScheduleRow.id) == schedule.id) & (col(ScheduleRow.version) == schedule.version)
        async with self._database.writing() as session:
            was_there = (await session.exec(delete(ScheduleRow).where(this))).rowcount > 0
            if was_there:
                event = AuditEvent(kind="schedule.deleted", principal=by, object_id=schedule.id)
                await record(session, event)
        return was_there

    async def next_trigger(self, schedule_id: str) -> datetime | None:
        """Reserve the second of the next manual firing: now, or one second after the last one. None if it is gone.

        Temporal names firings after their second, and firings of the same name count as one here.
        """
        async with self._database.writing() as session:
            row = await session.get(ScheduleRow, schedule_id, with_for_update=True)
            if row is None:
                return None
            earliest = datetime.min.replace(tzinfo=UTC) if row.triggered_at is None else row.triggered_at
            row.triggered_at = max(now().replace(microsecond=0), earliest + timedelta(seconds=1))
            session.add(row)
        return row.triggered_at

    async def stop_all_of(self, principal: Principal, because: str) -> list[str]:
        """Pause all schedules of a principal and return their ids; the caller has to pause them in Temporal too."""
        query = select(ScheduleRow.id).where(
            ScheduleRow.principal_id == principal.id, col(ScheduleRow.paused_because).is_(None)
        )
        async with self._database.reading() as session:
            ids = list((await session.exec(query)).all())
        for schedule_id in ids:
            await self.alter(
                schedule_id, "schedule.paused", principal, {"paused_because": because}, message=because
            )
        return ids


def _schedule(row: ScheduleRow) -> Schedule:
    return Schedule(
        id=row.id,
        principal_id=row.principal_id,
        name=row.name,
        tool=row.tool,
        arguments=row.arguments,
        timing=Timing.model_validate(row.timing),
        paused_because=row.paused_because,
        offered_to=row.offered_to,
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
