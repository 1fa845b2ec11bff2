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
from tests.support.administration import give_role
from tests.support.platform import DISPUTE, NORTHWIND, Platform, open_platform, temporal_server, wait_until
from tests.support.sandbox_systems import SYSTEMS, run_sandbox_system

HISTORIES = Path(__file__).parent / "histories"
READ = {"account_id": NORTHWIND}
BILLING_DISPUTE = {"account_id": NORTHWIND, "customer_id": "cus_NffrFeUfNV2Hib", "ticket_id": DISPUTE}


async def park_run(platform: Platform) -> str:
    run = await platform.start_run("resolve_billing_dispute", BILLING_DISPUTE, platform.alice)
    await platform.wait_for_requests(run, questions=3)
    for history in (await fetch_histories(platform, run))[1:]:
        await wait_until(partial(platform.read_awaited_connections, history.workflow_id))
    return run


async def finish_run(platform: Platform) -> str:
    run = await park_run(platform)
    for request in await platform.wait_for_requests(run, questions=3):
        await platform.consent(request, platform.alice)
    await platform.wait_for_outcome(run)
    return run


async def continue_as_new(platform: Platform) -> str:
    run = await platform.start_run(
        "read_at_every_level", {**READ, "levels": 1, "continued": 1}, platform.alice
    )
    return await answer_sign_ins(platform, run)


async def run_locally(platform: Platform) -> str:
    return await answer_sign_ins(platform, await platform.start_run("read_locally", READ, platform.alice))


async def answer_sign_ins(platform: Platform, run: str) -> str:
    (request,) = await platform.wait_for_requests(run)
    await platform.consent(request, platform.alice)
    await platform.wait_for_outcome(run)
    return run


async def deny_sign_in(platform: Platform) -> str:
    run = await platform.start_run("read_once", READ, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    await platform.answer_sign_in(request, platform.alice, "Deny", by=platform.services)
    await platform.wait_for_outcome(run)
    return run


async def let_wait_expire(platform: Platform) -> str:
    await platform.redeclare("crm", wait_limit=timedelta(seconds=2))
    run = await platform.start_run("read_once", READ, platform.alice)
    await platform.wait_for_outcome(run)
    return run


async def cancel_run(platform: Platform) -> str:
    run = await platform.start_run("read_once", READ, platform.alice)
    await platform.wait_until_parked(run)
    await platform.temporal.get_workflow_handle(run).cancel()
    await platform.wait_for_outcome(run)
    return run


async def notify_person(platform: Platform) -> str:
    """A run whose person chose to be told of it, at an address that nobody may call."""
    nowhere = "https://127.0.0.1:9/"
    await platform.services.notifier.add_channel(
        platform.alice, "slack", nowhere, ["chat_waiting", "chat_ended"]
    )
    return await answer_sign_ins(platform, await platform.start_run("read_once", READ, platform.alice))


async def ask_in_child(platform: Platform) -> str:
    """A run whose child asks its person and goes on with the answer."""
    run = await platform.start_run("choose_in_a_child", {"name": "Nort"}, platform.alice)
    await platform.services.questions.answer_question(
        await wait_for_question(platform, run), platform.alice, {"account": "Contoso"}
    )
    await platform.wait_for_outcome(run)
    return run


async def refuse_approval(platform: Platform) -> str:
    """A run that somebody who may decide says no to."""
    await give_role(platform.services, platform.bob.id, "refund-approver")
    run = await platform.start_run("refund", {"amount": 5, "to": "Acme"}, platform.alice)
    await platform.services.questions.decline_question(await wait_for_question(platform, run), platform.bob)
    await platform.wait_for_outcome(run)
    return run


async def leave_unanswered(platform: Platform) -> str:
    """A run that goes on without an answer."""
    run = await platform.start_run("choose_or_go_on", {"name": "Nort", "seconds": 2}, platform.alice)
    await platform.wait_for_outcome(run)
    return run


async def wait_for_question(platform: Platform, run: str) -> str:
    """The id of what a run asks, once its workflows wait for the answer."""

    async def waits() -> bool:
        waiters = await platform.services.waiters.list_waiters(run)
        return bool(waiters) and bool(await platform.read_awaited_connections(waiters[0].workflow_id))

    await wait_until(waits)
    return (await platform.services.questions.list_awaited_questions(run))[0].id


async def fire_schedule(platform: Platform) -> str:
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

    await wait_until(has_fired)
    dial = await schedules.read_status(schedule)
    assert dial is not None
    return await answer_sign_ins(platform, dial.recent_firings[0].run_id)


STORIES: tuple[Callable[[Platform], Awaitable[str]], ...] = (
    park_run,
    finish_run,
    continue_as_new,
    run_locally,
    deny_sign_in,
    let_wait_expire,
    cancel_run,
    notify_person,
    ask_in_child,
    refuse_approval,
    leave_unanswered,
    fire_schedule,
)


async def fetch_histories(platform: Platform, root: str) -> list[WorkflowHistory]:
    """The history of a run's root, of each run that continued it, and of all that they started."""
    description = await platform.temporal.get_workflow_handle(root).describe()
    histories, pending_runs = [], [(root, description.raw_description.workflow_execution_info.first_run_id)]
    while pending_runs:
        workflow_id, run_id = pending_runs.pop()
        history = await platform.temporal.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
        histories.append(history)
        for event in history.events:
            if event.event_type == EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED:
                child = event.child_workflow_execution_started_event_attributes.workflow_execution
                pending_runs.append((child.workflow_id, child.run_id))
            elif event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW:
                more = event.workflow_execution_continued_as_new_event_attributes
                pending_runs.append((workflow_id, more.new_execution_run_id))
    return histories


async def record_histories(platform: Platform, story: str, root: str) -> None:
    """Write every history of a run, each named after its story, its place in the run and its workflow."""
    for place, history in enumerate(await fetch_histories(platform, root)):
        workflow = history.events[0].workflow_execution_started_event_attributes.workflow_type.name
        document = remove_machine_names(json.loads(history.to_json()))
        (HISTORIES / f"{story}-{place}-{workflow}.json").write_text(json.dumps(document, indent=1) + "\n")


def remove_machine_names(value: Any) -> Any:
    """The same without process names, host names and stack traces, which hold paths."""
    if isinstance(value, dict):
        return {
            name: "somebody" if name == "identity" else remove_machine_names(part)
            for name, part in value.items()
            if name != "stackTrace"
        }
    if isinstance(value, list):
        return [remove_machine_names(part) for part in value]
    return value.replace(f"@{socket.gethostname()}", "@host") if isinstance(value, str) else value


@asynccontextmanager
async def open_platforms() -> AsyncIterator[Callable[[], Any]]:
    """A way to open one platform after another on one server and one sandbox."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        systems = {
            system: stack.enter_context(run_sandbox_system(system, folder / f"{system}.db"))
            for system in SYSTEMS
        }
        async with temporal_server() as address:
            yield lambda: open_platform(Path(tempfile.mkdtemp(dir=folder)), address, systems)


async def main() -> None:
    """Play every story and keep its histories."""
    HISTORIES.mkdir(exist_ok=True)
    async with open_platforms() as open_next_platform:
        for story in STORIES:
            async with open_next_platform() as platform, platform.working(), platform.delivering():
                await record_histories(platform, story.__name__, await story(platform))


if __name__ == "__main__":
    asyncio.run(main())
