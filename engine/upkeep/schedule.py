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

_UPKEEP_INTERVAL: Final = timedelta(minutes=10)
_EXECUTION_TIMEOUT: Final = timedelta(hours=1)


def make_upkeep_id(task_queue: str) -> str:
    """Return the id of the schedule, and of the workflows that it starts."""
    return f"{UPKEEP_WORKFLOW}:{task_queue}"


async def ensure_upkeep_schedule(temporal_client: Client, task_queue: str) -> None:
    """Create the schedule, or update it to this release's; raises SettingsInvalid where Temporal refuses that."""
    upkeep_schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            UPKEEP_WORKFLOW,
            id=make_upkeep_id(task_queue),
            task_queue=task_queue,
            execution_timeout=_EXECUTION_TIMEOUT,
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=_UPKEEP_INTERVAL)]),
        # The next firing does what was missed.
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=_UPKEEP_INTERVAL),
    )

    def replace_schedule(update_input: ScheduleUpdateInput) -> ScheduleUpdate:
        upkeep_schedule.state = update_input.description.schedule.state
        return ScheduleUpdate(upkeep_schedule)

    try:
        try:
            await temporal_client.create_schedule(make_upkeep_id(task_queue), upkeep_schedule)
        except ScheduleAlreadyRunningError:
            await temporal_client.get_schedule_handle(make_upkeep_id(task_queue)).update(replace_schedule)
    except RPCError as error:
        raise SettingsInvalid(
            f"Cannot set up the schedule '{make_upkeep_id(task_queue)}' in namespace '{temporal_client.namespace}' "
            f"({error.message}): let workers create and update schedules."
        ) from error
