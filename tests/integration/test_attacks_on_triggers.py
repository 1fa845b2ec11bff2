"""Attacks the doors beside chat: what one person, token or sender tries with another's schedule, run or name."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from engine.callers.api_tokens import MAX_ACTIVE_TOKENS
from engine.errors import ApiTokenInvalid, ArgumentsInvalid, ScheduleUnknown, TimingInvalid
from engine.identity.model import Principal
from engine.identity.roles import ADMINISTRATOR_ROLE
from engine.policy.policy import Policy, PolicyFile
from engine.schedules.schedule_records import Schedule
from engine.schedules.schedules import MAX_SCHEDULES, ScheduleDraft, Schedules
from engine.schedules.timing import Interval, Period, Timing
from gateway.api.events import MAX_STREAMS_PER_PRINCIPAL
from gateway.protected_resource import API_PATH
from tests.administration import give_role
from tests.platform import CONTOSO, NORTHWIND, Platform, until
from tests.rest import Rest, serving

SOME_DAY = Timing(cron=("0 0 29 2 *",))
READING = {"account_id": NORTHWIND}


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    async with serving(platform) as gateway:
        yield gateway


@asynccontextmanager
async def bearing(rest: Rest, token: str) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(base_url=f"{rest.url}{API_PATH}", headers=headers, timeout=90) as client:
        yield client


def plan(platform: Platform, account: str = NORTHWIND, timing: Timing = SOME_DAY) -> ScheduleDraft:
    return ScheduleDraft(
        "Leap days", platform.registry.find_tool("read_once"), {"account_id": account}, timing
    )


class Interrupted(Policy):
    """The policy, asked just as something else happens."""

    def __init__(self, platform: Platform, meanwhile: Callable[[], Awaitable[object]]) -> None:
        super().__init__(PolicyFile, platform.services.roles)
        self._meanwhile = meanwhile

    async def filter_allowed_tools(self, principal: Principal, tool_names: Iterable[str]) -> list[str]:
        await self._meanwhile()
        return await super().filter_allowed_tools(principal, tool_names)


async def test_who_hands_a_schedule_over_cannot_change_it_in_the_moment_in_which_it_is_taken(
    idle: Platform,
) -> None:
    schedules = Schedules(idle.services, idle.temporal)
    made = await schedules.create_schedule(plan(idle), idle.alice)
    offered = await schedules.offer_schedule(made.id, idle.alice, "Bob Baker")
    accepting = Interrupted(idle, lambda: schedules.accept_schedule(made.id, idle.bob, offered.version))
    racing = Schedules(replace(idle.services, policy=accepting), idle.temporal)

    changed = await racing.change_schedule(made.id, plan(idle, CONTOSO), idle.alice, offered.version + 1)

    taken = await _if_offered(schedules, made.id, idle.bob, offered.version)
    assert changed is None
    assert taken is not None
    assert (taken.principal_id, taken.arguments) == (idle.bob.id, {"account_id": NORTHWIND})


async def test_an_offer_that_is_taken_back_in_that_moment_is_accepted_by_nobody(idle: Platform) -> None:
    schedules = Schedules(idle.services, idle.temporal)
    made = await schedules.create_schedule(plan(idle), idle.alice)
    offered = await schedules.offer_schedule(made.id, idle.alice, "Bob Baker")
    taking_back = Interrupted(idle, lambda: schedules.offer_schedule(made.id, idle.alice, None))
    racing = Schedules(replace(idle.services, policy=taking_back), idle.temporal)

    accepted = await racing.accept_schedule(made.id, idle.bob, offered.version + 1)

    still_alices = await schedules.schedule_records.find_schedule(made.id)
    assert still_alices is not None
    assert (accepted, still_alices.principal_id) == (None, idle.alice.id)


async def test_a_schedule_that_changed_hands_meanwhile_is_resumed_by_its_new_owner_alone(
    idle: Platform,
) -> None:
    schedules = Schedules(idle.services, idle.temporal)
    made = await schedules.create_schedule(plan(idle), idle.alice)
    await schedules.pause_schedule(made.id, idle.alice)
    offered = await schedules.offer_schedule(made.id, idle.alice, "Bob Baker")
    accepting = Interrupted(idle, lambda: _if_offered(schedules, made.id, idle.bob, offered.version))
    racing = Schedules(replace(idle.services, policy=accepting), idle.temporal)

    with pytest.raises(ScheduleUnknown):
        await racing.resume_schedule(made.id, idle.alice, idle.registry.find_tool("read_once"))

    now_bobs = await schedules.schedule_records.find_schedule(made.id)
    assert now_bobs is not None
    assert now_bobs.paused_because is not None


async def _if_offered(schedules: Schedules, schedule_id: str, by: Principal, version: int) -> Schedule | None:
    """The schedule once it was taken over, now or before."""
    known = await schedules.schedule_records.find_schedule(schedule_id)
    if known is None or known.offered_to != by.id:
        return known
    return await schedules.accept_schedule(schedule_id, by, version)


async def test_what_one_owner_set_off_fires_no_more_in_the_name_of_the_next(idle: Platform) -> None:
    schedules = Schedules(idle.services, idle.temporal)
    daily = Timing(cron=("0 12 * * *",), overlap="buffer_all")
    made = await schedules.create_schedule(plan(idle, timing=daily), idle.alice)
    offered = await schedules.offer_schedule(made.id, idle.alice, "Bob Baker")
    now = datetime.now(UTC)
    month = Period(starts_at=now - timedelta(days=30), ends_at=now)
    await schedules.backfill_schedule(made.id, idle.alice, month)

    async def owed() -> int:
        found = await idle.temporal.get_schedule_handle(made.id).describe()
        return int(found.raw_description.info.buffer_size)

    await until(owed)
    taken = await schedules.accept_schedule(made.id, idle.bob, offered.version)

    assert taken is not None
    assert await owed() == 0
    dial = await schedules.read_status(taken)
    assert dial is not None
    assert dial.next_times


async def test_a_time_that_is_past_is_made_up_for_in_no_more_firings_than_somebody_can_mean(
    idle: Platform,
) -> None:
    schedules = Schedules(idle.services, idle.temporal)
    each_second = plan(idle, timing=Timing(intervals=(Interval(every_seconds=1),)))
    made = await schedules.create_schedule(each_second, idle.alice)
    now = datetime.now(UTC)

    with pytest.raises(TimingInvalid, match="1,000"):
        await schedules.backfill_schedule(
            made.id, idle.alice, Period(starts_at=now - timedelta(days=300), ends_at=now, overlap="allow_all")
        )


async def test_nobody_fills_the_tables_with_schedules_or_tokens(idle: Platform) -> None:
    records = Schedules(idle.services, idle.temporal).schedule_records
    for number in range(MAX_SCHEDULES):
        await records.add_schedule(f"schedule-{number}", idle.alice, plan(idle).content)
    made = [
        await idle.services.api_tokens.create_token(idle.alice, str(number))
        for number in range(MAX_ACTIVE_TOKENS)
    ]

    with pytest.raises(ArgumentsInvalid, match="Delete"):
        await Schedules(idle.services, idle.temporal).create_schedule(plan(idle), idle.alice)
    with pytest.raises(ApiTokenInvalid, match="Revoke"):
        await idle.services.api_tokens.create_token(idle.alice, "one more")
    await idle.services.api_tokens.revoke_token(made[0].api_token.id, idle.alice)
    await idle.services.api_tokens.create_token(idle.alice, "one instead")


async def test_with_an_administrators_api_token_nobody_elses_work_is_reached(
    rest: Rest, platform: Platform
) -> None:
    ann, cleo = await rest.person("alice", "Ann"), await rest.person("carol", "Cleo")
    await give_role(rest.services, ann.id, ADMINISTRATOR_ROLE)
    schedule = await Schedules(rest.services, platform.temporal).create_schedule(plan(platform), cleo)
    async with rest.calling_as(cleo) as client:
        run = (await client.post("/tools/read_once/runs", json=READING)).json()["id"]
    await platform.parked(run)
    token = (await rest.services.api_tokens.create_token(ann, "laptop")).token_text
    channel = {"kind": "webhook", "address": "https://notes.example.com/of-somebody-else"}

    async with bearing(rest, token) as client:
        answers = [
            await client.post(f"/runs/{run}/terminate", json={"reason": "found the token"}),
            await client.post("/channels", json=channel),
            await client.get(f"/schedules/{schedule.id}"),
            await client.post(f"/schedules/{schedule.id}/pause"),
            await client.delete(f"/schedules/{schedule.id}", headers={"If-Match": "*"}),
        ]

    assert [each.status_code for each in answers] == [403, 403, 404, 404, 404]
    assert await platform.awaiting(run) is not None
    assert await rest.services.notification_channels.list_channels(ann.id) == []


async def test_who_follows_a_run_hears_no_more_once_their_token_is_revoked(
    rest: Rest, platform: Platform
) -> None:
    cleo = await rest.person("carol", "Cleo")
    made = await rest.services.api_tokens.create_token(cleo, "laptop")
    async with bearing(rest, made.token_text) as client:
        run = (await client.post("/tools/read_once/runs", json=READING)).json()["id"]
        await platform.parked(run)
        heard: list[str] = []
        following = asyncio.create_task(_hear(client, run, heard))
        await until(lambda: _is(bool(heard)))

        await rest.services.api_tokens.revoke_token(made.api_token.id, cleo)
        await asyncio.wait_for(following, 30)

    assert "event: ended" not in heard


async def test_nobody_holds_more_streams_open_than_they_can_watch(rest: Rest) -> None:
    cleo, ann = await rest.person("carol", "Cleo"), await rest.person("alice", "Ann")
    async with rest.calling_as(cleo) as client, rest.calling_as(ann) as another:
        run, others = [
            (await each.post("/tools/read_once/runs", json=READING)).json()["id"]
            for each in (client, another)
        ]
        heard: list[list[str]] = [[] for _ in range(MAX_STREAMS_PER_PRINCIPAL)]
        following = [asyncio.create_task(_hear(client, run, into)) for into in heard]
        await until(lambda: _is(all(heard)))

        one_more = await client.get(f"/runs/{run}/events")
        of_another: list[str] = []
        following.append(asyncio.create_task(_hear(another, others, of_another)))
        await until(lambda: _is(bool(of_another)))
        for each in following:
            each.cancel()
        await asyncio.gather(*following, return_exceptions=True)

    assert (one_more.status_code, one_more.json()["type"]) == (429, "urn:byline:error:too_many_streams")


async def _hear(client: httpx2.AsyncClient, run: str, heard: list[str]) -> None:
    async with client.stream("GET", f"/runs/{run}/events") as stream:
        async for line in stream.aiter_lines():
            heard += [line]


async def _is(value: Any) -> bool:
    return bool(value)
