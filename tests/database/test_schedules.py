import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from engine.db.database import utc_now
from engine.identity.model import Principal, digest_call
from engine.schedules.schedule_records import Schedule, ScheduleContent, ScheduleRecords
from engine.schedules.timing import Interval, Timing
from engine.services import Services
from tests.support.commands import Commands

CONTENT = ScheduleContent("Nightly", "refund", {"amount": 5, "note": "Zoë"}, Timing(cron=("0 3 * * *",)))


@pytest.fixture
def records(services: Services) -> ScheduleRecords:
    return ScheduleRecords(services)


async def add_schedule(
    records: ScheduleRecords, owner: Principal, schedule_id: str = "schedule-1"
) -> Schedule:
    schedule = await records.add_schedule(schedule_id, owner, CONTENT)
    assert schedule is not None
    return schedule


async def list_kinds(services: Services) -> list[str]:
    return [line.kind for line in await services.trail.find_lines()]


async def test_a_schedule_is_read_by_every_process_as_it_was_noted(
    records: ScheduleRecords, other: Services, alice: Principal
) -> None:
    schedule = await add_schedule(records, alice)

    read = await ScheduleRecords(other).find_schedule(schedule.id)

    assert read == schedule
    assert read is not None
    assert read.call_digest == digest_call("refund", {"note": "Zoë", "amount": 5})
    assert read.timing == CONTENT.timing


async def test_an_id_is_taken_once(
    records: ScheduleRecords, services: Services, alice: Principal, bob: Principal
) -> None:
    await add_schedule(records, alice)

    assert await records.add_schedule("schedule-1", bob, CONTENT) is None
    assert await list_kinds(services) == ["schedule.created"]


async def test_of_two_changes_of_one_version_one_is_made(
    records: ScheduleRecords, services: Services, other: Services, alice: Principal
) -> None:
    schedule = await add_schedule(records, alice)
    wanted_columns = replace(CONTENT, timing=Timing(intervals=(Interval(every_seconds=60),))).to_columns()

    both = await asyncio.gather(
        records.change_schedule(schedule.id, "schedule.changed", alice, wanted_columns, schedule.version),
        ScheduleRecords(other).change_schedule(
            schedule.id, "schedule.changed", alice, wanted_columns, schedule.version
        ),
    )

    (changed_schedule,) = [result for result in both if result is not None]
    assert changed_schedule.version == schedule.version + 1
    assert await records.find_schedule(schedule.id) == changed_schedule
    assert await list_kinds(services) == ["schedule.created", "schedule.changed"]


async def test_a_list_holds_what_is_mine_and_what_is_offered_to_me_in_pages(
    records: ScheduleRecords, alice: Principal, bob: Principal
) -> None:
    mine = [await add_schedule(records, alice, f"mine-{number}") for number in range(3)]
    theirs = await add_schedule(records, bob, "theirs")
    await add_schedule(records, bob, "not-mine")
    await records.change_schedule(theirs.id, "schedule.offered", bob, {"offered_to": alice.id})

    first = await records.list_schedules(alice.id, limit=2)
    rest = await records.list_schedules(alice.id, limit=9, page_cursor=(first[-1].created_at, first[-1].id))

    assert [schedule.id for schedule in (*first, *rest)] == [
        "theirs",
        *(schedule.id for schedule in reversed(mine)),
    ]
    assert await records.list_schedules(alice.id, limit=9, tool_names={"another"}) == []


async def test_firings_by_hand_are_named_after_seconds_that_differ(
    records: ScheduleRecords, other: Services, alice: Principal
) -> None:
    await add_schedule(records, alice)

    moments = await asyncio.gather(
        *(
            record_store.reserve_trigger_time("schedule-1")
            for record_store in 5 * (records, ScheduleRecords(other))
        )
    )

    reserved_times = sorted(moment for moment in moments if moment is not None)
    assert len(set(reserved_times)) == 10
    assert all(moment.microsecond == 0 for moment in reserved_times)
    assert reserved_times[0] > utc_now() - timedelta(minutes=1)
    assert await records.reserve_trigger_time("unknown") is None


async def test_what_is_forgotten_is_gone_and_in_the_trail(
    records: ScheduleRecords, services: Services, alice: Principal
) -> None:
    schedule = await add_schedule(records, alice)

    await records.delete_schedule(schedule, alice)

    assert await records.find_schedule(schedule.id) is None
    assert (
        await records.change_schedule(schedule.id, "schedule.paused", alice, {"paused_because": "…"}) is None
    )
    assert await list_kinds(services) == ["schedule.created", "schedule.deleted"]


async def test_who_is_stopped_has_their_schedules_paused_on_record_though_temporal_does_not_answer(
    records: ScheduleRecords, alice: Principal, bob: Principal, commands: Commands
) -> None:
    alices, bobs = await add_schedule(records, alice, "alices"), await add_schedule(records, bob, "bobs")
    nowhere = replace(
        commands, environment={**commands.environment, "BYLINE_TEMPORAL__ADDRESS": "127.0.0.1:1"}
    )

    output = await nowhere.read_output("people", "deactivate", alice.id)

    assert "Their schedules are paused: 1. Temporal does not answer" in output
    stopped_schedule = await records.find_schedule(alices.id)
    assert stopped_schedule is not None
    assert stopped_schedule.paused_because == "Alice Adams is not active here any more."
    assert await records.find_schedule(bobs.id) == bobs
