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
from tests.administration import give_role, set_active, take_role
from tests.data.commands import Commands
from tests.platform import CONTOSO, NAMESPACE, NORTHWIND, Platform, until, variables

READ: Mapping[str, Any] = {"account_id": NORTHWIND}
SOME_DAY = Timing(cron=("0 0 29 2 *",))
ONE_DAY, ANOTHER_DAY = (
    ScheduleBackfill(datetime(year, 2, 28, 12, tzinfo=UTC), datetime(year, 3, 1, tzinfo=UTC))
    for year in (2020, 2024)
)
TEMPORALS_OWN = {"encoding": b"json/plain", "type": b"Keyword"}


def plan(platform: Platform, tool: str = "read_once", **said: Any) -> ScheduleDraft:
    return ScheduleDraft(
        said.get("name", "Every leap day"),
        platform.registry.find_tool(tool),
        said.get("arguments", READ),
        said.get("timing", SOME_DAY),
    )


@pytest.fixture
def schedules(idle: Platform) -> Schedules:
    return Schedules(idle.services, idle.temporal)


def in_temporal(platform: Platform, schedule: Schedule) -> ScheduleHandle:
    return platform.temporal.get_schedule_handle(schedule.id)


async def dial(schedules: Schedules, schedule: Schedule) -> ScheduleStatus:
    found = await schedules.read_status(schedule)
    assert found is not None
    return found


async def fired(schedules: Schedules, schedule: Schedule, times: int = 1) -> list[str]:
    """The runs of a schedule, newest first, once it has fired this often."""

    async def has_fired() -> bool:
        return len((await dial(schedules, schedule)).recent_firings) >= times

    await until(has_fired)
    return [firing.run_id for firing in (await dial(schedules, schedule)).recent_firings]


async def fire(schedules: Schedules, schedule: Schedule, platform: Platform) -> str:
    """Fire as whoever owns it now, and give the run's id."""
    before = len((await dial(schedules, schedule)).recent_firings)
    current = await schedules.schedule_records.find_schedule(schedule.id)
    assert current is not None
    owner = await platform.services.principals.find_principal(current.principal_id)
    assert owner is not None
    await schedules.trigger_schedule(schedule.id, owner)
    return (await fired(schedules, schedule, before + 1))[0]


async def refused(platform: Platform, run: str, error: type[BylineError]) -> str:
    """The message of a firing's refusal, which its outcome and the trail must agree on."""
    outcome = await platform.outcome(run)
    (event,) = await platform.trail("run.refused", run)
    assert isinstance(outcome, Failed), outcome
    assert outcome.code == event["error"] == error.code
    assert outcome.message == event["message"]
    assert await platform.trail("tool.called", run) == []
    assert await platform.trail("action.intended", run) == []
    return outcome.message


def but_for_the_trigger(event: dict[str, Any]) -> dict[str, Any]:
    own = {"run_id", "trigger", "actor", "intent", "grant_id", "idempotency_key"}
    chain = [step.partition(":")[0] for step in event.get("chain", ())]
    return {**{name: value for name, value in event.items() if name not in own}, "chain": chain}


async def test_a_firing_does_what_a_call_does_and_is_told_so_but_for_trigger_and_actor(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.grant("crm", platform.alice)
    called = await platform.start("read_at_every_level", {**READ, "levels": 1}, platform.alice)
    by_call = await platform.outcome(called)
    wanted = plan(platform, "read_at_every_level", arguments={**READ, "levels": 1})
    schedule = await schedules.create_schedule(wanted, platform.alice)

    run = await fire(schedules, schedule, platform)
    by_clock = await platform.outcome(run)

    assert isinstance(by_clock, Finished)
    assert by_clock == by_call
    for kind in ("tool.called", "action.intended", "action.ended"):
        ours, theirs = await platform.trail(kind, run), await platform.trail(kind, called)
        assert [but_for_the_trigger(event) for event in ours] == [
            but_for_the_trigger(event) for event in theirs
        ]
        assert {event["trigger"] for event in ours} == {"schedule"}
        assert [event["actor"] for event in ours] == len(ours) * [
            {"kind": "schedule", "id": schedule.id, "name": "Every leap day"}
        ]
    described = await platform.temporal.get_workflow_handle(run).describe()
    found = {
        name: values for name, values in described.search_attributes.items() if name.startswith("Byline")
    }
    assert found == {
        PRINCIPAL_ATTRIBUTE: ["Alice Liddell"],
        TOOL_ATTRIBUTE: ["read_at_every_level"],
        TRIGGER_ATTRIBUTE: ["schedule"],
        RUN_ATTRIBUTE: [run],
    }


async def test_what_lies_in_temporal_holds_no_identity_before_a_firing_is_given_its_own(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.grant("crm", platform.alice)
    schedule = await schedules.create_schedule(plan(platform), platform.alice)

    run = await fire(schedules, schedule, platform)
    await platform.outcome(run)

    action = (await in_temporal(platform, schedule).describe()).schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    assert not action.headers
    assert IDENTITY_HEADER not in await platform.headers(run)


async def test_a_firing_that_continues_as_new_keeps_its_name_and_is_enrolled_once(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.grant("crm", platform.alice)
    journey = {**READ, "continued": 2, "levels": 1}
    schedule = await schedules.create_schedule(
        plan(platform, "read_at_every_level", arguments=journey), platform.alice
    )

    run = await fire(schedules, schedule, platform)

    assert isinstance(await platform.outcome(run), Finished)
    ended = await platform.trail("action.ended", run)
    assert [(event["principal"]["name"], len(event["chain"])) for event in ended] == [
        ("Alice Liddell", 2),
        ("Alice Liddell", 1),
    ]
    assert len(await platform.trail("tool.called", run)) == 1
    assert IDENTITY_HEADER in await platform.headers(run)
    assert await platform.count(run, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED) == 1


async def test_a_signal_that_comes_before_a_firing_has_its_name_waits_for_it(
    idle: Platform, schedules: Schedules
) -> None:
    await idle.grant("crm", idle.alice)
    schedule = await schedules.create_schedule(plan(idle, "read_when_told"), idle.alice)
    run = await fire(schedules, schedule, idle)
    await idle.temporal.get_workflow_handle(run).signal("word")

    async with idle.working():
        assert isinstance(await idle.outcome(run), Finished)

    (ended,) = await idle.trail("action.ended", run)
    assert ended["principal"]["name"] == "Alice Liddell"


async def test_a_firing_that_waits_asks_once_however_often_the_schedule_would_fire_meanwhile(
    platform: Platform, schedules: Schedules
) -> None:
    schedule = await schedules.create_schedule(plan(platform), platform.alice)
    run = await fire(schedules, schedule, platform)
    (request,) = await platform.parked(run)

    for _ in range(2):
        await schedules.trigger_schedule(schedule.id, platform.alice)
    await until(lambda: skipped(schedules, schedule, 2))

    assert await fired(schedules, schedule) == [run]
    assert await platform.services.authorization_requests.list_open_requests(platform.alice.id) == [request]
    await platform.consent(request, platform.alice)
    assert isinstance(await platform.outcome(run), Finished)


async def skipped(schedules: Schedules, schedule: Schedule, times: int) -> bool:
    return (await dial(schedules, schedule)).skipped_count == times


async def test_a_firing_that_makes_room_for_the_next_one_waits_for_nobody_any_more(
    platform: Platform, schedules: Schedules
) -> None:
    timing = SOME_DAY.model_copy(update={"overlap": "cancel_other"})
    schedule = await schedules.create_schedule(plan(platform, timing=timing), platform.alice)
    first = await fire(schedules, schedule, platform)
    (request,) = await platform.parked(first)

    second = await fire(schedules, schedule, platform)

    assert [asked.id for asked in await platform.parked(second)] == [request.id]
    assert isinstance(await platform.outcome(first), Failed)
    assert [waiter.outcome for waiter in await platform.waiters(first)] == ["cancelled"]
    await platform.consent(request, platform.alice)
    assert isinstance(await platform.outcome(second), Finished)


async def deactivated(platform: Platform) -> None:
    await set_active(platform.services, platform.alice.id, is_active=False)


async def deprived(platform: Platform) -> None:
    await take_role(platform.services, platform.alice.id, "reader")


def policed(platform: Platform) -> Policy:
    rules = PolicyFile(tools={"read_once": ToolPolicy(roles=frozenset({"reader"}))})
    return Policy(lambda: rules, platform.services.roles)


@pytest.mark.parametrize(
    ("lapse", "error", "because"),
    [
        (deactivated, PrincipalInactive, "Alice Liddell is not active here any more"),
        (deprived, NotAllowed, "Alice Liddell may not call read_once"),
    ],
)
async def test_whose_owner_may_not_any_more_pauses_at_its_next_firing_and_says_why(
    idle: Platform, lapse: Callable[[Platform], Any], error: type[BylineError], because: str
) -> None:
    await idle.grant("crm", idle.alice)
    await give_role(idle.services, idle.alice.id, "reader")
    services = replace(idle.services, policy=policed(idle))
    schedules = Schedules(services, idle.temporal)
    schedule = await schedules.create_schedule(plan(idle), idle.alice)
    await lapse(idle)

    async with idle.working(policy=services.policy):
        await in_temporal(idle, schedule).backfill(ONE_DAY)
        (run,) = await fired(schedules, schedule)
        assert because in await refused(idle, run, error)
        await in_temporal(idle, schedule).backfill(ANOTHER_DAY)
        (again, _) = await fired(schedules, schedule, 2)
        assert because in await refused(idle, again, FiringRefused)

    stopped = await schedules.schedule_records.find_schedule(schedule.id)
    shown = await dial(schedules, schedule)
    assert stopped is not None
    assert because in str(stopped.paused_because)
    assert because in str(shown.pause_note)
    assert shown.is_paused
    (paused,) = await idle.trail("schedule.paused")
    assert (paused["object_id"], paused["message"]) == (schedule.id, stopped.paused_because)
    assert idle.requests("crm") == []


def other_arguments(action: ScheduleActionStartWorkflow) -> None:
    action.args = [{"account_id": CONTOSO}]


def another_tool(action: ScheduleActionStartWorkflow) -> None:
    action.workflow = "read_locally"


def no_call_at_all(action: ScheduleActionStartWorkflow) -> None:
    action.args = [READ, READ]


@pytest.mark.parametrize("alter", [other_arguments, another_tool, no_call_at_all])
async def test_what_somebody_alters_in_temporal_is_not_done_in_the_owners_name(
    platform: Platform, schedules: Schedules, alter: Callable[[ScheduleActionStartWorkflow], None]
) -> None:
    await platform.grant("crm", platform.alice)
    schedule = await schedules.create_schedule(plan(platform), platform.alice)

    def altered(known: ScheduleUpdateInput) -> ScheduleUpdate:
        action = known.description.schedule.action
        assert isinstance(action, ScheduleActionStartWorkflow)
        alter(action)
        return ScheduleUpdate(known.description.schedule)

    await in_temporal(platform, schedule).update(altered)
    run = await fire(schedules, schedule, platform)

    assert "not what its owner asked for" in await refused(platform, run, FiringRefused)
    await schedules.resume_schedule(schedule.id, platform.alice, platform.registry.find_tool("read_once"))
    assert isinstance(await platform.outcome(await fire(schedules, schedule, platform)), Finished)


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
    await platform.grant("crm", platform.alice)
    schedule = await schedules.create_schedule(plan(platform), platform.alice)
    by_hand = f"{schedule.id}-2026-01-01T00:00:00Z"

    await start_as_a_firing(platform, schedule.id, by_hand)
    assert isinstance(await platform.outcome(by_hand), Finished)
    (called,) = await platform.trail("tool.called", by_hand)
    assert (called["actor"]["id"], called["trigger"]) == (schedule.id, "schedule")
    before = platform.requests("crm")

    await start_as_a_firing(platform, schedule.id, by_hand)
    again = await platform.outcome(by_hand)
    assert isinstance(again, Failed)
    assert "was begun before" in again.message
    other = f"{schedule.id}-2026-01-02T00:00:00Z"
    await start_as_a_firing(platform, schedule.id, other, {"account_id": CONTOSO})
    await refused(platform, other, FiringRefused)
    stray = await start_as_a_firing(platform, schedule.id, f"elsewhere-{secrets.token_hex(4)}")
    assert "not on record" in await refused(platform, stray, FiringRefused)
    unknown = await start_as_a_firing(
        platform, "schedule-of-nobody", "schedule-of-nobody-2026-01-01T00:00:00Z"
    )
    assert "not on record" in await refused(platform, unknown, FiringRefused)
    assert platform.requests("crm") == before


async def test_a_firing_that_is_begun_again_under_its_own_id_is_refused(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.grant("crm", platform.alice)
    schedule = await schedules.create_schedule(plan(platform), platform.alice)
    run = await fire(schedules, schedule, platform)
    await platform.outcome(run)

    await start_as_a_firing(platform, schedule.id, run)

    again = await platform.outcome(run)
    (event,) = await platform.trail("run.refused", run)
    assert isinstance(again, Failed)
    assert again.code == event["error"] == FiringRefused.code
    assert len(platform.requests("crm")) == 1


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
    await platform.grant("crm", platform.alice)
    await platform.grant("crm", platform.bob)
    made = await schedules.create_schedule(plan(platform, arguments={"account_id": CONTOSO}), platform.alice)
    with pytest.raises(ScheduleUnknown):
        await schedules.accept_schedule(made.id, platform.bob, made.version)

    offered = await schedules.offer_schedule(made.id, platform.alice, "Bob Baker")
    still_alices = await fire(schedules, made, platform)
    await platform.outcome(still_alices)
    assert await schedules.accept_schedule(made.id, platform.bob, made.version) is None
    taken = await schedules.accept_schedule(made.id, platform.bob, offered.version)
    bobs = await fire(schedules, made, platform)

    assert isinstance(await platform.outcome(bobs), Finished)
    assert taken is not None
    assert (taken.principal_id, taken.offered_to) == (platform.bob.id, None)
    accounts = [request["account"] for request in platform.requests("crm")]
    assert accounts == [platform.systems["crm"].account(name) for name in ("alice", "bob")]
    with pytest.raises(ScheduleUnknown):
        await schedules.trigger_schedule(made.id, platform.alice)
    (transferred,) = await platform.trail("schedule.transferred")
    assert transferred["principal"]["name"] == "Bob Baker"


async def test_an_administrator_hands_on_what_somebody_who_left_has_left_behind(
    platform: Platform, schedules: Schedules
) -> None:
    made = await schedules.create_schedule(plan(platform), platform.alice)
    await deactivated(platform)
    carol = await platform.services.principals.resolve_principal("https://id.example", "carol", "Carol Clark")
    with pytest.raises(ScheduleUnknown):
        await schedules.offer_schedule(made.id, carol, "bob")

    await give_role(platform.services, carol.id, "administrator")
    offered = await schedules.offer_schedule(made.id, carol, "bob")
    await schedules.accept_schedule(made.id, platform.bob, offered.version)

    (mine,) = await schedules.schedule_records.list_schedules(platform.bob.id, limit=10)
    assert (mine.id, mine.principal_id) == (made.id, platform.bob.id)


@pytest.mark.parametrize("to", ["nobody", "Alice Liddell"])
async def test_a_schedule_is_offered_to_somebody_else_who_is_known(
    idle: Platform, schedules: Schedules, to: str
) -> None:
    made = await schedules.create_schedule(plan(idle), idle.alice)

    with pytest.raises(NotAllowed, match="one other person"):
        await schedules.offer_schedule(made.id, idle.alice, to)


async def test_the_timing_reaches_temporal_as_it_was_said(idle: Platform, schedules: Schedules) -> None:
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

    made = await schedules.create_schedule(plan(idle, timing=timing), idle.alice)

    described: ScheduleDescription = await in_temporal(idle, made).describe()
    spec, policy = described.schedule.spec, described.schedule.policy
    by_cron, by_calendar = sorted(spec.calendars, key=lambda each: len(each.minute), reverse=True)[:2]
    hours = {each.hour: each for each in (by_cron, by_calendar)}
    assert set(hours) == {(ScheduleRange(7),), (ScheduleRange(9, 17, 4),)}
    assert hours[(ScheduleRange(7),)].minute == (ScheduleRange(30),)
    assert hours[(ScheduleRange(7),)].day_of_week == (ScheduleRange(1, 5),)
    assert list(spec.intervals) == [ScheduleIntervalSpec(timedelta(minutes=90), timedelta(minutes=10))]
    assert [each.month for each in spec.skip] == [(ScheduleRange(8),)]
    assert (spec.time_zone_name, spec.jitter) == ("Europe/Berlin", timedelta(seconds=90))
    assert (spec.start_at, spec.end_at) == (begin, begin + timedelta(days=365))
    assert policy.overlap == ScheduleOverlapPolicy.BUFFER_ONE
    assert (policy.catchup_window, policy.pause_on_failure) == (timedelta(seconds=120), True)
    assert isinstance(spec.calendars[0], ScheduleCalendarSpec)


async def test_the_next_times_are_those_of_the_clock_in_its_time_zone(
    idle: Platform, schedules: Schedules
) -> None:
    timing = Timing(cron=("30 7 * * *",), time_zone="America/New_York")

    made = await schedules.create_schedule(plan(idle, timing=timing), idle.alice)

    times = (await dial(schedules, made)).next_times
    assert len(times) == 10
    assert {f"{time.astimezone(ZoneInfo('America/New_York')):%H:%M}" for time in times} == {"07:30"}


@pytest.mark.parametrize(
    "cron", ["*/5 0-6,22 * JAN-DEC/2 7", "0 0 1 1 * 2030", "15 0 0 1 1 * 2030", "@daily", "59 23 31 12 sun"]
)
async def test_a_cron_expression_that_is_taken_here_is_taken_by_temporal(
    idle: Platform, schedules: Schedules, cron: str
) -> None:
    made = await schedules.create_schedule(plan(idle, timing=Timing(cron=(cron,))), idle.alice)

    assert await schedules.read_status(made) is not None


async def test_firings_of_a_time_that_is_past_are_made_up_for(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.grant("crm", platform.alice)
    daily = Timing(cron=("0 12 * * *",))
    made = await schedules.create_schedule(plan(platform, timing=daily), platform.alice)
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)

    period = Period(
        starts_at=noon - timedelta(hours=1), ends_at=noon + timedelta(days=2), overlap="allow_all"
    )
    await schedules.backfill_schedule(made.id, platform.alice, period)

    done = await fired(schedules, made, 3)
    assert all([isinstance(await platform.outcome(run), Finished) for run in done])
    assert len(platform.requests("crm")) == 3
    ahead = Period(starts_at=noon, ends_at=datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(TimingInvalid):
        await schedules.backfill_schedule(made.id, platform.alice, ahead)


async def test_a_paused_schedule_fires_for_nobody_until_its_owner_resumes_it(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.grant("crm", platform.alice)
    made = await schedules.create_schedule(plan(platform), platform.alice)

    await schedules.pause_schedule(made.id, platform.alice, "The books are closed.")
    with pytest.raises(SchedulePaused, match="The books are closed"):
        await schedules.trigger_schedule(made.id, platform.alice)
    await in_temporal(platform, made).unpause()
    await in_temporal(platform, made).trigger()
    (past_us,) = await fired(schedules, made)
    assert "The books are closed" in await refused(platform, past_us, FiringRefused)
    assert (await dial(schedules, made)).is_paused

    await schedules.resume_schedule(made.id, platform.alice, platform.registry.find_tool("read_once"))
    assert isinstance(await platform.outcome(await fire(schedules, made, platform)), Finished)


async def test_a_change_holds_from_the_next_firing_on_and_is_lost_to_no_other(
    platform: Platform, schedules: Schedules
) -> None:
    await platform.grant("crm", platform.alice)
    await platform.grant("crm", platform.bob)
    made = await schedules.create_schedule(plan(platform), platform.alice)

    wider = plan(platform, "read_widely", arguments={**READ, "width": 2}, name="Widely")
    changed = await schedules.change_schedule(made.id, wider, platform.alice, made.version)
    outcome = await platform.outcome(await fire(schedules, made, platform))

    assert changed is not None
    assert isinstance(outcome, Finished)
    assert len(outcome.value["names"]) == 2
    assert await schedules.change_schedule(made.id, plan(platform), platform.alice, made.version) is None
    with pytest.raises(ScheduleUnknown):
        await schedules.change_schedule(made.id, plan(platform), platform.bob, changed.version)
    with pytest.raises(ArgumentsInvalid):
        await schedules.change_schedule(
            made.id, plan(platform, arguments={"nothing": 1}), platform.alice, changed.version
        )


async def test_a_schedule_that_was_made_by_half_is_made_whole_by_the_same_request(
    idle: Platform, schedules: Schedules
) -> None:
    made = await schedules.create_schedule(plan(idle), idle.alice, idempotency_key="monday")
    await in_temporal(idle, made).delete()
    assert await schedules.read_status(made) is None
    with pytest.raises(SchedulePaused, match="Temporal does not know"):
        await schedules.trigger_schedule(made.id, idle.alice)

    again = await schedules.create_schedule(plan(idle), idle.alice, idempotency_key="monday")

    assert again == made
    assert await schedules.read_status(made) is not None
    assert len(await idle.trail("schedule.created")) == 1
    with pytest.raises(KeyReused):
        await schedules.create_schedule(plan(idle, name="Another"), idle.alice, idempotency_key="monday")
    assert (await schedules.create_schedule(plan(idle), idle.bob, idempotency_key="monday")).id != made.id


async def test_who_is_stopped_by_command_has_their_schedules_paused_at_once(
    idle: Platform, schedules: Schedules, tmp_path: Path
) -> None:
    byline = Commands(variables(idle.settings, idle.settings.temporal.task_queue), tmp_path)
    alices = [await schedules.create_schedule(plan(idle), idle.alice) for _ in range(2)]
    bobs = await schedules.create_schedule(plan(idle), idle.bob)

    said = await byline.answer("people", "deactivate", "Alice Liddell")

    assert "Their schedules are paused: 2" in said
    for schedule in alices:
        shown = await dial(schedules, schedule)
        assert (shown.is_paused, shown.pause_note) == (True, "Alice Liddell is not active here any more.")
    assert not (await dial(schedules, bobs)).is_paused


async def test_what_is_deleted_fires_no_more_and_leaves_its_runs_alone(
    platform: Platform, schedules: Schedules
) -> None:
    made = await schedules.create_schedule(plan(platform), platform.alice)
    run = await fire(schedules, made, platform)
    (request,) = await platform.parked(run)

    assert not await schedules.delete_schedule(made.id, platform.alice, made.version + 1)
    assert await schedules.delete_schedule(made.id, platform.alice, made.version)

    assert await schedules.read_status(made) is None
    assert await schedules.schedule_records.find_schedule(made.id) is None
    await platform.consent(request, platform.alice)
    assert isinstance(await platform.outcome(run), Finished)
    assert [event["object_id"] for event in await platform.trail("schedule.deleted")] == [made.id]
