"""Holds Byline to losing no wake-up: whenever the answer comes and whatever dies, every waiter goes on, once."""

import asyncio
import gc
from collections.abc import Collection
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType

from engine.authorization.requests import AuthorizationRequests
from engine.connections.connection import Connection
from engine.db.database import utc_now
from engine.errors import AuthorizationRequired
from engine.identity.model import Identity
from engine.runs.outcome import Finished
from engine.services import open_services
from engine.waiting.delivery import WakeUpDelivery
from engine.waiting.waiters import ParkedAction
from engine.wire import LOOK_AGAIN_SIGNAL
from tests.support.platform import DISPUTE, NORTHWIND, Platform, wait_until

READ = {"account_id": NORTHWIND}
SIGNALLED_EVENT = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
SCHEDULED_EVENT = EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
FAILED_EVENT = EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED


class OvertakenRequests(AuthorizationRequests):
    """Lets the person answer while the first action that asks is still about to ask, or about to hear of it."""

    def __init__(self, platform: Platform, *, after_asking: bool) -> None:
        vars(self).update(vars(platform.services.authorization_requests))
        self._platform = platform
        self._after_asking = after_asking
        self._is_answered = False

    async def require_authorization(
        self,
        identity: Identity,
        connection: Connection,
        scopes: Collection[str],
        parked_action: ParkedAction,
        **more: Any,
    ) -> AuthorizationRequired | None:
        if not self._after_asking and not self._is_answered:
            await self._platform.give_grant(connection.name, self._platform.alice)
            self._is_answered = True
        requirement = await super().require_authorization(identity, connection, scopes, parked_action, **more)
        if requirement is not None and not self._is_answered:
            request = await self.find_request(requirement.request_id)
            assert request is not None
            await self._platform.consent(request, self._platform.alice)
            await WakeUpDelivery(self._platform.services.waiters, self._platform.temporal).deliver_due_batch()
            self._is_answered = True
        return requirement


async def list_event_types(
    platform: Platform, run: str, *kinds: EventType.ValueType
) -> list[EventType.ValueType]:
    """In which order these things happened to a run."""
    return [event.event_type for event in await platform.fetch_history(run) if event.event_type in kinds]


async def test_a_hundred_runs_that_wait_for_one_grant_ask_once_and_all_go_on_once(
    platform: Platform,
) -> None:
    runs = [
        await platform.start_run("read_once", {**READ, "label": str(number)}, platform.alice)
        for number in range(100)
    ]
    requests = {(await platform.wait_for_requests(run))[0].id: run for run in runs}
    (request,) = await platform.services.authorization_requests.list_open_requests(platform.alice.id)
    await platform.consent(request, platform.alice)

    outcomes = await asyncio.gather(*(platform.wait_for_outcome(run) for run in runs))

    assert set(requests) == {request.id}
    assert all(isinstance(outcome, Finished) for outcome in outcomes)
    assert len(platform.list_requests("crm")) == 100
    assert len(platform.list_requests("crm", "token")) == 1
    assert len(await platform.list_trail_events("authorization.requested")) == 1
    for run in runs:
        assert await platform.count_events(run, SIGNALLED_EVENT) == 1
        assert await platform.count_events(run, SCHEDULED_EVENT) == 2


async def test_a_grant_that_comes_between_the_look_and_the_question_makes_it_needless(
    idle_platform: Platform,
) -> None:
    async with idle_platform.run_worker(
        authorization_requests=OvertakenRequests(idle_platform, after_asking=False)
    ):
        run = await idle_platform.start_run("read_once", READ, idle_platform.alice)
        outcome = await idle_platform.wait_for_outcome(run)

    assert isinstance(outcome, Finished)
    assert await idle_platform.list_waiters(run) == []
    assert await idle_platform.list_trail_events("authorization.requested") == []
    assert await idle_platform.count_events(run, SCHEDULED_EVENT) == 1


async def test_an_answer_that_comes_before_the_action_has_reported_its_question_is_not_lost(
    idle_platform: Platform,
) -> None:
    async with idle_platform.run_worker(
        authorization_requests=OvertakenRequests(idle_platform, after_asking=True)
    ):
        run = await idle_platform.start_run("read_once", READ, idle_platform.alice)
        outcome = await idle_platform.wait_for_outcome(run)

    assert isinstance(outcome, Finished)
    assert await list_event_types(idle_platform, run, SIGNALLED_EVENT, FAILED_EVENT) == [
        SIGNALLED_EVENT,
        FAILED_EVENT,
    ]
    assert len(idle_platform.list_requests("crm")) == 1


async def test_an_answer_that_comes_before_the_workflow_begins_to_wait_is_not_lost(
    idle_platform: Platform,
) -> None:
    elsewhere = f"{idle_platform.settings.temporal.task_queue}-elsewhere"
    run = await idle_platform.start_run(
        "read_at_every_level", {**READ, "task_queue": elsewhere}, idle_platform.alice
    )

    async def has_scheduled() -> bool:
        return await idle_platform.count_events(run, SCHEDULED_EVENT) == 1

    async def has_asked() -> bool:
        return await idle_platform.count_events(run, FAILED_EVENT) == 1 or bool(
            await idle_platform.list_waiters(run)
        )

    async with idle_platform.run_worker():
        await wait_until(has_scheduled)
    async with idle_platform.run_worker(elsewhere):
        await wait_until(has_asked)
    (request,) = await idle_platform.wait_for_requests(run)
    await idle_platform.consent(request, idle_platform.alice)
    assert (
        await WakeUpDelivery(idle_platform.services.waiters, idle_platform.temporal).deliver_due_batch() == 1
    )
    assert await idle_platform.read_awaited_connections(run) is None

    async with idle_platform.run_worker(), idle_platform.run_worker(elsewhere):
        outcome = await idle_platform.wait_for_outcome(run)

    assert isinstance(outcome, Finished)
    assert await idle_platform.count_events(run, SIGNALLED_EVENT) == 1
    assert len(idle_platform.list_requests("crm")) == 1


async def test_a_gateway_that_dies_after_it_stored_the_grant_leaves_the_wake_up_to_another(
    idle_platform: Platform,
) -> None:
    async with idle_platform.run_worker():
        run = await idle_platform.start_run("read_once", READ, idle_platform.alice)
        (request,) = await idle_platform.wait_until_parked(run)

        async with open_services(idle_platform.settings, idle_platform.environment) as dying:
            await idle_platform.answer_sign_in(request, idle_platform.alice, "Allow", by=dying)
        assert await idle_platform.count_events(run, SIGNALLED_EVENT) == 0
        assert len(await idle_platform.services.waiters.list_due_wake_ups(10)) == 1

        async with idle_platform.run_wake_up_delivery():
            outcome = await idle_platform.wait_for_outcome(run)

    assert isinstance(outcome, Finished)
    assert await idle_platform.services.waiters.list_due_wake_ups(10) == []


async def test_a_wake_up_that_is_sent_again_wakes_nobody_again(idle_platform: Platform) -> None:
    waiters = idle_platform.services.waiters
    delivery = WakeUpDelivery(waiters, idle_platform.temporal)
    async with idle_platform.run_worker():
        run = await idle_platform.start_run(
            "read_account_then_ticket", {**READ, "ticket_id": DISPUTE}, idle_platform.alice
        )
        (crm,) = await idle_platform.wait_until_parked(run)
        await idle_platform.consent(crm, idle_platform.alice)
        (due_wake_up,) = await waiters.list_due_wake_ups(10)
        await delivery.deliver_due_batch()
        (support,) = await idle_platform.wait_until_parked(run)

        await waiters.postpone_wake_ups([due_wake_up.waiter_id], utc_now())
        assert await delivery.deliver_due_batch() == 1
        assert await idle_platform.count_events(run, SIGNALLED_EVENT) == 1

        await idle_platform.consent(support, idle_platform.alice)
        await delivery.deliver_due_batch()
        assert isinstance(await idle_platform.wait_for_outcome(run), Finished)

    await waiters.postpone_wake_ups([due_wake_up.waiter_id], utc_now())
    assert await delivery.deliver_due_batch() == 1
    assert await waiters.list_due_wake_ups(10) == []
    assert len(idle_platform.list_requests("crm")) == 1


async def test_a_wake_up_that_was_not_due_leads_to_another_look_and_to_nothing_else(
    platform: Platform,
) -> None:
    run = await platform.start_run("read_once", READ, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    (waiter,) = await platform.list_waiters(run)
    handle = platform.temporal.get_workflow_handle(run)

    garbage: list[Any] = [None, 7, "waiter", [], {}, {"waiter": None}, {"waiter": "another"}]
    for wake_up in garbage:
        await handle.signal(LOOK_AGAIN_SIGNAL, wake_up)
    await handle.signal(LOOK_AGAIN_SIGNAL)
    await handle.signal(LOOK_AGAIN_SIGNAL, {"v": 1, "waiter": waiter.id})

    async def has_looked_again() -> bool:
        return await platform.count_events(run, FAILED_EVENT) == 2

    await wait_until(has_looked_again)
    (again,) = await platform.wait_until_parked(run)
    assert again.id == request.id
    assert [row.id for row in await platform.list_waiters(run)] == [waiter.id]
    assert platform.list_requests("crm") == []

    await platform.consent(request, platform.alice)
    assert isinstance(await platform.wait_for_outcome(run), Finished)


async def test_a_worker_that_stops_while_runs_wait_leaves_them_alone(idle_platform: Platform) -> None:
    async with idle_platform.run_worker():
        run = await idle_platform.start_run("read_once", READ, idle_platform.alice)
        (request,) = await idle_platform.wait_until_parked(run)
    before = len(await idle_platform.fetch_history(run))
    # What the worker kept of the run is closed now; an error there is a warning, and warnings are errors here.
    gc.collect()
    assert len(await idle_platform.fetch_history(run)) == before

    await idle_platform.consent(request, idle_platform.alice)
    async with idle_platform.run_worker(), idle_platform.run_wake_up_delivery():
        assert isinstance(await idle_platform.wait_for_outcome(run), Finished)


async def test_runs_whose_worker_was_killed_go_on_at_the_next_one(idle_platform: Platform) -> None:
    async with idle_platform.run_wake_up_delivery():
        async with idle_platform.run_worker_process() as worker:
            runs = [
                await idle_platform.start_run(
                    "read_at_every_level", {**READ, "levels": levels}, idle_platform.alice
                )
                for levels in range(3)
            ]
            (request,) = {
                (await idle_platform.wait_for_requests(run))[0].id: (
                    await idle_platform.wait_for_requests(run)
                )[0]
                for run in runs
            }.values()
            worker.kill()
            await worker.wait()
        await idle_platform.consent(request, idle_platform.alice)

        async with idle_platform.run_worker_process():
            outcomes = await asyncio.gather(*(idle_platform.wait_for_outcome(run) for run in runs))

    assert all(isinstance(outcome, Finished) for outcome in outcomes)
    assert len(idle_platform.list_requests("crm")) == 1 + 2 + 3


@pytest.mark.parametrize("ending", ["cancel", "terminate"])
async def test_a_wake_up_for_a_run_that_ended_meanwhile_is_no_longer_due(
    idle_platform: Platform, ending: str
) -> None:
    async with idle_platform.run_worker():
        run = await idle_platform.start_run("read_once", READ, idle_platform.alice)
        (request,) = await idle_platform.wait_until_parked(run)
        await idle_platform.consent(request, idle_platform.alice)
        handle = idle_platform.temporal.get_workflow_handle(run)
        await (handle.cancel() if ending == "cancel" else handle.terminate())
        await idle_platform.wait_for_outcome(run)

    assert (
        await WakeUpDelivery(idle_platform.services.waiters, idle_platform.temporal).deliver_due_batch() == 1
    )
    assert await idle_platform.services.waiters.list_due_wake_ups(10) == []
