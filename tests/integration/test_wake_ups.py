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
from tests.platform import DISPUTE, NORTHWIND, Platform, until

READ = {"account_id": NORTHWIND}
SIGNALLED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
SCHEDULED = EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
FAILED = EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED


class Overtaken(AuthorizationRequests):
    """Lets the person answer while the first action that asks is still about to ask, or about to hear of it."""

    def __init__(self, platform: Platform, *, asked: bool) -> None:
        vars(self).update(vars(platform.services.authorization_requests))
        self._platform = platform
        self._asked = asked
        self._answered = False

    async def require_authorization(
        self,
        identity: Identity,
        connection: Connection,
        scopes: Collection[str],
        parked_action: ParkedAction,
        **more: Any,
    ) -> AuthorizationRequired | None:
        if not self._asked and not self._answered:
            await self._platform.grant(connection.name, self._platform.alice)
            self._answered = True
        required = await super().require_authorization(identity, connection, scopes, parked_action, **more)
        if required is not None and not self._answered:
            request = await self.find_request(required.request_id)
            assert request is not None
            await self._platform.consent(request, self._platform.alice)
            await WakeUpDelivery(self._platform.services.waiters, self._platform.temporal).deliver_due_batch()
            self._answered = True
        return required


async def order(platform: Platform, run: str, *kinds: EventType.ValueType) -> list[EventType.ValueType]:
    """In which order these things happened to a run."""
    return [event.event_type for event in await platform.history(run) if event.event_type in kinds]


async def test_a_hundred_runs_that_wait_for_one_grant_ask_once_and_all_go_on_once(
    platform: Platform,
) -> None:
    runs = [
        await platform.start("read_once", {**READ, "label": str(number)}, platform.alice)
        for number in range(100)
    ]
    requests = {(await platform.asked(run))[0].id: run for run in runs}
    (request,) = await platform.services.authorization_requests.list_open_requests(platform.alice.id)
    await platform.consent(request, platform.alice)

    outcomes = await asyncio.gather(*(platform.outcome(run) for run in runs))

    assert set(requests) == {request.id}
    assert all(isinstance(outcome, Finished) for outcome in outcomes)
    assert len(platform.requests("crm")) == 100
    assert len(platform.requests("crm", "token")) == 1
    assert len(await platform.trail("authorization.requested")) == 1
    for run in runs:
        assert await platform.count(run, SIGNALLED) == 1
        assert await platform.count(run, SCHEDULED) == 2


async def test_a_grant_that_comes_between_the_look_and_the_question_makes_it_needless(
    idle: Platform,
) -> None:
    async with idle.working(authorization_requests=Overtaken(idle, asked=False)):
        run = await idle.start("read_once", READ, idle.alice)
        outcome = await idle.outcome(run)

    assert isinstance(outcome, Finished)
    assert await idle.waiters(run) == []
    assert await idle.trail("authorization.requested") == []
    assert await idle.count(run, SCHEDULED) == 1


async def test_an_answer_that_comes_before_the_action_has_reported_its_question_is_not_lost(
    idle: Platform,
) -> None:
    async with idle.working(authorization_requests=Overtaken(idle, asked=True)):
        run = await idle.start("read_once", READ, idle.alice)
        outcome = await idle.outcome(run)

    assert isinstance(outcome, Finished)
    assert await order(idle, run, SIGNALLED, FAILED) == [SIGNALLED, FAILED]
    assert len(idle.requests("crm")) == 1


async def test_an_answer_that_comes_before_the_workflow_begins_to_wait_is_not_lost(idle: Platform) -> None:
    elsewhere = f"{idle.settings.temporal.task_queue}-elsewhere"
    run = await idle.start("read_at_every_level", {**READ, "task_queue": elsewhere}, idle.alice)

    async def has_scheduled() -> bool:
        return await idle.count(run, SCHEDULED) == 1

    async def has_asked() -> bool:
        return await idle.count(run, FAILED) == 1 or bool(await idle.waiters(run))

    async with idle.working():
        await until(has_scheduled)
    async with idle.working(elsewhere):
        await until(has_asked)
    (request,) = await idle.asked(run)
    await idle.consent(request, idle.alice)
    assert await WakeUpDelivery(idle.services.waiters, idle.temporal).deliver_due_batch() == 1
    assert await idle.awaiting(run) is None

    async with idle.working(), idle.working(elsewhere):
        outcome = await idle.outcome(run)

    assert isinstance(outcome, Finished)
    assert await idle.count(run, SIGNALLED) == 1
    assert len(idle.requests("crm")) == 1


async def test_a_gateway_that_dies_after_it_stored_the_grant_leaves_the_wake_up_to_another(
    idle: Platform,
) -> None:
    async with idle.working():
        run = await idle.start("read_once", READ, idle.alice)
        (request,) = await idle.parked(run)

        async with open_services(idle.settings, idle.environment) as dying:
            await idle.answer(request, idle.alice, "Allow", by=dying)
        assert await idle.count(run, SIGNALLED) == 0
        assert len(await idle.services.waiters.list_due_wake_ups(10)) == 1

        async with idle.delivering():
            outcome = await idle.outcome(run)

    assert isinstance(outcome, Finished)
    assert await idle.services.waiters.list_due_wake_ups(10) == []


async def test_a_wake_up_that_is_sent_again_wakes_nobody_again(idle: Platform) -> None:
    waiters = idle.services.waiters
    delivery = WakeUpDelivery(waiters, idle.temporal)
    async with idle.working():
        run = await idle.start("read_account_then_ticket", {**READ, "ticket_id": DISPUTE}, idle.alice)
        (crm,) = await idle.parked(run)
        await idle.consent(crm, idle.alice)
        (owed,) = await waiters.list_due_wake_ups(10)
        await delivery.deliver_due_batch()
        (support,) = await idle.parked(run)

        await waiters.postpone_wake_ups([owed.waiter_id], utc_now())
        assert await delivery.deliver_due_batch() == 1
        assert await idle.count(run, SIGNALLED) == 1

        await idle.consent(support, idle.alice)
        await delivery.deliver_due_batch()
        assert isinstance(await idle.outcome(run), Finished)

    await waiters.postpone_wake_ups([owed.waiter_id], utc_now())
    assert await delivery.deliver_due_batch() == 1
    assert await waiters.list_due_wake_ups(10) == []
    assert len(idle.requests("crm")) == 1


async def test_a_wake_up_that_nobody_owed_leads_to_another_look_and_to_nothing_else(
    platform: Platform,
) -> None:
    run = await platform.start("read_once", READ, platform.alice)
    (request,) = await platform.parked(run)
    (waiter,) = await platform.waiters(run)
    handle = platform.temporal.get_workflow_handle(run)

    garbage: list[Any] = [None, 7, "waiter", [], {}, {"waiter": None}, {"waiter": "another"}]
    for told in garbage:
        await handle.signal(LOOK_AGAIN_SIGNAL, told)
    await handle.signal(LOOK_AGAIN_SIGNAL)
    await handle.signal(LOOK_AGAIN_SIGNAL, {"v": 1, "waiter": waiter.id})

    async def has_looked_again() -> bool:
        return await platform.count(run, FAILED) == 2

    await until(has_looked_again)
    (again,) = await platform.parked(run)
    assert again.id == request.id
    assert [row.id for row in await platform.waiters(run)] == [waiter.id]
    assert platform.requests("crm") == []

    await platform.consent(request, platform.alice)
    assert isinstance(await platform.outcome(run), Finished)


async def test_a_worker_that_stops_while_runs_wait_leaves_them_alone(idle: Platform) -> None:
    async with idle.working():
        run = await idle.start("read_once", READ, idle.alice)
        (request,) = await idle.parked(run)
    before = len(await idle.history(run))
    # What the worker kept of the run is closed now; an error there is a warning, and warnings are errors here.
    gc.collect()
    assert len(await idle.history(run)) == before

    await idle.consent(request, idle.alice)
    async with idle.working(), idle.delivering():
        assert isinstance(await idle.outcome(run), Finished)


async def test_runs_whose_worker_was_killed_go_on_at_the_next_one(idle: Platform) -> None:
    async with idle.delivering():
        async with idle.worker_process() as worker:
            runs = [
                await idle.start("read_at_every_level", {**READ, "levels": levels}, idle.alice)
                for levels in range(3)
            ]
            (request,) = {(await idle.asked(run))[0].id: (await idle.asked(run))[0] for run in runs}.values()
            worker.kill()
            await worker.wait()
        await idle.consent(request, idle.alice)

        async with idle.worker_process():
            outcomes = await asyncio.gather(*(idle.outcome(run) for run in runs))

    assert all(isinstance(outcome, Finished) for outcome in outcomes)
    assert len(idle.requests("crm")) == 1 + 2 + 3


@pytest.mark.parametrize("ending", ["cancel", "terminate"])
async def test_a_wake_up_for_a_run_that_ended_meanwhile_is_owed_no_more(idle: Platform, ending: str) -> None:
    async with idle.working():
        run = await idle.start("read_once", READ, idle.alice)
        (request,) = await idle.parked(run)
        await idle.consent(request, idle.alice)
        handle = idle.temporal.get_workflow_handle(run)
        await (handle.cancel() if ending == "cancel" else handle.terminate())
        await idle.outcome(run)

    assert await WakeUpDelivery(idle.services.waiters, idle.temporal).deliver_due_batch() == 1
    assert await idle.services.waiters.list_due_wake_ups(10) == []
