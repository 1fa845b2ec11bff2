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
from tests.support.administration import give_role
from tests.support.api_server import ApiServer, serve_api
from tests.support.platform import CONTOSO, NORTHWIND, Platform, wait_until

SOME_DAY = Timing(cron=("0 0 29 2 *",))
READING = {"account_id": NORTHWIND}


@pytest.fixture
async def api_server(platform: Platform) -> AsyncIterator[ApiServer]:
    async with serve_api(platform) as gateway:
        yield gateway


@asynccontextmanager
async def open_bearer_client(api_server: ApiServer, token: str) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(
        base_url=f"{api_server.url}{API_PATH}", headers=headers, timeout=90
    ) as client:
        yield client


def plan_schedule(platform: Platform, account: str = NORTHWIND, timing: Timing = SOME_DAY) -> ScheduleDraft:
    return ScheduleDraft(
        "Leap days", platform.registry.find_tool("read_once"), {"account_id": account}, timing
    )


class InterruptedPolicy(Policy):
    """The policy, asked just as something else happens."""

    def __init__(self, platform: Platform, meanwhile: Callable[[], Awaitable[object]]) -> None:
        super().__init__(PolicyFile, platform.services.roles)
        self._meanwhile = meanwhile

    async def filter_allowed_tools(self, principal: Principal, tool_names: Iterable[str]) -> list[str]:
        await self._meanwhile()
        return await super().filter_allowed_tools(principal, tool_names)


async def test_who_hands_a_schedule_over_cannot_change_it_in_the_moment_in_which_it_is_taken(
    idle_platform: Platform,
) -> None:
    schedules = Schedules(idle_platform.services, idle_platform.temporal)
    schedule = await schedules.create_schedule(plan_schedule(idle_platform), idle_platform.alice)
    offered_schedule = await schedules.offer_schedule(schedule.id, idle_platform.alice, "Bob Baker")
    accepting = InterruptedPolicy(
        idle_platform,
        lambda: schedules.accept_schedule(schedule.id, idle_platform.bob, offered_schedule.version),
    )
    racing = Schedules(replace(idle_platform.services, policy=accepting), idle_platform.temporal)

    changed_schedule = await racing.change_schedule(
        schedule.id, plan_schedule(idle_platform, CONTOSO), idle_platform.alice, offered_schedule.version + 1
    )

    accepted_schedule = await _accept_if_offered(
        schedules, schedule.id, idle_platform.bob, offered_schedule.version
    )
    assert changed_schedule is None
    assert accepted_schedule is not None
    assert (accepted_schedule.principal_id, accepted_schedule.arguments) == (
        idle_platform.bob.id,
        {"account_id": NORTHWIND},
    )


async def test_an_offer_that_is_taken_back_in_that_moment_is_accepted_by_nobody(
    idle_platform: Platform,
) -> None:
    schedules = Schedules(idle_platform.services, idle_platform.temporal)
    schedule = await schedules.create_schedule(plan_schedule(idle_platform), idle_platform.alice)
    offered_schedule = await schedules.offer_schedule(schedule.id, idle_platform.alice, "Bob Baker")
    taking_back = InterruptedPolicy(
        idle_platform, lambda: schedules.offer_schedule(schedule.id, idle_platform.alice, None)
    )
    racing = Schedules(replace(idle_platform.services, policy=taking_back), idle_platform.temporal)

    accepted_schedule = await racing.accept_schedule(
        schedule.id, idle_platform.bob, offered_schedule.version + 1
    )

    still_alices = await schedules.schedule_records.find_schedule(schedule.id)
    assert still_alices is not None
    assert (accepted_schedule, still_alices.principal_id) == (None, idle_platform.alice.id)


async def test_a_schedule_that_changed_hands_meanwhile_is_resumed_by_its_new_owner_alone(
    idle_platform: Platform,
) -> None:
    schedules = Schedules(idle_platform.services, idle_platform.temporal)
    schedule = await schedules.create_schedule(plan_schedule(idle_platform), idle_platform.alice)
    await schedules.pause_schedule(schedule.id, idle_platform.alice)
    offered_schedule = await schedules.offer_schedule(schedule.id, idle_platform.alice, "Bob Baker")
    accepting = InterruptedPolicy(
        idle_platform,
        lambda: _accept_if_offered(schedules, schedule.id, idle_platform.bob, offered_schedule.version),
    )
    racing = Schedules(replace(idle_platform.services, policy=accepting), idle_platform.temporal)

    with pytest.raises(ScheduleUnknown):
        await racing.resume_schedule(
            schedule.id, idle_platform.alice, idle_platform.registry.find_tool("read_once")
        )

    now_bobs = await schedules.schedule_records.find_schedule(schedule.id)
    assert now_bobs is not None
    assert now_bobs.paused_because is not None


async def _accept_if_offered(
    schedules: Schedules, schedule_id: str, by: Principal, version: int
) -> Schedule | None:
    """The schedule once it was taken over, now or before."""
    schedule_row = await schedules.schedule_records.find_schedule(schedule_id)
    if schedule_row is None or schedule_row.offered_to != by.id:
        return schedule_row
    return await schedules.accept_schedule(schedule_id, by, version)


async def test_what_one_owner_set_off_fires_no_more_in_the_name_of_the_next(idle_platform: Platform) -> None:
    schedules = Schedules(idle_platform.services, idle_platform.temporal)
    daily = Timing(cron=("0 12 * * *",), overlap="buffer_all")
    schedule = await schedules.create_schedule(
        plan_schedule(idle_platform, timing=daily), idle_platform.alice
    )
    offered_schedule = await schedules.offer_schedule(schedule.id, idle_platform.alice, "Bob Baker")
    now = datetime.now(UTC)
    month = Period(starts_at=now - timedelta(days=30), ends_at=now)
    await schedules.backfill_schedule(schedule.id, idle_platform.alice, month)

    async def count_future_firings() -> int:
        description = await idle_platform.temporal.get_schedule_handle(schedule.id).describe()
        return int(description.raw_description.info.buffer_size)

    await wait_until(count_future_firings)
    accepted_schedule = await schedules.accept_schedule(
        schedule.id, idle_platform.bob, offered_schedule.version
    )

    assert accepted_schedule is not None
    assert await count_future_firings() == 0
    dial = await schedules.read_status(accepted_schedule)
    assert dial is not None
    assert dial.next_times


async def test_a_time_that_is_past_is_made_up_for_in_no_more_firings_than_somebody_can_mean(
    idle_platform: Platform,
) -> None:
    schedules = Schedules(idle_platform.services, idle_platform.temporal)
    each_second = plan_schedule(idle_platform, timing=Timing(intervals=(Interval(every_seconds=1),)))
    schedule = await schedules.create_schedule(each_second, idle_platform.alice)
    now = datetime.now(UTC)

    with pytest.raises(TimingInvalid, match="1,000"):
        await schedules.backfill_schedule(
            schedule.id,
            idle_platform.alice,
            Period(starts_at=now - timedelta(days=300), ends_at=now, overlap="allow_all"),
        )


async def test_nobody_fills_the_tables_with_schedules_or_tokens(idle_platform: Platform) -> None:
    records = Schedules(idle_platform.services, idle_platform.temporal).schedule_records
    for number in range(MAX_SCHEDULES):
        await records.add_schedule(
            f"schedule-{number}", idle_platform.alice, plan_schedule(idle_platform).content
        )
    results = [
        await idle_platform.services.api_tokens.create_token(idle_platform.alice, str(number))
        for number in range(MAX_ACTIVE_TOKENS)
    ]

    with pytest.raises(ArgumentsInvalid, match="Delete"):
        await Schedules(idle_platform.services, idle_platform.temporal).create_schedule(
            plan_schedule(idle_platform), idle_platform.alice
        )
    with pytest.raises(ApiTokenInvalid, match="Revoke"):
        await idle_platform.services.api_tokens.create_token(idle_platform.alice, "one more")
    await idle_platform.services.api_tokens.revoke_token(results[0].api_token.id, idle_platform.alice)
    await idle_platform.services.api_tokens.create_token(idle_platform.alice, "one instead")


async def test_with_an_administrators_api_token_nobody_elses_work_is_reached(
    api_server: ApiServer, platform: Platform
) -> None:
    ann, cleo = await api_server.add_person("alice", "Ann"), await api_server.add_person("carol", "Cleo")
    await give_role(api_server.services, ann.id, ADMINISTRATOR_ROLE)
    schedule = await Schedules(api_server.services, platform.temporal).create_schedule(
        plan_schedule(platform), cleo
    )
    async with api_server.open_client(cleo) as client:
        run = (await client.post("/tools/read_once/runs", json=READING)).json()["id"]
    await platform.wait_until_parked(run)
    token = (await api_server.services.api_tokens.create_token(ann, "laptop")).token_text
    channel = {"kind": "webhook", "address": "https://notes.example.com/of-somebody-else"}

    async with open_bearer_client(api_server, token) as client:
        answers = [
            await client.post(f"/runs/{run}/terminate", json={"reason": "found the token"}),
            await client.post("/channels", json=channel),
            await client.get(f"/schedules/{schedule.id}"),
            await client.post(f"/schedules/{schedule.id}/pause"),
            await client.delete(f"/schedules/{schedule.id}", headers={"If-Match": "*"}),
        ]

    assert [response.status_code for response in answers] == [403, 403, 404, 404, 404]
    assert await platform.read_awaited_connections(run) is not None
    assert await api_server.services.notification_channels.list_channels(ann.id) == []


async def test_who_follows_a_run_hears_no_more_once_their_token_is_revoked(
    api_server: ApiServer, platform: Platform
) -> None:
    cleo = await api_server.add_person("carol", "Cleo")
    api_token = await api_server.services.api_tokens.create_token(cleo, "laptop")
    async with open_bearer_client(api_server, api_token.token_text) as client:
        run = (await client.post("/tools/read_once/runs", json=READING)).json()["id"]
        await platform.wait_until_parked(run)
        heard_lines: list[str] = []
        following = asyncio.create_task(_collect_lines(client, run, heard_lines))
        await wait_until(lambda: _matches(bool(heard_lines)))

        await api_server.services.api_tokens.revoke_token(api_token.api_token.id, cleo)
        await asyncio.wait_for(following, 30)

    assert "event: ended" not in heard_lines


async def test_nobody_holds_more_streams_open_than_they_can_watch(api_server: ApiServer) -> None:
    cleo, ann = await api_server.add_person("carol", "Cleo"), await api_server.add_person("alice", "Ann")
    async with api_server.open_client(cleo) as client, api_server.open_client(ann) as another:
        run, others = [
            (await following_task.post("/tools/read_once/runs", json=READING)).json()["id"]
            for following_task in (client, another)
        ]
        heard_lines: list[list[str]] = [[] for _ in range(MAX_STREAMS_PER_PRINCIPAL)]
        following = [asyncio.create_task(_collect_lines(client, run, into)) for into in heard_lines]
        await wait_until(lambda: _matches(all(heard_lines)))

        one_more = await client.get(f"/runs/{run}/events")
        of_another: list[str] = []
        following.append(asyncio.create_task(_collect_lines(another, others, of_another)))
        await wait_until(lambda: _matches(bool(of_another)))
        for following_task in following:
            following_task.cancel()
        await asyncio.gather(*following, return_exceptions=True)

    assert (one_more.status_code, one_more.json()["type"]) == (429, "urn:byline:error:too_many_streams")


async def _collect_lines(client: httpx2.AsyncClient, run: str, heard_lines: list[str]) -> None:
    async with client.stream("GET", f"/runs/{run}/events") as stream:
        async for line in stream.aiter_lines():
            heard_lines += [line]


async def _matches(value: Any) -> bool:
    return bool(value)
