"""Views of schedules for people: the stored record with the state that Temporal has now. It changes neither."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from engine.identity.principals import Principals
from engine.schedules.schedule_records import Schedule
from engine.schedules.schedules import Schedules
from engine.schedules.temporal_schedules import UNKNOWN_TO_TEMPORAL
from engine.schedules.timing import Timing


class Somebody(BaseModel):
    """A principal."""

    id: str
    name: str


class FiringShown(BaseModel):
    """One time that a schedule fired."""

    scheduled_at: datetime
    started_at: datetime
    run_id: str


class ScheduleShown(BaseModel):
    """A schedule, and what Temporal says of it now."""

    id: str
    name: str
    tool: str
    arguments: dict[str, Any]
    timing: Timing
    owner: Somebody = Field(description="Whose grants its firings act with.")
    offered_to: Somebody | None = Field(description="Who owns it once they accept.")
    paused: bool
    paused_because: str | None
    next_firings: list[datetime]
    recent_firings: list[FiringShown] = Field(description="The last ten at most, newest first.")
    skipped: int = Field(description="Times that passed without a firing, as an earlier one was not over.")
    missed: int = Field(description="Times that passed while Temporal was down, and are too long ago.")
    created_at: datetime
    updated_at: datetime


class ScheduleViews:
    """Builds the views of schedules."""

    def __init__(self, principals: Principals, schedules: Schedules) -> None:
        self._principals = principals
        self._schedules = schedules

    async def build_views(self, schedules: Sequence[Schedule]) -> list[ScheduleShown]:
        """Return the view of each schedule. Temporal is asked for all of them at once."""
        return list(await asyncio.gather(*(self._build_view(schedule) for schedule in schedules)))

    async def _build_view(self, schedule: Schedule) -> ScheduleShown:
        schedule_status = await self._schedules.read_status(schedule)
        temporal_note = (
            UNKNOWN_TO_TEMPORAL
            if schedule_status is None
            else schedule_status.pause_note
            if schedule_status.is_paused
            else None
        )
        pause_reason = schedule.paused_because or temporal_note
        return ScheduleShown(
            id=schedule.id,
            name=schedule.name,
            tool=schedule.tool_name,
            arguments=dict(schedule.arguments),
            timing=schedule.timing,
            owner=await self._describe_principal(schedule.principal_id),
            offered_to=None
            if schedule.offered_to is None
            else await self._describe_principal(schedule.offered_to),
            paused=schedule.paused_because is not None
            or schedule_status is None
            or schedule_status.is_paused,
            paused_because=pause_reason,
            next_firings=[] if schedule_status is None or pause_reason else list(schedule_status.next_times),
            recent_firings=[]
            if schedule_status is None
            else [
                FiringShown(
                    scheduled_at=firing.scheduled_at, started_at=firing.started_at, run_id=firing.run_id
                )
                for firing in schedule_status.recent_firings
            ],
            skipped=0 if schedule_status is None else schedule_status.skipped_count,
            missed=0 if schedule_status is None else schedule_status.missed_count,
            created_at=schedule.created_at,
            updated_at=schedule.updated_at,
        )

    async def _describe_principal(self, principal_id: str) -> Somebody:
        principal = await self._principals.find_principal(principal_id)
        return Somebody(id=principal_id, name=principal_id if principal is None else principal.name)
