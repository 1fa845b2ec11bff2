"""The Temporal schedule of upkeep, which every worker creates or updates as it starts. A paused one stays paused."""

from datetime import timedelta
from typing import Final

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError

from engine.errors import SettingsInvalid
from engine.wire import UPKEEP_WORKFLOW

_EVERY: Final = timedelta(minutes=10)
_LONGEST: Final = timedelta(hours=1)


def upkeep_id(task_queue: str) -> str:
    """Return the id of the schedule, and of the workflows that it starts."""
    return f"{UPKEEP_WORKFLOW}:{task_queue}"


async def ensure_upkeep(temporal: Client, task_queue: str) -> None:
    """Create the schedule, or update it to this release's; raises SettingsInvalid where Temporal refuses that."""
    wanted = Schedule(
        action=ScheduleActionStartWorkflow(
            UPKEEP_WORKFLOW, id=upkeep_id(task_queue), task_queue=task_queue, execution_timeout=_LONGEST
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=_EVERY)]),
        # The next firing does what was missed.
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_EVERY),
    )

    def replace(known: ScheduleUpdateInput) -> ScheduleUpdate:
        wanted.state = known.description.schedule.state
        return ScheduleUpdate(wanted)

    try:
        try:
            await temporal.create_schedule(upkeep_id(task_queue), wanted)
        except ScheduleAlreadyRunningError:
            await temporal.get_schedule_handle(upkeep_id(task_queue)).update(replace)
    except RPCError as error:
        raise SettingsInvalid(
            f"Cannot set up the schedule '{upkeep_id(task_queue)}' in namespace '{temporal.namespace}' "
            f"({error.message}): let workers create and update schedules."
        ) from error
