"""Creates and changes schedules: stored here first, then in Temporal. It mints no identity."""

import json
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from temporalio.client import Client

from engine.db.database import utc_now
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
from engine.schedules.schedule_records import Schedule, ScheduleContent, ScheduleEventKind, ScheduleRecords
from engine.schedules.temporal_schedules import ScheduleSpec, ScheduleStatus, TemporalSchedules
from engine.schedules.timing import Period, Timing
from engine.services import Services
from engine.tools.registry import CompositeTool
from engine.wire import SCHEDULE_NAMESPACE

MAX_SCHEDULES: Final = 200
"""The number of schedules that one principal may own."""


@dataclass(frozen=True, slots=True)
class ScheduleDraft:
    """The requested content of a schedule, with its tool resolved."""

    name: str
    tool: CompositeTool
    arguments: Mapping[str, Any]
    timing: Timing

    @property
    def content(self) -> ScheduleContent:
        """The content that is stored."""
        return ScheduleContent(self.name, self.tool.name, self.arguments, self.timing)


class Schedules:
    """Schedules in the database and in Temporal. All permission checks on schedules happen here."""

    def __init__(self, services: Services, temporal_client: Client) -> None:
        self._services = services
        self._temporal_schedules = TemporalSchedules(temporal_client, services.settings.temporal.task_queue)
        self.schedule_records = ScheduleRecords(services)

    async def find_visible_schedule(self, schedule_id: str, acting_principal: Principal) -> Schedule:
        """Return a schedule for its owner, its offeree or an administrator; raises ScheduleUnknown."""
        schedule = await self.schedule_records.find_schedule(schedule_id)
        if schedule is not None and (
            acting_principal.id in {schedule.principal_id, schedule.offered_to}
            or await self._services.roles.is_administrator(acting_principal)
        ):
            return schedule
        raise _build_unknown_error(schedule_id)

    async def read_status(self, schedule: Schedule) -> ScheduleStatus | None:
        """Return the state of the schedule in Temporal, or None if Temporal does not know it."""
        return await self._temporal_schedules.describe_schedule(schedule.id)

    async def create_schedule(
        self, schedule_draft: ScheduleDraft, owner: Principal, *, idempotency_key: str | None = None
    ) -> Schedule:
        """Create a schedule of this owner, or return the one that they created with this idempotency key before.

        Raises NotAllowed, ArgumentsInvalid, TimingInvalid, KeyReused or TemporalUnreachable.
        """
        await self._check_draft(schedule_draft, owner)
        schedule_id = _make_schedule_id(owner, idempotency_key)
        if await self.schedule_records.count_schedules(owner.id, excluded_id=schedule_id) >= MAX_SCHEDULES:
            raise ArgumentsInvalid(f"{MAX_SCHEDULES} schedules are the most. Delete one first.")
        created_schedule = await self.schedule_records.add_schedule(
            schedule_id, owner, schedule_draft.content
        )
        schedule = created_schedule or await self._find_created_schedule(schedule_id, schedule_draft)
        try:
            await self._write_to_temporal(schedule, schedule_draft.tool)
        except TimingInvalid:
            if created_schedule is not None:
                await self.schedule_records.delete_schedule(created_schedule, owner)
            raise
        return schedule

    async def change_schedule(
        self, schedule_id: str, schedule_draft: ScheduleDraft, acting_principal: Principal, version: int
    ) -> Schedule | None:
        """Change what the schedule does; None if it is not at this version any more."""
        previous_schedule = await self._find_owned_schedule(schedule_id, acting_principal)
        if previous_schedule.version != version:
            return None
        await self._check_draft(schedule_draft, acting_principal)
        message = f"It calls {schedule_draft.tool.name}."
        changed_schedule = await self.schedule_records.change_schedule(
            schedule_id,
            "schedule.changed",
            acting_principal,
            schedule_draft.content.to_columns(),
            version,
            message,
        )
        if changed_schedule is None:
            return None
        try:
            await self._write_to_temporal(changed_schedule, schedule_draft.tool)
        except TimingInvalid:
            previous_columns, message = (
                previous_schedule.to_columns(),
                "Changed back, as Temporal does not take it.",
            )
            await self.schedule_records.change_schedule(
                schedule_id, "schedule.changed", acting_principal, previous_columns, message=message
            )
            raise
        return changed_schedule

    async def pause_schedule(
        self, schedule_id: str, acting_principal: Principal, pause_reason: str | None = None
    ) -> Schedule:
        """Pause the schedule until somebody resumes it; permitted to its owner and to administrators."""
        schedule = await self._find_managed_schedule(schedule_id, acting_principal)
        return await self.record_pause(
            schedule, acting_principal, pause_reason or f"Paused by {acting_principal.name}."
        )

    async def record_pause(
        self, schedule: Schedule, acting_principal: Principal | None, pause_reason: str
    ) -> Schedule:
        """Record the pause without a permission check, and pause in Temporal with the reason as its note."""
        paused_schedule = await self.schedule_records.change_schedule(
            schedule.id,
            "schedule.paused",
            acting_principal,
            {"paused_because": pause_reason},
            message=pause_reason,
        )
        await self._temporal_schedules.pause_schedule(schedule.id, pause_reason)
        return paused_schedule or schedule

    async def pause_in_temporal(self, schedule: Schedule, pause_reason: str) -> None:
        """Pause the schedule in Temporal only, as its record is paused already."""
        await self._temporal_schedules.pause_schedule(schedule.id, pause_reason)

    async def resume_schedule(
        self, schedule_id: str, acting_principal: Principal, tool: CompositeTool
    ) -> Schedule:
        """Resume the schedule, and create it in Temporal again if it is missing there."""
        schedule = await self._find_owned_schedule(schedule_id, acting_principal)
        await self._services.policy.require_permission(acting_principal, schedule.tool_name)
        if schedule.paused_because is not None:
            column_changes = {"paused_because": None}
            resumed_schedule = await self.schedule_records.change_schedule(
                schedule_id, "schedule.resumed", acting_principal, column_changes, schedule.version
            )
            if resumed_schedule is None:
                # It was changed meanwhile, and its owner may be another one now.
                return await self.resume_schedule(schedule_id, acting_principal, tool)
            schedule = resumed_schedule
        await self._write_to_temporal(schedule, tool)
        await self._temporal_schedules.resume_schedule(schedule_id)
        return schedule

    async def trigger_schedule(self, schedule_id: str, acting_principal: Principal) -> None:
        """Start a firing now; raises SchedulePaused."""
        await self._find_active_schedule(schedule_id, acting_principal)
        triggered_at = await self.schedule_records.reserve_trigger_time(schedule_id)
        if triggered_at is None:
            raise _build_unknown_error(schedule_id)
        await self._temporal_schedules.trigger_schedule(schedule_id, triggered_at)

    async def backfill_schedule(
        self, schedule_id: str, acting_principal: Principal, backfill_period: Period
    ) -> None:
        """Start the firings of a past period; raises SchedulePaused or TimingInvalid."""
        problem = backfill_period.find_problem(utc_now())
        if problem is not None:
            raise TimingInvalid(problem)
        await self._temporal_schedules.backfill_schedule(
            (await self._find_active_schedule(schedule_id, acting_principal)).id, backfill_period
        )

    async def offer_schedule(
        self, schedule_id: str, acting_principal: Principal, recipient_name: str | None
    ) -> Schedule:
        """Offer the schedule to the one other person with this id, subject or name; None withdraws the offer."""
        schedule = await self._find_managed_schedule(schedule_id, acting_principal)
        event_kind: ScheduleEventKind = "schedule.changed"
        column_changes: dict[str, str | None] = {"offered_to": None}
        message = "Offered to nobody any more."
        if recipient_name is not None:
            recipient = await self._find_recipient(recipient_name, schedule.principal_id)
            event_kind = "schedule.offered"
            column_changes, message = {"offered_to": recipient.id}, f"To {recipient.name} ({recipient.id})."
        offered_schedule = await self.schedule_records.change_schedule(
            schedule_id, event_kind, acting_principal, column_changes, schedule.version, message
        )
        # It was changed meanwhile, and its owner may be another one now.
        return offered_schedule or await self.offer_schedule(schedule_id, acting_principal, recipient_name)

    async def accept_schedule(
        self, schedule_id: str, acting_principal: Principal, version: int
    ) -> Schedule | None:
        """Accept an offered schedule and become its owner; None if it is not at this version any more."""
        schedule = await self._find_offered_schedule(schedule_id, acting_principal)
        if schedule.version != version:
            return None
        await self._services.policy.require_permission(acting_principal, schedule.tool_name)
        column_changes = {"principal_id": acting_principal.id, "offered_to": None}
        message = f"From {schedule.principal_id}."
        accepted_schedule = await self.schedule_records.change_schedule(
            schedule_id, "schedule.transferred", acting_principal, column_changes, version, message
        )
        if accepted_schedule is not None:
            # Manual triggers of the previous owner must not fire in the name of the new one.
            await self._temporal_schedules.discard_triggers(schedule_id)
        return accepted_schedule

    async def decline_schedule(self, schedule_id: str, acting_principal: Principal) -> None:
        """Decline an offered schedule; it stays with its owner."""
        schedule = await self._find_offered_schedule(schedule_id, acting_principal)
        message = f"Declined by {acting_principal.name}."
        column_changes = {"offered_to": None}
        declined_schedule = await self.schedule_records.change_schedule(
            schedule.id, "schedule.changed", acting_principal, column_changes, schedule.version, message
        )
        if declined_schedule is None:
            await self.decline_schedule(schedule_id, acting_principal)

    async def delete_schedule(self, schedule_id: str, acting_principal: Principal, version: int) -> bool:
        """Delete the schedule, for its owner or an administrator; False if it is not at this version any more."""
        schedule = await self._find_managed_schedule(schedule_id, acting_principal)
        if schedule.version != version:
            return False
        await self._temporal_schedules.delete_schedule(schedule_id)
        return await self.schedule_records.delete_schedule(schedule, acting_principal)

    async def _find_created_schedule(self, schedule_id: str, schedule_draft: ScheduleDraft) -> Schedule:
        """Return the schedule that this idempotency key created; raises KeyReused if it differs from the plan."""
        created_schedule = await self.schedule_records.find_schedule(schedule_id)
        if created_schedule is None or (
            created_schedule.call_digest,
            created_schedule.timing,
            created_schedule.name,
        ) != (
            schedule_draft.content.call_digest,
            schedule_draft.timing,
            schedule_draft.name,
        ):
            raise KeyReused("This idempotency key made another schedule. Use a new key for a new one.")
        return created_schedule

    async def _check_draft(self, schedule_draft: ScheduleDraft, owner: Principal) -> None:
        schedule_draft.tool.validate_arguments(schedule_draft.arguments)
        try:
            json.dumps(schedule_draft.arguments, allow_nan=False)
        except ValueError as error:
            raise ArgumentsInvalid("A schedule's arguments have to be JSON, which knows no NaN.") from error
        await self._services.policy.require_permission(owner, schedule_draft.tool.name)

    async def _write_to_temporal(self, schedule: Schedule, tool: CompositeTool) -> None:
        """Write the stored schedule to Temporal."""
        schedule_spec = ScheduleSpec(
            id=schedule.id,
            tool_name=schedule.tool_name,
            workflow_arguments=() if tool.input_type is None else (dict(schedule.arguments),),
            timing=schedule.timing,
            title=f"{tool.declaration.title}, by schedule",
            pause_reason=schedule.paused_because,
        )
        try:
            await self._temporal_schedules.write_schedule(schedule_spec)
        except TemporalUnreachable as error:
            raise TemporalUnreachable(
                "The schedule is on record, but the workflow engine does not answer. "
                "Resume the schedule in a moment."
            ) from error

    async def _find_owned_schedule(self, schedule_id: str, acting_principal: Principal) -> Schedule:
        schedule = await self.schedule_records.find_schedule(schedule_id)
        if schedule is None or schedule.principal_id != acting_principal.id:
            raise _build_unknown_error(schedule_id)
        return schedule

    async def _find_managed_schedule(self, schedule_id: str, acting_principal: Principal) -> Schedule:
        schedule = await self.schedule_records.find_schedule(schedule_id)
        if schedule is not None and (
            schedule.principal_id == acting_principal.id
            or await self._services.roles.is_administrator(acting_principal)
        ):
            return schedule
        raise _build_unknown_error(schedule_id)

    async def _find_active_schedule(self, schedule_id: str, acting_principal: Principal) -> Schedule:
        schedule = await self._find_owned_schedule(schedule_id, acting_principal)
        if schedule.paused_because is not None:
            raise SchedulePaused(f"Resume the schedule first. It is paused: {schedule.paused_because}")
        await self._services.policy.require_permission(acting_principal, schedule.tool_name)
        return schedule

    async def _find_recipient(self, recipient_name: str, owner_id: str) -> Principal:
        candidates = [
            candidate
            for candidate in await self._services.principals.find_by_name(recipient_name)
            if candidate.kind == "person" and candidate.is_active and candidate.id != owner_id
        ]
        if len(candidates) != 1:
            raise NotAllowed(
                "A schedule can be offered to one other person who has signed in here, and "
                f"{len(candidates)} are known "
                f"as '{recipient_name}'. Give their id."
            )
        return candidates[0]

    async def _find_offered_schedule(self, schedule_id: str, acting_principal: Principal) -> Schedule:
        schedule = await self.schedule_records.find_schedule(schedule_id)
        if schedule is None or schedule.offered_to != acting_principal.id:
            raise _build_unknown_error(schedule_id)
        return schedule


def _build_unknown_error(schedule_id: str) -> ScheduleUnknown:
    return ScheduleUnknown(f"You have no schedule '{schedule_id}'.")


def _make_schedule_id(owner: Principal, idempotency_key: str | None) -> str:
    id_suffix = (
        secrets.token_hex(16)
        if idempotency_key is None
        else uuid.uuid5(SCHEDULE_NAMESPACE, f"{owner.id}:{idempotency_key}").hex
    )
    return f"schedule-{id_suffix}"
