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
from engine.schedules.timing import Period, Timing, overlap_policy

UNKNOWN_TO_TEMPORAL: Final = "Temporal does not know this schedule. Resume it to set it up again."

_MOST_MADE_UP_FOR: Final = 1000
_LOOKS: Final = 20
_LOOK_EVERY_SECONDS: Final = 0.05
_SILENT: Final = frozenset({RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED})


@dataclass(frozen=True, slots=True)
class Alarm:
    """What Temporal stores of a schedule: tool, arguments and times. `pause_reason` is None unless it is paused."""

    id: str
    tool: str
    given: tuple[Any, ...]
    timing: Timing
    title: str
    paused: str | None


@dataclass(frozen=True, slots=True)
class Firing:
    """One firing of a schedule: when it was due, when it started, and the run that it started."""

    scheduled_at: datetime
    started_at: datetime
    run_id: str


@dataclass(frozen=True, slots=True)
class Dial:
    """The state of a schedule in Temporal at this moment."""

    paused: bool
    note: str | None
    next: tuple[datetime, ...]
    recent: tuple[Firing, ...]
    skipped: int
    missed: int


class Clock:
    """The Temporal schedules of one namespace, which start tools on one task queue."""

    def __init__(self, temporal: Client, task_queue: str) -> None:
        self._temporal = temporal
        self._task_queue = task_queue

    async def put(self, alarm: Alarm) -> None:
        """Create the schedule in Temporal, or replace it if it exists; raises TimingInvalid."""
        wanted = self._schedule(alarm)

        def replace(known: ScheduleUpdateInput) -> ScheduleUpdate:
            # Temporal pauses a schedule after a failure if the timing says so. Only `resume` ends such a pause.
            if alarm.paused is None:
                wanted.state = known.description.schedule.state
            return ScheduleUpdate(wanted)

        async with _answering():
            try:
                await self._temporal.create_schedule(alarm.id, wanted)
            except ScheduleAlreadyRunningError:
                await self._temporal.get_schedule_handle(alarm.id).update(replace)

    async def pause(self, schedule_id: str, because: str) -> None:
        """Pause the schedule in Temporal. A schedule that Temporal does not know starts nothing, so it is ignored."""
        async with _answering(), _known():
            await self._temporal.get_schedule_handle(schedule_id).pause(note=because)

    async def resume(self, schedule_id: str) -> None:
        """Resume the schedule, and return once Temporal describes it as resumed, which takes a moment."""
        handle = self._temporal.get_schedule_handle(schedule_id)
        async with _answering():
            await handle.unpause(note="")
            for _ in range(_LOOKS):
                if not (await handle.describe()).schedule.state.paused:
                    break
                await asyncio.sleep(_LOOK_EVERY_SECONDS)

    async def forget(self, schedule_id: str) -> None:
        """Delete the schedule in Temporal; runs that it started go on."""
        async with _answering(), _known():
            await self._temporal.get_schedule_handle(schedule_id).delete()

    async def begin_anew(self, schedule_id: str) -> None:
        """Discard the manual triggers that have not fired yet; the times of the schedule stay the same."""
        handle = self._temporal.get_schedule_handle(schedule_id)
        async with _answering(), _known():
            as_it_is = (await handle.describe()).schedule
            await handle.delete()
            await self._temporal.create_schedule(schedule_id, as_it_is)

    async def trigger(self, schedule_id: str, moment: datetime) -> None:
        """Start a firing now, named after the given time."""
        # The SDK's own call leaves the time to the server.
        at_once = TriggerImmediatelyRequest()
        at_once.scheduled_time.FromDatetime(moment)
        request = PatchScheduleRequest(
            namespace=self._temporal.namespace,
            schedule_id=schedule_id,
            patch=SchedulePatch(trigger_immediately=at_once),
            identity=self._temporal.identity,
            request_id=str(uuid.uuid4()),
        )
        async with _answering():
            await self._temporal.workflow_service.patch_schedule(request)

    async def backfill(self, schedule_id: str, period: Period) -> None:
        """Start a firing for each time in the period; raises TimingInvalid if there are too many."""
        overlap = None if period.overlap is None else overlap_policy(period.overlap)
        times = ListScheduleMatchingTimesRequest(namespace=self._temporal.namespace, schedule_id=schedule_id)
        times.start_time.FromDatetime(period.starts_at)
        times.end_time.FromDatetime(period.ends_at)
        async with _answering():
            # Temporal itself lists no more than a thousand.
            found = await self._temporal.workflow_service.list_schedule_matching_times(times)
            if len(found.start_time) >= _MOST_MADE_UP_FOR:
                raise TimingInvalid(
                    f"Fewer than {_MOST_MADE_UP_FOR:,} firings are made up for at once: give a shorter time."
                )
            await self._temporal.get_schedule_handle(schedule_id).backfill(
                ScheduleBackfill(period.starts_at, period.ends_at, overlap)
            )

    async def read(self, schedule_id: str) -> Dial | None:
        """Return the state of the schedule in Temporal, or None if it knows no schedule of this id."""
        async with _answering():
            try:
                described = await self._temporal.get_schedule_handle(schedule_id).describe()
            except RPCError as error:
                if error.status != RPCStatusCode.NOT_FOUND:
                    raise
                return None
        info, state = described.info, described.schedule.state
        recent = tuple(
            Firing(result.scheduled_at, result.started_at, result.action.workflow_id)
            for result in reversed(info.recent_actions)
            if isinstance(result.action, ScheduleActionExecutionStartWorkflow)
        )
        return Dial(
            paused=state.paused,
            note=state.note or None,
            next=tuple(info.next_action_times),
            recent=recent,
            skipped=info.num_actions_skipped_overlap,
            missed=info.num_actions_missed_catchup_window,
        )

    def _schedule(self, alarm: Alarm) -> Schedule:
        return Schedule(
            action=ScheduleActionStartWorkflow(
                alarm.tool,
                args=alarm.given,
                id=alarm.id,
                task_queue=self._task_queue,
                static_summary=alarm.title,
            ),
            spec=alarm.timing.spec(),
            policy=alarm.timing.policy(),
            state=ScheduleState(note=alarm.paused, paused=alarm.paused is not None),
        )


@asynccontextmanager
async def _answering() -> AsyncIterator[None]:
    try:
        yield
    except RPCError as error:
        if error.status == RPCStatusCode.INVALID_ARGUMENT:
            raise TimingInvalid(f"Temporal does not take this timing: {error.message}") from error
        if error.status == RPCStatusCode.NOT_FOUND:
            raise SchedulePaused(UNKNOWN_TO_TEMPORAL) from error
        if error.status not in _SILENT:
            raise
        raise TemporalUnreachable("The workflow engine does not answer. Try again in a moment.") from error


@asynccontextmanager
async def _known() -> AsyncIterator[None]:
    try:
        yield
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
