"""Creates and changes schedules: stored here first, then in Temporal. It mints no identity."""

import json
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from temporalio.client import Client

from engine.db.database import now
from engine.errors import (
    ArgumentsInvalid,
    KeyReused,
    NotAllowed,
    SchedulePaused,
    ScheduleUnknown,
    TemporalUnreachable,
    TimingInvalid,
)
from engine.identity.model import Principal
from engine.registry import Tool
from engine.schedules.clock import Alarm, Clock, Dial
from engine.schedules.records import Content, Kind, Schedule, ScheduleRecords
from engine.schedules.timing import Period, Timing
from engine.services import Services

MOST_SCHEDULES: Final = 200
"""The number of schedules that one principal may own."""

_KEYS: Final = uuid.UUID("5b1c7c7e-4d0a-4f0e-9d8e-0a3c1f6f2d57")


@dataclass(frozen=True, slots=True)
class Plan:
    """The requested content of a schedule, with its tool resolved."""

    name: str
    tool: Tool
    arguments: Mapping[str, Any]
    timing: Timing

    @property
    def content(self) -> Content:
        """The content that is stored."""
        return Content(self.name, self.tool.name, self.arguments, self.timing)


class Schedules:
    """Schedules in the database and in Temporal. All permission checks on schedules happen here."""

    def __init__(self, services: Services, temporal: Client) -> None:
        self._services = services
        self._clock = Clock(temporal, services.settings.temporal.task_queue)
        self.records = ScheduleRecords(services)

    async def seen(self, schedule_id: str, by: Principal) -> Schedule:
        """Return a schedule for its owner, its offeree or an administrator; raises ScheduleUnknown."""
        schedule = await self.records.get(schedule_id)
        if schedule is not None and (
            by.id in {schedule.principal_id, schedule.offered_to}
            or await self._services.roles.administers(by)
        ):
            return schedule
        raise _unknown(schedule_id)

    async def read(self, schedule: Schedule) -> Dial | None:
        """Return the state of the schedule in Temporal, or None if Temporal does not know it."""
        return await self._clock.read(schedule.id)

    async def create(self, plan: Plan, owner: Principal, *, key: str | None = None) -> Schedule:
        """Create a schedule of this owner, or return the one that they created with this idempotency key before.

        Raises NotAllowed, ArgumentsInvalid, TimingInvalid, KeyReused or TemporalUnreachable.
        """
        await self._check(plan, owner)
        schedule_id = _id(owner, key)
        if await self.records.count(owner.id, but_for=schedule_id) >= MOST_SCHEDULES:
            raise ArgumentsInvalid(f"{MOST_SCHEDULES} schedules are the most. Delete one first.")
        made = await self.records.add(schedule_id, owner, plan.content)
        schedule = made or await self._made_before(schedule_id, plan)
        try:
            await self._tell(schedule, plan.tool)
        except TimingInvalid:
            if made is not None:
                await self.records.remove(made, owner)
            raise
        return schedule

    async def change(self, schedule_id: str, plan: Plan, by: Principal, version: int) -> Schedule | None:
        """Change what the schedule does; None if it is not at this version any more."""
        before = await self._owned(schedule_id, by)
        if before.version != version:
            return None
        await self._check(plan, by)
        message = f"It calls {plan.tool.name}."
        after = await self.records.alter(
            schedule_id, "schedule.changed", by, plan.content.columns(), version, message
        )
        if after is None:
            return None
        try:
            await self._tell(after, plan.tool)
        except TimingInvalid:
            earlier, message = before.columns(), "Changed back, as Temporal does not take it."
            await self.records.alter(schedule_id, "schedule.changed", by, earlier, message=message)
            raise
        return after

    async def pause(self, schedule_id: str, by: Principal, because: str | None = None) -> Schedule:
        """Pause the schedule until somebody resumes it; permitted to its owner and to administrators."""
        schedule = await self._steered(schedule_id, by)
        return await self.stop(schedule, by, because or f"Paused by {by.name}.")

    async def stop(self, schedule: Schedule, by: Principal | None, because: str) -> Schedule:
        """Record the pause without a permission check, and pause in Temporal with the reason as its note."""
        stopped = await self.records.alter(
            schedule.id, "schedule.paused", by, {"paused_because": because}, message=because
        )
        await self._clock.pause(schedule.id, because)
        return stopped or schedule

    async def hush(self, schedule: Schedule, because: str) -> None:
        """Pause the schedule in Temporal only, as its record is paused already."""
        await self._clock.pause(schedule.id, because)

    async def resume(self, schedule_id: str, by: Principal, tool: Tool) -> Schedule:
        """Resume the schedule, and create it in Temporal again if it is missing there."""
        schedule = await self._owned(schedule_id, by)
        await self._services.policy.require(by, schedule.tool)
        if schedule.paused_because is not None:
            changes = {"paused_because": None}
            resumed = await self.records.alter(schedule_id, "schedule.resumed", by, changes, schedule.version)
            if resumed is None:
                # It was changed meanwhile, and its owner may be another one now.
                return await self.resume(schedule_id, by, tool)
            schedule = resumed
        await self._tell(schedule, tool)
        await self._clock.resume(schedule_id)
        return schedule

    async def trigger(self, schedule_id: str, by: Principal) -> None:
        """Start a firing now; raises SchedulePaused."""
        await self._going(schedule_id, by)
        moment = await self.records.next_trigger(schedule_id)
        if moment is None:
            raise _unknown(schedule_id)
        await self._clock.trigger(schedule_id, moment)

    async def backfill(self, schedule_id: str, by: Principal, period: Period) -> None:
        """Start the firings of a past period; raises SchedulePaused or TimingInvalid."""
        problem = period.problem(now())
        if problem is not None:
            raise TimingInvalid(problem)
        await self._clock.backfill((await self._going(schedule_id, by)).id, period)

    async def offer(self, schedule_id: str, by: Principal, to: str | None) -> Schedule:
        """Offer the schedule to the one other person with this id, subject or name; None withdraws the offer."""
        schedule = await self._steered(schedule_id, by)
        kind: Kind = "schedule.changed"
        changes: dict[str, str | None] = {"offered_to": None}
        message = "Offered to nobody any more."
        if to is not None:
            somebody = await self._another(to, schedule.principal_id)
            kind = "schedule.offered"
            changes, message = {"offered_to": somebody.id}, f"To {somebody.name} ({somebody.id})."
        offered = await self.records.alter(schedule_id, kind, by, changes, schedule.version, message)
        # It was changed meanwhile, and its owner may be another one now.
        return offered or await self.offer(schedule_id, by, to)

    async def accept(self, schedule_id: str, by: Principal, version: int) -> Schedule | None:
        """Accept an offered schedule and become its owner; None if it is not at this version any more."""
        schedule = await self._offered(schedule_id, by)
        if schedule.version != version:
            return None
        await self._services.policy.require(by, schedule.tool)
        changes = {"principal_id": by.id, "offered_to": None}
        message = f"From {schedule.principal_id}."
        taken = await self.records.alter(schedule_id, "schedule.transferred", by, changes, version, message)
        if taken is not None:
            # Manual triggers of the previous owner must not fire in the name of the new one.
            await self._clock.begin_anew(schedule_id)
        return taken

    async def decline(self, schedule_id: str, by: Principal) -> None:
        """Decline an offered schedule; it stays with its owner."""
        schedule = await self._offered(schedule_id, by)
        message = f"Declined by {by.name}."
        changes = {"offered_to": None}
        declined = await self.records.alter(
            schedule.id, "schedule.changed", by, changes, schedule.version, message
        )
        if declined is None:
            await self.decline(schedule_id, by)

    async def delete(self, schedule_id: str, by: Principal, version: int) -> bool:
        """Delete the schedule, for its owner or an administrator; False if it is not at this version any more."""
        schedule = await self._steered(schedule_id, by)
        if schedule.version != version:
            return False
        await self._clock.forget(schedule_id)
        return await self.records.remove(schedule, by)

    async def _made_before(self, schedule_id: str, plan: Plan) -> Schedule:
        """Return the schedule that this idempotency key created; raises KeyReused if it differs from the plan."""
        known = await self.records.get(schedule_id)
        if known is None or (known.call, known.timing, known.name) != (
            plan.content.call,
            plan.timing,
            plan.name,
        ):
            raise KeyReused("This idempotency key made another schedule. Use a new key for a new one.")
        return known

    async def _check(self, plan: Plan, owner: Principal) -> None:
        plan.tool.arguments(plan.arguments)
        try:
            json.dumps(plan.arguments, allow_nan=False)
        except ValueError as error:
            raise ArgumentsInvalid("A schedule's arguments have to be JSON, which knows no NaN.") from error
        await self._services.policy.require(owner, plan.tool.name)

    async def _tell(self, schedule: Schedule, tool: Tool) -> None:
        """Write the stored schedule to Temporal."""
        alarm = Alarm(
            id=schedule.id,
            tool=schedule.tool,
            given=() if tool.input_type is None else (dict(schedule.arguments),),
            timing=schedule.timing,
            title=f"{tool.declaration.title}, by schedule",
            paused=schedule.paused_because,
        )
        try:
            await self._clock.put(alarm)
        except TemporalUnreachable as error:
            raise TemporalUnreachable(
                "The schedule is on record, but the workflow engine does not answer. "
                "Resume the schedule in a moment."
            ) from error

    async def _owned(self, schedule_id: str, by: Principal) -> Schedule:
        schedule = await self.records.get(schedule_id)
        if schedule is None or schedule.principal_id != by.id:
            raise _unknown(schedule_id)
        return schedule

    async def _steered(self, schedule_id: str, by: Principal) -> Schedule:
        schedule = await self.records.get(schedule_id)
        if schedule is not None and (
            schedule.principal_id == by.id or await self._services.roles.administers(by)
        ):
            return schedule
        raise _unknown(schedule_id)

    async def _going(self, schedule_id: str, by: Principal) -> Schedule:
        schedule = await self._owned(schedule_id, by)
        if schedule.paused_because is not None:
            raise SchedulePaused(f"Resume the schedule first. It is paused: {schedule.paused_because}")
        await self._services.policy.require(by, schedule.tool)
        return schedule

    async def _another(self, name: str, owner_id: str) -> Principal:
        others = [
            one
            for one in await self._services.principals.named(name)
            if one.kind == "person" and one.active and one.id != owner_id
        ]
        if len(others) != 1:
            raise NotAllowed(
                f"A schedule can be offered to one other person who has signed in here, and {len(others)} are known "
                f"as '{name}'. Give their id."
            )
        return others[0]

    async def _offered(self, schedule_id: str, by: Principal) -> Schedule:
        schedule = await self.records.get(schedule_id)
        if schedule is None or schedule.offered_to != by.id:
            raise _unknown(schedule_id)
        return schedule


def _unknown(schedule_id: str) -> ScheduleUnknown:
    return ScheduleUnknown(f"You have no schedule '{schedule_id}'.")


def _id(owner: Principal, key: str | None) -> str:
    part = secrets.token_hex(16) if key is None else uuid.uuid5(_KEYS, f"{owner.id}:{key}").hex
    return f"schedule-{part}"
