"""Creates and changes the Temporal schedules that start tools. They do not hold the identity that a tool runs under."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from temporalio.api.schedule.v1 import SchedulePatch, TriggerImmediatelyRequest
from temporalio.api.workflowservice.v1 import ListScheduleMatchingTimesRequest, PatchScheduleRequest
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionExecutionStartWorkflow,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleBackfill,
    ScheduleState,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from engine.errors import SchedulePaused, TemporalUnreachable, TimingInvalid
from engine.schedules.timing import Period, Timing, to_overlap_policy

UNKNOWN_TO_TEMPORAL: Final = "Temporal does not know this schedule. Resume it to set it up again."

_MAX_BACKFILL_FIRINGS: Final = 1000
_MAX_RESUME_CHECKS: Final = 20
_RESUME_CHECK_SECONDS: Final = 0.05
_UNREACHABLE_STATUSES: Final = frozenset({RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED})


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """What Temporal stores of a schedule: tool, arguments and times. `pause_reason` is None unless it is paused."""

    id: str
    tool_name: str
    workflow_arguments: tuple[Any, ...]
    timing: Timing
    title: str
    pause_reason: str | None


@dataclass(frozen=True, slots=True)
class ScheduleFiring:
    """One firing of a schedule: when it was due, when it started, and the run that it started."""

    scheduled_at: datetime
    started_at: datetime
    run_id: str


@dataclass(frozen=True, slots=True)
class ScheduleStatus:
    """The state of a schedule in Temporal at this moment."""

    is_paused: bool
    pause_note: str | None
    next_times: tuple[datetime, ...]
    recent_firings: tuple[ScheduleFiring, ...]
    skipped_count: int
    missed_count: int


class TemporalSchedules:
    """The Temporal schedules of one namespace, which start tools on one task queue."""

    def __init__(self, temporal_client: Client, task_queue: str) -> None:
        self._temporal_client = temporal_client
        self._task_queue = task_queue

    async def write_schedule(self, schedule_spec: ScheduleSpec) -> None:
        """Create the schedule in Temporal, or replace it if it exists; raises TimingInvalid."""
        temporal_schedule = self._build_temporal_schedule(schedule_spec)

        def replace_schedule(update_input: ScheduleUpdateInput) -> ScheduleUpdate:
            # Temporal pauses a schedule after a failure if the timing says so. Only `resume` ends such a pause.
            if schedule_spec.pause_reason is None:
                temporal_schedule.state = update_input.description.schedule.state
            return ScheduleUpdate(temporal_schedule)

        async with _translate_rpc_errors():
            try:
                await self._temporal_client.create_schedule(schedule_spec.id, temporal_schedule)
            except ScheduleAlreadyRunningError:
                await self._temporal_client.get_schedule_handle(schedule_spec.id).update(replace_schedule)

    async def pause_schedule(self, schedule_id: str, pause_reason: str) -> None:
        """Pause the schedule in Temporal. A schedule that Temporal does not know starts nothing, so it is ignored."""
        async with _translate_rpc_errors(), _ignore_unknown_schedule():
            await self._temporal_client.get_schedule_handle(schedule_id).pause(note=pause_reason)

    async def resume_schedule(self, schedule_id: str) -> None:
        """Resume the schedule, and return once Temporal describes it as resumed, which takes a moment."""
        schedule_handle = self._temporal_client.get_schedule_handle(schedule_id)
        async with _translate_rpc_errors():
            await schedule_handle.unpause(note="")
            for _ in range(_MAX_RESUME_CHECKS):
                if not (await schedule_handle.describe()).schedule.state.paused:
                    break
                await asyncio.sleep(_RESUME_CHECK_SECONDS)

    async def delete_schedule(self, schedule_id: str) -> None:
        """Delete the schedule in Temporal; runs that it started go on."""
        async with _translate_rpc_errors(), _ignore_unknown_schedule():
            await self._temporal_client.get_schedule_handle(schedule_id).delete()

    async def discard_triggers(self, schedule_id: str) -> None:
        """Discard the manual triggers that have not fired yet; the times of the schedule stay the same."""
        schedule_handle = self._temporal_client.get_schedule_handle(schedule_id)
        async with _translate_rpc_errors(), _ignore_unknown_schedule():
            current_schedule = (await schedule_handle.describe()).schedule
            await schedule_handle.delete()
            await self._temporal_client.create_schedule(schedule_id, current_schedule)

    async def trigger_schedule(self, schedule_id: str, triggered_at: datetime) -> None:
        """Start a firing now, named after the given time."""
        # The SDK's own call leaves the time to the server.
        trigger_request = TriggerImmediatelyRequest()
        trigger_request.scheduled_time.FromDatetime(triggered_at)
        patch_request = PatchScheduleRequest(
            namespace=self._temporal_client.namespace,
            schedule_id=schedule_id,
            patch=SchedulePatch(trigger_immediately=trigger_request),
            identity=self._temporal_client.identity,
            request_id=str(uuid.uuid4()),
        )
        async with _translate_rpc_errors():
            await self._temporal_client.workflow_service.patch_schedule(patch_request)

    async def backfill_schedule(self, schedule_id: str, backfill_period: Period) -> None:
        """Start a firing for each time in the period; raises TimingInvalid if there are too many."""
        backfill_policy = (
            None if backfill_period.overlap is None else to_overlap_policy(backfill_period.overlap)
        )
        times_request = ListScheduleMatchingTimesRequest(
            namespace=self._temporal_client.namespace, schedule_id=schedule_id
        )
        times_request.start_time.FromDatetime(backfill_period.starts_at)
        times_request.end_time.FromDatetime(backfill_period.ends_at)
        async with _translate_rpc_errors():
            # Temporal itself lists no more than a thousand.
            matching_times = await self._temporal_client.workflow_service.list_schedule_matching_times(
                times_request
            )
            if len(matching_times.start_time) >= _MAX_BACKFILL_FIRINGS:
                raise TimingInvalid(
                    f"Fewer than {_MAX_BACKFILL_FIRINGS:,} firings are made up for at once: give a shorter time."
                )
            await self._temporal_client.get_schedule_handle(schedule_id).backfill(
                ScheduleBackfill(backfill_period.starts_at, backfill_period.ends_at, backfill_policy)
            )

    async def describe_schedule(self, schedule_id: str) -> ScheduleStatus | None:
        """Return the state of the schedule in Temporal, or None if it knows no schedule of this id."""
        async with _translate_rpc_errors():
            try:
                description = await self._temporal_client.get_schedule_handle(schedule_id).describe()
            except RPCError as error:
                if error.status != RPCStatusCode.NOT_FOUND:
                    raise
                return None
        schedule_info, schedule_state = description.info, description.schedule.state
        recent_firings = tuple(
            ScheduleFiring(
                action_result.scheduled_at, action_result.started_at, action_result.action.workflow_id
            )
            for action_result in reversed(schedule_info.recent_actions)
            if isinstance(action_result.action, ScheduleActionExecutionStartWorkflow)
        )
        return ScheduleStatus(
            is_paused=schedule_state.paused,
            pause_note=schedule_state.note or None,
            next_times=tuple(schedule_info.next_action_times),
            recent_firings=recent_firings,
            skipped_count=schedule_info.num_actions_skipped_overlap,
            missed_count=schedule_info.num_actions_missed_catchup_window,
        )

    def _build_temporal_schedule(self, schedule_spec: ScheduleSpec) -> Schedule:
        return Schedule(
            action=ScheduleActionStartWorkflow(
                schedule_spec.tool_name,
                args=schedule_spec.workflow_arguments,
                id=schedule_spec.id,
                task_queue=self._task_queue,
                static_summary=schedule_spec.title,
            ),
            spec=schedule_spec.timing.to_temporal_spec(),
            policy=schedule_spec.timing.to_temporal_policy(),
            state=ScheduleState(
                note=schedule_spec.pause_reason, paused=schedule_spec.pause_reason is not None
            ),
        )


@asynccontextmanager
async def _translate_rpc_errors() -> AsyncIterator[None]:
    try:
        yield
    except RPCError as error:
        if error.status == RPCStatusCode.INVALID_ARGUMENT:
            raise TimingInvalid(f"Temporal does not take this timing: {error.message}") from error
        if error.status == RPCStatusCode.NOT_FOUND:
            raise SchedulePaused(UNKNOWN_TO_TEMPORAL) from error
        if error.status not in _UNREACHABLE_STATUSES:
            raise
        raise TemporalUnreachable("The workflow engine does not answer. Try again in a moment.") from error


@asynccontextmanager
async def _ignore_unknown_schedule() -> AsyncIterator[None]:
    try:
        yield
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
