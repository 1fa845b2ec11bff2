"""Records what Temporal keeps of runs that wait, end and go on: `python -m tests.replay.record`.

Parked runs outlive releases, so old histories stay: record under a new name when the shape of a wait changes.
What tells of the machine that recorded is taken out.
"""

import asyncio
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHistory

from engine.schedules.schedules import ScheduleDraft, Schedules
from engine.schedules.timing import Timing
from tests.administration import give_role
from tests.platform import DISPUTE, NORTHWIND, Platform, open_platform, temporal_server, until
from tests.sandbox import SYSTEMS, running

HISTORIES = Path(__file__).parent / "histories"
READ = {"account_id": NORTHWIND}
BILLING_DISPUTE = {"account_id": NORTHWIND, "customer_id": "cus_NffrFeUfNV2Hib", "ticket_id": DISPUTE}


async def parked(platform: Platform) -> str:
    run = await platform.start("resolve_billing_dispute", BILLING_DISPUTE, platform.alice)
    await platform.asked(run, questions=3)
    for history in (await histories(platform, run))[1:]:
        await until(partial(platform.awaiting, history.workflow_id))
    return run


async def finished(platform: Platform) -> str:
    run = await parked(platform)
    for request in await platform.asked(run, questions=3):
        await platform.consent(request, platform.alice)
    await platform.outcome(run)
    return run


async def continued(platform: Platform) -> str:
    run = await platform.start("read_at_every_level", {**READ, "levels": 1, "continued": 1}, platform.alice)
    return await answered(platform, run)


async def local(platform: Platform) -> str:
    return await answered(platform, await platform.start("read_locally", READ, platform.alice))


async def answered(platform: Platform, run: str) -> str:
    (request,) = await platform.asked(run)
    await platform.consent(request, platform.alice)
    await platform.outcome(run)
    return run


async def denied(platform: Platform) -> str:
    run = await platform.start("read_once", READ, platform.alice)
    (request,) = await platform.parked(run)
    await platform.answer(request, platform.alice, "Deny", by=platform.services)
    await platform.outcome(run)
    return run


async def expired(platform: Platform) -> str:
    await platform.redeclare("crm", wait_limit=timedelta(seconds=2))
    run = await platform.start("read_once", READ, platform.alice)
    await platform.outcome(run)
    return run


async def cancelled(platform: Platform) -> str:
    run = await platform.start("read_once", READ, platform.alice)
    await platform.parked(run)
    await platform.temporal.get_workflow_handle(run).cancel()
    await platform.outcome(run)
    return run


async def told(platform: Platform) -> str:
    """A run whose person chose to be told of it, at an address that nobody may call."""
    nowhere = "https://127.0.0.1:9/"
    await platform.services.notifier.add_channel(
        platform.alice, "slack", nowhere, ["chat_waiting", "chat_ended"]
    )
    return await answered(platform, await platform.start("read_once", READ, platform.alice))


async def asking(platform: Platform) -> str:
    """A run whose child asks its person and goes on with the answer."""
    run = await platform.start("choose_in_a_child", {"name": "Nort"}, platform.alice)
    await platform.services.questions.answer_question(
        await question(platform, run), platform.alice, {"account": "Contoso"}
    )
    await platform.outcome(run)
    return run


async def refused(platform: Platform) -> str:
    """A run that somebody who may decide says no to."""
    await give_role(platform.services, platform.bob.id, "refund-approver")
    run = await platform.start("refund", {"amount": 5, "to": "Acme"}, platform.alice)
    await platform.services.questions.decline_question(await question(platform, run), platform.bob)
    await platform.outcome(run)
    return run


async def unanswered(platform: Platform) -> str:
    """A run that goes on without an answer."""
    run = await platform.start("choose_or_go_on", {"name": "Nort", "seconds": 2}, platform.alice)
    await platform.outcome(run)
    return run


async def question(platform: Platform, run: str) -> str:
    """The id of what a run asks, once its workflows wait for the answer."""

    async def waits() -> bool:
        waiters = await platform.services.waiters.list_waiters(run)
        return bool(waiters) and bool(await platform.awaiting(waiters[0].workflow_id))

    await until(waits)
    return (await platform.services.questions.list_awaited_questions(run))[0].id


async def fired(platform: Platform) -> str:
    """A run that a schedule began, which waits for its owner and goes on as new."""
    schedules = Schedules(platform.services, platform.temporal)
    journey = {**READ, "levels": 1, "continued": 1}
    tool = platform.registry.find_tool("read_at_every_level")
    plan = ScheduleDraft("Daily", tool, journey, Timing(cron=("@daily",)))
    schedule = await schedules.create_schedule(plan, platform.alice)
    await schedules.trigger_schedule(schedule.id, platform.alice)

    async def has_fired() -> bool:
        dial = await schedules.read_status(schedule)
        return dial is not None and bool(dial.recent_firings)

    await until(has_fired)
    dial = await schedules.read_status(schedule)
    assert dial is not None
    return await answered(platform, dial.recent_firings[0].run_id)


STORIES: tuple[Callable[[Platform], Awaitable[str]], ...] = (
    parked,
    finished,
    continued,
    local,
    denied,
    expired,
    cancelled,
    told,
    asking,
    refused,
    unanswered,
    fired,
)


async def histories(platform: Platform, root: str) -> list[WorkflowHistory]:
    """The history of a run's root, of each run that continued it, and of all that they started."""
    description = await platform.temporal.get_workflow_handle(root).describe()
    found, left = [], [(root, description.raw_description.workflow_execution_info.first_run_id)]
    while left:
        workflow_id, run_id = left.pop()
        history = await platform.temporal.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
        found.append(history)
        for event in history.events:
            if event.event_type == EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED:
                child = event.child_workflow_execution_started_event_attributes.workflow_execution
                left.append((child.workflow_id, child.run_id))
            elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW:
                more = event.workflow_execution_continued_as_new_event_attributes
                left.append((workflow_id, more.new_execution_run_id))
    return found


async def record(platform: Platform, story: str, root: str) -> None:
    """Write every history of a run, each named after its story, its place in the run and its workflow."""
    for place, history in enumerate(await histories(platform, root)):
        workflow = history.events[0].workflow_execution_started_event_attributes.workflow_type.name
        document = without_machine(json.loads(history.to_json()))
        (HISTORIES / f"{story}-{place}-{workflow}.json").write_text(json.dumps(document, indent=1) + "\n")


def without_machine(value: Any) -> Any:
    """The same without process names, host names and stack traces, which hold paths."""
    if isinstance(value, dict):
        return {
            name: "somebody" if name == "identity" else without_machine(part)
            for name, part in value.items()
            if name != "stackTrace"
        }
    if isinstance(value, list):
        return [without_machine(part) for part in value]
    return value.replace(f"@{socket.gethostname()}", "@host") if isinstance(value, str) else value


@asynccontextmanager
async def platforms() -> AsyncIterator[Callable[[], Any]]:
    """A way to open one platform after another on one server and one sandbox."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        systems = {
            system: stack.enter_context(running(system, folder / f"{system}.db")) for system in SYSTEMS
        }
        async with temporal_server() as address:
            yield lambda: open_platform(Path(tempfile.mkdtemp(dir=folder)), address, systems)


async def main() -> None:
    """Play every story and keep its histories."""
    HISTORIES.mkdir(exist_ok=True)
    async with platforms() as opened:
        for story in STORIES:
            async with opened() as platform, platform.working(), platform.delivering():
                await record(platform, story.__name__, await story(platform))


if __name__ == "__main__":
    asyncio.run(main())
