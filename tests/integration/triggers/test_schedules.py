"""Holds schedules to firing in their owner's name, as on record, by Temporal's clock and by nothing else."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.common.v1 import Payload, Payloads, SearchAttributes, WorkflowType
from temporalio.api.enums.v1 import EventType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import StartWorkflowExecutionRequest
from temporalio.client import (
    ActivityFailureError,
    ScheduleActionStartWorkflow,
    ScheduleBackfill,
    ScheduleCalendarSpec,
    ScheduleDescription,
    ScheduleHandle,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    ScheduleRange,
    ScheduleUpdate,
    ScheduleUpdateInput,
)

from engine.errors import (
    ArgumentsInvalid,
    BylineError,
    FiringRefused,
    IdentityMissing,
    KeyReused,
    NotAllowed,
    PrincipalInactive,
    SchedulePaused,
    ScheduleUnknown,
    TimingInvalid,
)
from engine.policy.policy import Policy, PolicyFile, ToolPolicy
from engine.runs.outcome import Failed, Finished
from engine.schedules.schedule_records import Schedule
from engine.schedules.schedules import ScheduleDraft, Schedules
from engine.schedules.temporal_schedules import ScheduleStatus
from engine.schedules.timing import Calendar, Interval, Period, Range, Timing
from engine.wire import (
    ENROLL_ACTIVITY,
    IDENTITY_HEADER,
    PRINCIPAL_ATTRIBUTE,
    RUN_ATTRIBUTE,
    SCHEDULED_BY_ATTRIBUTE,
    TOOL_ATTRIBUTE,
    TRIGGER_ATTRIBUTE,
)
from tests.support.administration import give_role, set_active, take_role
from tests.support.commands import Commands
from tests.support.platform import CONTOSO, NAMESPACE, NORTHWIND, Platform, variables, wait_until

READ: Mapping[str, Any] = {"account_id": NORTHWIND}
SOME_DAY = Timing(cron=("0 0 29 2 *",))
ONE_DAY, ANOTHER_DAY = (
    ScheduleBackfill(datetime(year, 2, 28, 12, tzinfo=UTC), datetime(year, 3, 1, tzinfo=UTC))
    for year in (2020, 2024)
)
TEMPORALS_OWN = {"encoding": b"json/plain", "type": b"Keyword"}


def plan_schedule(platform: Platform, tool: str = "read_once", **changes: Any) -> ScheduleDraft:
    return ScheduleDraft(
        changes.get("name", "Every leap day"),
        platform.registry.find_tool(tool),
        changes.get("arguments", READ),
        changes.get("timing", SOME_DAY),
    )


@pytest.fixture
def schedules(idle_platform: Platform) -> Schedules:
    return Schedules(idle_platform.services, idle_platform.temporal)


def get_temporal_handle(platform: Platform, schedule: Schedule) -> ScheduleHandle:
    return platform.temporal.get_schedule_handle(schedule.id)


async def read_status(schedules: Schedules, schedule: Schedule) -> ScheduleStatus:
    schedule_status = await schedules.read_status(schedule)
    assert schedule_status is not None
    return schedule_status


async def wait_until_fired(schedules: Schedules, schedule: Schedule, times: int = 1) -> list[str]:
    """The runs of a schedule, newest first, once it has fired this often."""

    async def has_fired() -> bool:
        return len((await read_status(schedules, schedule)).recent_firings) >= times

    await wait_until(has_fired)
    return [firing.run_id for firing in (await read_status(schedules, schedule)).recent_firings]


async def fire_schedule(schedules: Schedules, schedule: Schedule, platform: Platform) -> str:
    """Fire as whoever owns it now, and give the run's id."""
    before = len((await read_status(schedules, schedule)).recent_firings)
    current = await schedules.schedule_records.find_schedule(schedule.id)
    assert current is not None
    owner = await platform.services.principals.find_principal(current.principal_id)
    assert owner is not None
    await schedules.trigger_schedule(schedule.id, owner)
    return (await wait_until_fired(schedules, schedule, before + 1))[0]


async def read_refusal(platform: Platform, run: str, error: type[BylineError]) -> str:
    """The message of a firing's refusal, which its outcome and the trail must agree on."""
    outcome = await platform.wait_for_outcome(run)
    (event,) = await platform.list_trail_events("run.refused", run)
    assert isinstance(outcome, Failed), outcome
    assert outcome.code == event["error"] == error.code
    assert outcome.message == event["message"]
    assert await platform.list_trail_events("tool.called", run) == []
    assert await platform.list_trail_events("action.intended", run) == []
    return outcome.message


def remove_trigger(event: dict[str, Any]) -> dict[str, Any]:
    own = {"run_id", "trigger", "actor", "intent", "grant_id", "idempotency_key"}
    chain = [step.partition(":")[0] for step in event.get("chain", ())]
    return {**{name: value for name, value in event.items() if name not in own}, "chain": chain}


async def test_a_firing_does_what_a_call_does_and_is_recorded_so_but_for_trigger_and_actor(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.give_grant("crm", platform.alice)
    called_run = await platform.start_run("read_at_every_level", {**READ, "levels": 1}, platform.alice)
    by_call = await platform.wait_for_outcome(called_run)
    draft = plan_schedule(platform, "read_at_every_level", arguments={**READ, "levels": 1})
    schedule = await schedules.create_schedule(draft, platform.alice)

    run = await fire_schedule(schedules, schedule, platform)
    by_clock = await platform.wait_for_outcome(run)

    assert isinstance(by_clock, Finished)
    assert by_clock == by_call
    for kind in ("tool.called", "action.intended", "action.ended"):
        ours, theirs = (
            await platform.list_trail_events(kind, run),
            await platform.list_trail_events(kind, called_run),
        )
        assert [remove_trigger(event) for event in ours] == [remove_trigger(event) for event in theirs]
        assert {event["trigger"] for event in ours} == {"schedule"}
        assert [event["actor"] for event in ours] == len(ours) * [
            {"kind": "schedule", "id": schedule.id, "name": "Every leap day"}
        ]
    description = await platform.temporal.get_workflow_handle(run).describe()
    search_attributes = {
        name: values for name, values in description.search_attributes.items() if name.startswith("Byline")
    }
    assert search_attributes == {
        PRINCIPAL_ATTRIBUTE: ["Alice Liddell"],
        TOOL_ATTRIBUTE: ["read_at_every_level"],
        TRIGGER_ATTRIBUTE: ["schedule"],
        RUN_ATTRIBUTE: [run],
    }


async def test_what_lies_in_temporal_holds_no_identity_before_a_firing_is_given_its_own(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.give_grant("crm", platform.alice)
    schedule = await schedules.create_schedule(plan_schedule(platform), platform.alice)

    run = await fire_schedule(schedules, schedule, platform)
    await platform.wait_for_outcome(run)

    action = (await get_temporal_handle(platform, schedule).describe()).schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    assert not action.headers
    assert IDENTITY_HEADER not in await platform.fetch_headers(run)


async def test_a_firing_that_continues_as_new_keeps_its_name_and_is_enrolled_once(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.give_grant("crm", platform.alice)
    journey = {**READ, "continued": 2, "levels": 1}
    schedule = await schedules.create_schedule(
        plan_schedule(platform, "read_at_every_level", arguments=journey), platform.alice
    )

    run = await fire_schedule(schedules, schedule, platform)

    assert isinstance(await platform.wait_for_outcome(run), Finished)
    ended_events = await platform.list_trail_events("action.ended", run)
    assert [(event["principal"]["name"], len(event["chain"])) for event in ended_events] == [
        ("Alice Liddell", 2),
        ("Alice Liddell", 1),
    ]
    assert len(await platform.list_trail_events("tool.called", run)) == 1
    assert IDENTITY_HEADER in await platform.fetch_headers(run)
    assert await platform.count_events(run, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED) == 1


async def test_a_signal_that_comes_before_a_firing_has_its_name_waits_for_it(
    idle_platform: Platform, schedules: Schedules
) -> None:
    await idle_platform.give_grant("crm", idle_platform.alice)
    schedule = await schedules.create_schedule(
        plan_schedule(idle_platform, "read_when_told"), idle_platform.alice
    )
    run = await fire_schedule(schedules, schedule, idle_platform)
    await idle_platform.temporal.get_workflow_handle(run).signal("word")

    async with idle_platform.run_worker():
        assert isinstance(await idle_platform.wait_for_outcome(run), Finished)

    (ended_event,) = await idle_platform.list_trail_events("action.ended", run)
    assert ended_event["principal"]["name"] == "Alice Liddell"


async def test_a_firing_that_waits_asks_once_however_often_the_schedule_would_fire_meanwhile(
    platform: Platform, schedules: Schedules
) -> None:
    schedule = await schedules.create_schedule(plan_schedule(platform), platform.alice)
    run = await fire_schedule(schedules, schedule, platform)
    (request,) = await platform.wait_until_parked(run)

    for _ in range(2):
        await schedules.trigger_schedule(schedule.id, platform.alice)
    await wait_until(lambda: has_skipped(schedules, schedule, 2))

    assert await wait_until_fired(schedules, schedule) == [run]
    assert await platform.services.authorization_requests.list_open_requests(platform.alice.id) == [request]
    await platform.consent(request, platform.alice)
    assert isinstance(await platform.wait_for_outcome(run), Finished)


async def has_skipped(schedules: Schedules, schedule: Schedule, times: int) -> bool:
    return (await read_status(schedules, schedule)).skipped_count == times


async def test_a_firing_that_makes_room_for_the_next_one_waits_for_nobody_any_more(
    platform: Platform, schedules: Schedules
) -> None:
    timing = SOME_DAY.model_copy(update={"overlap": "cancel_other"})
    schedule = await schedules.create_schedule(plan_schedule(platform, timing=timing), platform.alice)
    first = await fire_schedule(schedules, schedule, platform)
    (request,) = await platform.wait_until_parked(first)

    second = await fire_schedule(schedules, schedule, platform)

    assert [awaited_request.id for awaited_request in await platform.wait_until_parked(second)] == [
        request.id
    ]
    assert isinstance(await platform.wait_for_outcome(first), Failed)
    assert [waiter.outcome for waiter in await platform.list_waiters(first)] == ["cancelled"]
    await platform.consent(request, platform.alice)
    assert isinstance(await platform.wait_for_outcome(second), Finished)


async def deactivate_owner(platform: Platform) -> None:
    await set_active(platform.services, platform.alice.id, is_active=False)


async def remove_reader_role(platform: Platform) -> None:
    await take_role(platform.services, platform.alice.id, "reader")


def build_policy(platform: Platform) -> Policy:
    rules = PolicyFile(tools={"read_once": ToolPolicy(roles=frozenset({"reader"}))})
    return Policy(lambda: rules, platform.services.roles)


@pytest.mark.parametrize(
    ("lapse", "error", "because"),
    [
        (deactivate_owner, PrincipalInactive, "Alice Liddell is not active here any more"),
        (remove_reader_role, NotAllowed, "Alice Liddell may not call read_once"),
    ],
)
async def test_whose_owner_may_not_any_more_pauses_at_its_next_firing_and_says_why(
    idle_platform: Platform, lapse: Callable[[Platform], Any], error: type[BylineError], because: str
) -> None:
    await idle_platform.give_grant("crm", idle_platform.alice)
    await give_role(idle_platform.services, idle_platform.alice.id, "reader")
    services = replace(idle_platform.services, policy=build_policy(idle_platform))
    schedules = Schedules(services, idle_platform.temporal)
    schedule = await schedules.create_schedule(plan_schedule(idle_platform), idle_platform.alice)
    await lapse(idle_platform)

    async with idle_platform.run_worker(policy=services.policy):
        await get_temporal_handle(idle_platform, schedule).backfill(ONE_DAY)
        (run,) = await wait_until_fired(schedules, schedule)
        assert because in await read_refusal(idle_platform, run, error)
        await get_temporal_handle(idle_platform, schedule).backfill(ANOTHER_DAY)
        (again, _) = await wait_until_fired(schedules, schedule, 2)
        assert because in await read_refusal(idle_platform, again, FiringRefused)

    stopped_schedule = await schedules.schedule_records.find_schedule(schedule.id)
    schedule_status = await read_status(schedules, schedule)
    assert stopped_schedule is not None
    assert because in str(stopped_schedule.paused_because)
    assert because in str(schedule_status.pause_note)
    assert schedule_status.is_paused
    (paused_event,) = await idle_platform.list_trail_events("schedule.paused")
    assert (paused_event["object_id"], paused_event["message"]) == (
        schedule.id,
        stopped_schedule.paused_because,
    )
    assert idle_platform.list_requests("crm") == []


def change_arguments(action: ScheduleActionStartWorkflow) -> None:
    action.args = [{"account_id": CONTOSO}]


def change_tool(action: ScheduleActionStartWorkflow) -> None:
    action.workflow = "read_locally"


def remove_call(action: ScheduleActionStartWorkflow) -> None:
    action.args = [READ, READ]


@pytest.mark.parametrize("alter", [change_arguments, change_tool, remove_call])
async def test_what_somebody_alters_in_temporal_is_not_done_in_the_owners_name(
    platform: Platform, schedules: Schedules, alter: Callable[[ScheduleActionStartWorkflow], None]
) -> None:
    await platform.give_grant("crm", platform.alice)
    schedule = await schedules.create_schedule(plan_schedule(platform), platform.alice)

    def alter_schedule(update_input: ScheduleUpdateInput) -> ScheduleUpdate:
        action = update_input.description.schedule.action
        assert isinstance(action, ScheduleActionStartWorkflow)
        alter(action)
        return ScheduleUpdate(update_input.description.schedule)

    await get_temporal_handle(platform, schedule).update(alter_schedule)
    run = await fire_schedule(schedules, schedule, platform)

    assert "not what its owner asked for" in await read_refusal(platform, run, FiringRefused)
    await schedules.resume_schedule(schedule.id, platform.alice, platform.registry.find_tool("read_once"))
    assert isinstance(
        await platform.wait_for_outcome(await fire_schedule(schedules, schedule, platform)), Finished
    )


async def start_as_a_firing(
    platform: Platform, schedule_id: str, run: str, arguments: Mapping[str, Any] = READ
) -> str:
    """Start a workflow by hand, and say of it what Temporal says of a schedule's firings."""
    payloads = await platform.temporal.data_converter.encode([arguments])
    mark = Payload(metadata=TEMPORALS_OWN, data=f'"{schedule_id}"'.encode())
    await platform.temporal.workflow_service.start_workflow_execution(
        StartWorkflowExecutionRequest(
            namespace=NAMESPACE,
            workflow_id=run,
            workflow_type=WorkflowType(name="read_once"),
            task_queue=TaskQueue(name=platform.settings.temporal.task_queue),
            input=Payloads(payloads=payloads),
            search_attributes=SearchAttributes(indexed_fields={SCHEDULED_BY_ATTRIBUTE: mark}),
            request_id=secrets.token_hex(16),
            workflow_task_timeout=Duration(seconds=10),
        )
    )
    return run


async def test_a_workflow_begun_by_hand_as_a_firing_does_once_what_the_schedule_does_and_nothing_else(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.give_grant("crm", platform.alice)
    schedule = await schedules.create_schedule(plan_schedule(platform), platform.alice)
    by_hand = f"{schedule.id}-2026-01-01T00:00:00Z"

    await start_as_a_firing(platform, schedule.id, by_hand)
    assert isinstance(await platform.wait_for_outcome(by_hand), Finished)
    (called_event,) = await platform.list_trail_events("tool.called", by_hand)
    assert (called_event["actor"]["id"], called_event["trigger"]) == (schedule.id, "schedule")
    before = platform.list_requests("crm")

    await start_as_a_firing(platform, schedule.id, by_hand)
    again = await platform.wait_for_outcome(by_hand)
    assert isinstance(again, Failed)
    assert "was begun before" in again.message
    other = f"{schedule.id}-2026-01-02T00:00:00Z"
    await start_as_a_firing(platform, schedule.id, other, {"account_id": CONTOSO})
    await read_refusal(platform, other, FiringRefused)
    stray = await start_as_a_firing(platform, schedule.id, f"elsewhere-{secrets.token_hex(4)}")
    assert "not on record" in await read_refusal(platform, stray, FiringRefused)
    unknown = await start_as_a_firing(
        platform, "schedule-of-nobody", "schedule-of-nobody-2026-01-01T00:00:00Z"
    )
    assert "not on record" in await read_refusal(platform, unknown, FiringRefused)
    assert platform.list_requests("crm") == before


async def test_a_firing_that_is_begun_again_under_its_own_id_is_refused(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.give_grant("crm", platform.alice)
    schedule = await schedules.create_schedule(plan_schedule(platform), platform.alice)
    run = await fire_schedule(schedules, schedule, platform)
    await platform.wait_for_outcome(run)

    await start_as_a_firing(platform, schedule.id, run)

    again = await platform.wait_for_outcome(run)
    (event,) = await platform.list_trail_events("run.refused", run)
    assert isinstance(again, Failed)
    assert again.code == event["error"] == FiringRefused.code
    assert len(platform.list_requests("crm")) == 1


async def test_the_step_that_names_firings_names_nothing_else(platform: Platform) -> None:
    handle = await platform.temporal.start_activity(
        ENROLL_ACTIVITY,
        id=f"alone-{secrets.token_hex(4)}",
        task_queue=platform.settings.temporal.task_queue,
        start_to_close_timeout=timedelta(seconds=20),
    )

    with pytest.raises(ActivityFailureError) as failure:
        await handle.result()

    assert getattr(failure.value.cause, "type", None) == IdentityMissing.code


async def test_a_schedule_passes_to_nobody_without_their_consent_and_then_uses_their_grants(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.give_grant("crm", platform.alice)
    await platform.give_grant("crm", platform.bob)
    schedule = await schedules.create_schedule(
        plan_schedule(platform, arguments={"account_id": CONTOSO}), platform.alice
    )
    with pytest.raises(ScheduleUnknown):
        await schedules.accept_schedule(schedule.id, platform.bob, schedule.version)

    offered_schedule = await schedules.offer_schedule(schedule.id, platform.alice, "Bob Baker")
    still_alices = await fire_schedule(schedules, schedule, platform)
    await platform.wait_for_outcome(still_alices)
    assert await schedules.accept_schedule(schedule.id, platform.bob, schedule.version) is None
    accepted_schedule = await schedules.accept_schedule(schedule.id, platform.bob, offered_schedule.version)
    bobs = await fire_schedule(schedules, schedule, platform)

    assert isinstance(await platform.wait_for_outcome(bobs), Finished)
    assert accepted_schedule is not None
    assert (accepted_schedule.principal_id, accepted_schedule.offered_to) == (platform.bob.id, None)
    accounts = [request["account"] for request in platform.list_requests("crm")]
    assert accounts == [platform.systems["crm"].find_account(name) for name in ("alice", "bob")]
    with pytest.raises(ScheduleUnknown):
        await schedules.trigger_schedule(schedule.id, platform.alice)
    (transferred_event,) = await platform.list_trail_events("schedule.transferred")
    assert transferred_event["principal"]["name"] == "Bob Baker"


async def test_an_administrator_hands_on_what_somebody_who_left_has_left_behind(
    platform: Platform, schedules: Schedules
) -> None:
    schedule = await schedules.create_schedule(plan_schedule(platform), platform.alice)
    await deactivate_owner(platform)
    carol = await platform.services.principals.resolve_principal("https://id.example", "carol", "Carol Clark")
    with pytest.raises(ScheduleUnknown):
        await schedules.offer_schedule(schedule.id, carol, "bob")

    await give_role(platform.services, carol.id, "administrator")
    offered_schedule = await schedules.offer_schedule(schedule.id, carol, "bob")
    await schedules.accept_schedule(schedule.id, platform.bob, offered_schedule.version)

    (mine,) = await schedules.schedule_records.list_schedules(platform.bob.id, limit=10)
    assert (mine.id, mine.principal_id) == (schedule.id, platform.bob.id)


@pytest.mark.parametrize("to", ["nobody", "Alice Liddell"])
async def test_a_schedule_is_offered_to_somebody_else_who_is_known(
    idle_platform: Platform, schedules: Schedules, to: str
) -> None:
    schedule = await schedules.create_schedule(plan_schedule(idle_platform), idle_platform.alice)

    with pytest.raises(NotAllowed, match="one other person"):
        await schedules.offer_schedule(schedule.id, idle_platform.alice, to)


async def test_the_timing_reaches_temporal_as_it_was_said(
    idle_platform: Platform, schedules: Schedules
) -> None:
    begin = datetime(2027, 1, 1, tzinfo=UTC)
    timing = Timing(
        cron=("30 7 * * mon-fri",),
        intervals=(Interval(every_seconds=5400, offset_seconds=600),),
        calendars=(Calendar(hour=(Range(start=9, end=17, step=4),), day_of_month=(Range(start=1),)),),
        skip=(Calendar(month=(Range(start=8),), hour=(Range(start=0, end=23),)),),
        time_zone="Europe/Berlin",
        jitter_seconds=90,
        starts_at=begin,
        ends_at=begin + timedelta(days=365),
        overlap="buffer_one",
        catch_up_seconds=120,
        pause_on_failure=True,
    )

    schedule = await schedules.create_schedule(
        plan_schedule(idle_platform, timing=timing), idle_platform.alice
    )

    description: ScheduleDescription = await get_temporal_handle(idle_platform, schedule).describe()
    spec, policy = description.schedule.spec, description.schedule.policy
    by_cron, by_calendar = sorted(spec.calendars, key=lambda spec_part: len(spec_part.minute), reverse=True)[
        :2
    ]
    hours = {spec_part.hour: spec_part for spec_part in (by_cron, by_calendar)}
    assert set(hours) == {(ScheduleRange(7),), (ScheduleRange(9, 17, 4),)}
    assert hours[(ScheduleRange(7),)].minute == (ScheduleRange(30),)
    assert hours[(ScheduleRange(7),)].day_of_week == (ScheduleRange(1, 5),)
    assert list(spec.intervals) == [ScheduleIntervalSpec(timedelta(minutes=90), timedelta(minutes=10))]
    assert [spec_part.month for spec_part in spec.skip] == [(ScheduleRange(8),)]
    assert (spec.time_zone_name, spec.jitter) == ("Europe/Berlin", timedelta(seconds=90))
    assert (spec.start_at, spec.end_at) == (begin, begin + timedelta(days=365))
    assert policy.overlap == ScheduleOverlapPolicy.BUFFER_ONE
    assert (policy.catchup_window, policy.pause_on_failure) == (timedelta(seconds=120), True)
    assert isinstance(spec.calendars[0], ScheduleCalendarSpec)


async def test_the_next_times_are_those_of_the_clock_in_its_time_zone(
    idle_platform: Platform, schedules: Schedules
) -> None:
    timing = Timing(cron=("30 7 * * *",), time_zone="America/New_York")

    schedule = await schedules.create_schedule(
        plan_schedule(idle_platform, timing=timing), idle_platform.alice
    )

    times = (await read_status(schedules, schedule)).next_times
    assert len(times) == 10
    assert {f"{time.astimezone(ZoneInfo('America/New_York')):%H:%M}" for time in times} == {"07:30"}


@pytest.mark.parametrize(
    "cron", ["*/5 0-6,22 * JAN-DEC/2 7", "0 0 1 1 * 2030", "15 0 0 1 1 * 2030", "@daily", "59 23 31 12 sun"]
)
async def test_a_cron_expression_that_is_taken_here_is_taken_by_temporal(
    idle_platform: Platform, schedules: Schedules, cron: str
) -> None:
    schedule = await schedules.create_schedule(
        plan_schedule(idle_platform, timing=Timing(cron=(cron,))), idle_platform.alice
    )

    assert await schedules.read_status(schedule) is not None


async def test_firings_of_a_time_that_is_past_are_made_up_for(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.give_grant("crm", platform.alice)
    daily = Timing(cron=("0 12 * * *",))
    schedule = await schedules.create_schedule(plan_schedule(platform, timing=daily), platform.alice)
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)

    period = Period(
        starts_at=noon - timedelta(hours=1), ends_at=noon + timedelta(days=2), overlap="allow_all"
    )
    await schedules.backfill_schedule(schedule.id, platform.alice, period)

    fired_runs = await wait_until_fired(schedules, schedule, 3)
    assert all([isinstance(await platform.wait_for_outcome(run), Finished) for run in fired_runs])
    assert len(platform.list_requests("crm")) == 3
    ahead = Period(starts_at=noon, ends_at=datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(TimingInvalid):
        await schedules.backfill_schedule(schedule.id, platform.alice, ahead)


async def test_a_paused_schedule_fires_for_nobody_until_its_owner_resumes_it(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.give_grant("crm", platform.alice)
    schedule = await schedules.create_schedule(plan_schedule(platform), platform.alice)

    await schedules.pause_schedule(schedule.id, platform.alice, "The books are closed.")
    with pytest.raises(SchedulePaused, match="The books are closed"):
        await schedules.trigger_schedule(schedule.id, platform.alice)
    await get_temporal_handle(platform, schedule).unpause()
    await get_temporal_handle(platform, schedule).trigger()
    (past_us,) = await wait_until_fired(schedules, schedule)
    assert "The books are closed" in await read_refusal(platform, past_us, FiringRefused)
    assert (await read_status(schedules, schedule)).is_paused

    await schedules.resume_schedule(schedule.id, platform.alice, platform.registry.find_tool("read_once"))
    assert isinstance(
        await platform.wait_for_outcome(await fire_schedule(schedules, schedule, platform)), Finished
    )


async def test_a_change_holds_from_the_next_firing_on_and_is_lost_to_no_other(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.give_grant("crm", platform.alice)
    await platform.give_grant("crm", platform.bob)
    schedule = await schedules.create_schedule(plan_schedule(platform), platform.alice)

    wider = plan_schedule(platform, "read_widely", arguments={**READ, "width": 2}, name="Widely")
    changed_schedule = await schedules.change_schedule(schedule.id, wider, platform.alice, schedule.version)
    outcome = await platform.wait_for_outcome(await fire_schedule(schedules, schedule, platform))

    assert changed_schedule is not None
    assert isinstance(outcome, Finished)
    assert len(outcome.value["names"]) == 2
    assert (
        await schedules.change_schedule(
            schedule.id, plan_schedule(platform), platform.alice, schedule.version
        )
        is None
    )
    with pytest.raises(ScheduleUnknown):
        await schedules.change_schedule(
            schedule.id, plan_schedule(platform), platform.bob, changed_schedule.version
        )
    with pytest.raises(ArgumentsInvalid):
        await schedules.change_schedule(
            schedule.id,
            plan_schedule(platform, arguments={"nothing": 1}),
            platform.alice,
            changed_schedule.version,
        )


async def test_a_schedule_that_was_made_by_half_is_made_whole_by_the_same_request(
    idle_platform: Platform, schedules: Schedules
) -> None:
    schedule = await schedules.create_schedule(
        plan_schedule(idle_platform), idle_platform.alice, idempotency_key="monday"
    )
    await get_temporal_handle(idle_platform, schedule).delete()
    assert await schedules.read_status(schedule) is None
    with pytest.raises(SchedulePaused, match="Temporal does not know"):
        await schedules.trigger_schedule(schedule.id, idle_platform.alice)

    again = await schedules.create_schedule(
        plan_schedule(idle_platform), idle_platform.alice, idempotency_key="monday"
    )

    assert again == schedule
    assert await schedules.read_status(schedule) is not None
    assert len(await idle_platform.list_trail_events("schedule.created")) == 1
    with pytest.raises(KeyReused):
        await schedules.create_schedule(
            plan_schedule(idle_platform, name="Another"), idle_platform.alice, idempotency_key="monday"
        )
    assert (
        await schedules.create_schedule(
            plan_schedule(idle_platform), idle_platform.bob, idempotency_key="monday"
        )
    ).id != schedule.id


async def test_who_is_stopped_by_command_has_their_schedules_paused_at_once(
    idle_platform: Platform, schedules: Schedules, tmp_path: Path
) -> None:
    byline = Commands(variables(idle_platform.settings, idle_platform.settings.temporal.task_queue), tmp_path)
    alices = [
        await schedules.create_schedule(plan_schedule(idle_platform), idle_platform.alice) for _ in range(2)
    ]
    bobs = await schedules.create_schedule(plan_schedule(idle_platform), idle_platform.bob)

    output = await byline.read_output("people", "deactivate", "Alice Liddell")

    assert "Their schedules are paused: 2" in output
    for schedule in alices:
        schedule_status = await read_status(schedules, schedule)
        assert (schedule_status.is_paused, schedule_status.pause_note) == (
            True,
            "Alice Liddell is not active here any more.",
        )
    assert not (await read_status(schedules, bobs)).is_paused


async def test_what_is_deleted_fires_no_more_and_leaves_its_runs_alone(
    platform: Platform, schedules: Schedules
) -> None:
    schedule = await schedules.create_schedule(plan_schedule(platform), platform.alice)
    run = await fire_schedule(schedules, schedule, platform)
    (request,) = await platform.wait_until_parked(run)

    assert not await schedules.delete_schedule(schedule.id, platform.alice, schedule.version + 1)
    assert await schedules.delete_schedule(schedule.id, platform.alice, schedule.version)

    assert await schedules.read_status(schedule) is None
    assert await schedules.schedule_records.find_schedule(schedule.id) is None
    await platform.consent(request, platform.alice)
    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert [event["object_id"] for event in await platform.list_trail_events("schedule.deleted")] == [
        schedule.id
    ]
