"""Stores schedules: the owner, the call and the times of each. It checks no permissions."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy.exc import IntegrityError
from sqlmodel import col, delete, func, select

from engine.audit.trail import AuditEvent
from engine.db.database import utc_now
from engine.db.tables import ScheduleRow
from engine.identity.model import Principal, digest_call
from engine.schedules.timing import Timing
from engine.services import Services

ScheduleEventKind = Literal[
    "schedule.changed",
    "schedule.paused",
    "schedule.resumed",
    "schedule.offered",
    "schedule.transferred",
]


@dataclass(frozen=True, slots=True)
class ScheduleContent:
    """What a schedule does: its name, the tool that it calls, the arguments and the timing."""

    name: str
    tool_name: str
    arguments: Mapping[str, Any]
    timing: Timing

    @property
    def call_digest(self) -> str:
        """The digest that identifies the call."""
        return digest_call(self.tool_name, self.arguments)

    def to_columns(self) -> dict[str, Any]:
        """Return the values of its columns by name."""
        return {
            "name": self.name,
            "tool": self.tool_name,
            "arguments": dict(self.arguments),
            "timing": self.timing.model_dump(mode="json"),
        }


@dataclass(frozen=True, slots=True)
class Schedule(ScheduleContent):
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

    async def find_schedule(self, schedule_id: str) -> Schedule | None:
        """Return the schedule with this id, whoever owns it, or None."""
        async with self._database.open_read_session() as db_session:
            schedule_row = await db_session.get(ScheduleRow, schedule_id)
        return None if schedule_row is None else _to_schedule(schedule_row)

    async def list_schedules(
        self,
        principal_id: str,
        *,
        limit: int,
        page_cursor: tuple[datetime, str] | None = None,
        tool_names: Collection[str] | None = None,
    ) -> list[Schedule]:
        """Return the schedules that a principal owns or is offered, newest first; `tool_names` limits the tools."""
        statement = (
            select(ScheduleRow)
            .where((ScheduleRow.principal_id == principal_id) | (ScheduleRow.offered_to == principal_id))
            .order_by(col(ScheduleRow.created_at).desc(), col(ScheduleRow.id).desc())
            .limit(limit)
        )
        if tool_names is not None:
            statement = statement.where(col(ScheduleRow.tool).in_(tool_names))
        if page_cursor is not None:
            created_at, schedule_id = page_cursor
            statement = statement.where(
                (col(ScheduleRow.created_at) < created_at)
                | ((col(ScheduleRow.created_at) == created_at) & (col(ScheduleRow.id) < schedule_id))
            )
        async with self._database.open_read_session() as db_session:
            return [_to_schedule(schedule_row) for schedule_row in (await db_session.exec(statement)).all()]

    async def count_schedules(self, principal_id: str, *, excluded_id: str) -> int:
        """Count the schedules that a principal owns, except one."""
        statement = (
            select(func.count())
            .select_from(ScheduleRow)
            .where(ScheduleRow.principal_id == principal_id, ScheduleRow.id != excluded_id)
        )
        async with self._database.open_read_session() as db_session:
            return (await db_session.exec(statement)).one()

    async def add_schedule(
        self, schedule_id: str, owner: Principal, schedule_content: ScheduleContent
    ) -> Schedule | None:
        """Store a new schedule; None if the id exists already."""
        schedule_row = ScheduleRow(
            id=schedule_id,
            principal_id=owner.id,
            created_at=utc_now(),
            updated_at=utc_now(),
            **schedule_content.to_columns(),
        )
        audit_event = AuditEvent(
            kind="schedule.created",
            principal=owner,
            object_id=schedule_id,
            message=f"It calls {schedule_content.tool_name}.",
        )
        try:
            await self._trail.append_event(audit_event, schedule_row)
        except IntegrityError:
            return None
        return _to_schedule(schedule_row)

    async def change_schedule(
        self,
        schedule_id: str,
        event_kind: ScheduleEventKind,
        acting_principal: Principal | None,
        column_changes: Mapping[str, Any],
        version: int | None = None,
        message: str | None = None,
    ) -> Schedule | None:
        """Change some columns and record an audit event of this kind; None if it is gone or at another version."""
        async with self._trail.open_transaction() as transaction:
            schedule_row = await transaction.db_session.get(ScheduleRow, schedule_id, with_for_update=True)
            if schedule_row is None or version not in {None, schedule_row.version}:
                return None
            for column_name, column_value in column_changes.items():
                setattr(schedule_row, column_name, column_value)
            schedule_row.version += 1
            schedule_row.updated_at = utc_now()
            transaction.db_session.add(schedule_row)
            transaction.record(
                AuditEvent(
                    kind=event_kind, principal=acting_principal, object_id=schedule_id, message=message
                ),
            )
        return _to_schedule(schedule_row)

    async def delete_schedule(self, schedule: Schedule, acting_principal: Principal) -> bool:
        """Delete the schedule; False if it is gone or at another version."""
        version_condition = (col(ScheduleRow.id) == schedule.id) & (
            col(ScheduleRow.version) == schedule.version
        )
        async with self._trail.open_transaction() as transaction:
            was_deleted = (
                await transaction.db_session.exec(delete(ScheduleRow).where(version_condition))
            ).rowcount > 0
            if was_deleted:
                audit_event = AuditEvent(
                    kind="schedule.deleted", principal=acting_principal, object_id=schedule.id
                )
                transaction.record(audit_event)
        return was_deleted

    async def reserve_trigger_time(self, schedule_id: str) -> datetime | None:
        """Reserve the second of the next manual firing: now, or one second after the last one. None if it is gone.

        Temporal names firings after their second, and firings of the same name count as one here.
        """
        async with self._database.open_write_session() as db_session:
            schedule_row = await db_session.get(ScheduleRow, schedule_id, with_for_update=True)
            if schedule_row is None:
                return None
            last_trigger_time = (
                datetime.min.replace(tzinfo=UTC)
                if schedule_row.triggered_at is None
                else schedule_row.triggered_at
            )
            schedule_row.triggered_at = max(
                utc_now().replace(microsecond=0), last_trigger_time + timedelta(seconds=1)
            )
            db_session.add(schedule_row)
        return schedule_row.triggered_at

    async def pause_all_schedules(self, principal: Principal, pause_reason: str) -> list[str]:
        """Pause all schedules of a principal and return their ids; the caller has to pause them in Temporal too."""
        statement = select(ScheduleRow.id).where(
            ScheduleRow.principal_id == principal.id, col(ScheduleRow.paused_because).is_(None)
        )
        async with self._database.open_read_session() as db_session:
            schedule_ids = list((await db_session.exec(statement)).all())
        for schedule_id in schedule_ids:
            await self.change_schedule(
                schedule_id,
                "schedule.paused",
                principal,
                {"paused_because": pause_reason},
                message=pause_reason,
            )
        return schedule_ids


def _to_schedule(schedule_row: ScheduleRow) -> Schedule:
    return Schedule(
        id=schedule_row.id,
        principal_id=schedule_row.principal_id,
        name=schedule_row.name,
        tool_name=schedule_row.tool,
        arguments=schedule_row.arguments,
        timing=Timing.model_validate(schedule_row.timing),
        paused_because=schedule_row.paused_because,
        offered_to=schedule_row.offered_to,
        version=schedule_row.version,
        created_at=schedule_row.created_at,
        updated_at=schedule_row.updated_at,
    )
