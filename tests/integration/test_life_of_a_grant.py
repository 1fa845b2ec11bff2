"""Holds grants to their life: renewed once for all, ended at once wherever that is said, and kept up by the clock."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import SQLModel, col, select
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import ScheduleActionExecutionStartWorkflow, ScheduleHandle

from engine.db.database import utc_now
from engine.db.tables import (
    AccountChoiceRow,
    AuthorizationAttemptRow,
    AuthorizationRequestRow,
    DeviceSignInRow,
    GrantRow,
    NotificationRow,
    RevocationRow,
    WaiterRow,
)
from engine.oauth.tokens import UpstreamTokens
from engine.runs.runs import Failed, Finished
from engine.upkeep.schedule import ensure_upkeep_schedule, make_upkeep_id
from tests.data.commands import Commands
from tests.platform import DISPUTE, NORTHWIND, Platform, until, variables
from tests.signing_in import consent_page
from tests.tools import pausing

WIDTH = 100
LONG_AGO = timedelta(days=8)
LONGER_THAN_ANY_WAIT = timedelta(days=400)
PROFILE = {"crm": "/services/oauth2/userinfo", "billing": "/v1/invoices"}


async def change(platform: Platform, table: type[SQLModel], **values: object) -> None:
    async with platform.services.database.open_write_session() as session:
        await session.exec(update(table).values(**values))


async def rows(platform: Platform, table: type[SQLModel]) -> list[Any]:
    async with platform.services.database.open_read_session() as session:
        return list((await session.exec(select(table))).all())


def is_good(platform: Platform, system: str, token: str) -> bool:
    """Whether the upstream still takes this access token."""
    return platform.systems[system].get(PROFILE[system], token).status_code == 200


def refreshes(platform: Platform) -> int:
    return sum(each["grant_type"] == "refresh_token" for each in platform.requests("crm", "token"))


async def upkept(platform: Platform) -> dict[str, int]:
    """Have the schedule of upkeep fire, and give what was done."""
    handle: ScheduleHandle = platform.temporal.get_schedule_handle(
        make_upkeep_id(platform.settings.temporal.task_queue)
    )
    before = (await handle.describe()).info.num_actions

    async def has_fired() -> bool:
        return (await handle.describe()).info.num_actions > before

    await handle.trigger()
    await until(has_fired)
    begun = (await handle.describe()).info.recent_actions[-1].action
    assert isinstance(begun, ScheduleActionExecutionStartWorkflow)
    run = platform.temporal.get_workflow_handle(begun.workflow_id, run_id=begun.first_execution_run_id)
    done: dict[str, int] = await run.result()
    return done


@pytest.fixture
async def kept(platform: Platform) -> AsyncIterator[Platform]:
    """A platform with the schedule of upkeep."""
    queue = platform.settings.temporal.task_queue
    await ensure_upkeep_schedule(platform.temporal, queue)
    await ensure_upkeep_schedule(platform.temporal, queue)
    yield platform
    await platform.temporal.get_schedule_handle(make_upkeep_id(queue)).delete()


@pytest.fixture
def administrator(platform: Platform) -> Commands:
    settings = variables(platform.settings, platform.settings.temporal.task_queue)
    return Commands({**platform.environment, **settings}, platform.settings.vault.keyring_file.parent)  # type: ignore[union-attr]


async def test_a_hundred_actions_of_two_processes_renew_an_expired_token_once(idle: Platform) -> None:
    await idle.grant("crm", idle.alice)
    await change(idle, GrantRow, expires_at=utc_now() - timedelta(minutes=1))
    # The sandbox rotates refresh tokens, and ends the whole family when one is used twice.
    idle.systems["crm"].fault(on="token", hang_seconds=1.0)

    # Neither can hold more than half of what waits for the renewal.
    half = {"BYLINE_TEMPORAL__MAX_CONCURRENT_ACTIVITIES": str(WIDTH // 2)}
    async with idle.worker_process(**half), idle.worker_process(**half):
        run = await idle.start("read_widely", {"account_id": NORTHWIND, "width": WIDTH}, idle.alice)
        assert isinstance(await idle.outcome(run), Finished)

    (grant,) = await rows(idle, GrantRow)
    assert refreshes(idle) == 1
    assert grant.version == 2
    assert [each["status"] for each in idle.requests("crm")] == [200] * WIDTH
    children = children_of(await idle.history(run))
    workers = {
        event.activity_task_started_event_attributes.identity
        for history in await asyncio.gather(*(idle.history(child) for child in children))
        for event in history
        if event.HasField("activity_task_started_event_attributes")
    }
    assert len(workers) == 2


def children_of(history: list[Any]) -> list[str]:
    """The ids of the workflows that one started."""
    return [
        event.child_workflow_execution_started_event_attributes.workflow_execution.workflow_id
        for event in history
        if event.HasField("child_workflow_execution_started_event_attributes")
    ]


async def by_its_holder(platform: Platform, _: Commands, __: UpstreamTokens) -> None:
    declared = await platform.services.catalogue.get_connection("crm")
    assert await platform.services.grants.revoke_grant(declared, platform.alice.id)


async def by_an_administrator(platform: Platform, administrator: Commands, _: UpstreamTokens) -> None:
    await administrator.answer("grants", "remove", platform.alice.id, "crm")


async def by_its_upstream(platform: Platform, _: Commands, tokens: UpstreamTokens) -> None:
    crm = platform.systems["crm"]
    async with crm.client() as client:
        await client.revoke_token(crm.url + crm.system.oauth.revoke, token=tokens.refresh_token)


@pytest.mark.parametrize(
    ("ended", "statuses"),
    [(by_its_holder, [200]), (by_an_administrator, [200]), (by_its_upstream, [200, 401])],
)
async def test_a_grant_that_ends_in_the_middle_of_an_action_is_missed_by_its_next_request(
    platform: Platform,
    administrator: Commands,
    monkeypatch: pytest.MonkeyPatch,
    ended: Callable[[Platform, Commands, UpstreamTokens], Awaitable[None]],
    statuses: list[int],
) -> None:
    between, go_on = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(pausing, "BETWEEN", between)
    monkeypatch.setattr(pausing, "GO_ON", go_on)
    tokens = await platform.grant("crm", platform.alice)
    declared = await platform.services.catalogue.get_connection("crm")
    # Without a way to tell the upstream, which would go on taking the token.
    quiet = declared.provider.model_copy(update={"revocation_endpoint": None})
    await platform.redeclare("crm", provider=quiet)
    run = await platform.start("read_twice", {"account_id": NORTHWIND}, platform.alice)
    async with asyncio.timeout(60):
        await between.wait()

    await ended(platform, administrator, tokens)
    go_on.set()
    (request,) = await platform.parked(run)

    assert [each["status"] for each in platform.requests("crm")] == statuses
    await platform.consent(request, platform.alice)
    assert await platform.outcome(run) == Finished({"status": 200})


async def test_who_is_deactivated_in_the_middle_of_an_action_is_not_asked_to_sign_in_again(
    platform: Platform, administrator: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    between, go_on = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(pausing, "BETWEEN", between)
    monkeypatch.setattr(pausing, "GO_ON", go_on)
    await platform.grant("crm", platform.alice)
    run = await platform.start("read_twice", {"account_id": NORTHWIND}, platform.alice)
    async with asyncio.timeout(60):
        await between.wait()

    await administrator.answer("people", "deactivate", platform.alice.id)
    go_on.set()

    outcome = await platform.outcome(run)
    assert isinstance(outcome, Failed)
    assert outcome.code == "principal_inactive"
    assert len(platform.requests("crm")) == 1
    assert await platform.waiters(run) == []


async def test_who_is_deactivated_leaves_no_grant_behind_here_or_upstream(
    kept: Platform, administrator: Commands
) -> None:
    platform = kept
    hers = {name: (await platform.grant(name, platform.alice)).access_token for name in ("billing", "crm")}
    his = (await platform.grant("crm", platform.bob)).access_token
    platform.systems["billing"].fault(on="revoke", status=503)

    told = await administrator.answer("people", "deactivate", platform.alice.id)

    assert "Their grants are gone: 2. To be told upstream yet, which Byline goes on trying: billing." in told
    assert {name: is_good(platform, name, token) for name, token in hers.items()} == {
        "billing": True,
        "crm": False,
    }
    assert is_good(platform, "crm", his)
    assert sorted(bool(row.sealed_tokens) for row in await rows(platform, GrantRow)) == [False, False, True]
    removed = await platform.trail("grant.removed")
    assert {each["connection"]: each.get("error") for each in removed} == {
        "billing": "upstream_unavailable",
        "crm": None,
    }
    assert {each["principal"]["id"] for each in removed} == {platform.alice.id}

    assert (await upkept(platform))["revoke"] == 0, "it was tried a moment ago"
    await change(platform, RevocationRow, due_at=utc_now())
    assert (await upkept(platform))["revoke"] == 1
    assert not is_good(platform, "billing", hers["billing"])
    assert await rows(platform, RevocationRow) == []
    (revoked,) = await platform.trail("grant.revoked")
    assert (revoked["connection"], revoked["principal"]["id"]) == ("billing", platform.alice.id)


async def test_an_administrator_removes_a_grant_whose_upstream_is_away(
    platform: Platform, administrator: Commands
) -> None:
    await platform.grant("billing", platform.alice)
    platform.systems["billing"].fault(on="revoke", status=503)

    told = await administrator.answer("grants", "remove", platform.alice.id, "billing")

    assert "is gone. Its upstream is to be told yet, which Byline goes on trying" in told
    assert await platform.services.grants.list_grants(platform.alice.id) == []
    (removed,) = await platform.trail("grant.removed")
    assert removed["error"] == "upstream_unavailable"
    assert len(await rows(platform, RevocationRow)) == 1


async def test_an_upstream_that_cannot_be_told_for_a_week_is_given_up_and_the_tokens_go(
    kept: Platform,
) -> None:
    await kept.grant("billing", kept.alice)
    await kept.services.principals.set_active(kept.alice.id, is_active=False)
    kept.systems["billing"].fault(on="revoke", status=503, count=2)

    # A deactivation that was cut short is finished as well.
    assert (await upkept(kept))["end"] == 1
    await change(kept, RevocationRow, due_at=utc_now(), created_at=utc_now() - LONG_AGO)
    assert (await upkept(kept))["revoke"] == 1

    assert await rows(kept, RevocationRow) == []
    (given_up,) = await kept.trail("grant.revoked")
    assert given_up["error"] == "upstream_unavailable"


async def test_a_grant_that_nobody_uses_is_renewed_before_it_dies_of_that(kept: Platform) -> None:
    platform = kept
    tokens = await platform.grant("crm", platform.alice)
    declared = await platform.services.catalogue.get_connection("crm")
    mortal = declared.provider.model_copy(update={"refresh_token_life": timedelta(days=10)})
    await platform.redeclare("crm", provider=mortal)

    assert (await upkept(platform))["renew"] == 0
    await change(platform, GrantRow, renewed_at=utc_now() - LONG_AGO)
    assert (await upkept(platform))["renew"] == 1
    assert (await upkept(platform))["renew"] == 0
    (renewed,) = await platform.trail("grant.renewed")
    assert (renewed["connection"], renewed["principal"]["id"]) == ("crm", platform.alice.id)
    assert refreshes(platform) == 1
    assert platform.requests("crm") == []

    found = await platform.services.grants.find_credential(
        await platform.services.catalogue.get_connection("crm"), platform.alice.id
    )
    assert found is not None
    assert found.access_token != tokens.access_token
    crm = platform.systems["crm"]
    async with crm.client() as client:
        await client.revoke_token(crm.url + crm.system.oauth.revoke, token=found.access_token)
    await change(platform, GrantRow, renewed_at=utc_now() - LONG_AGO)
    crm.fault(on="token", status=503)
    assert (await upkept(platform))["renew"] == 0, "the token endpoint failed, and the grant is kept"
    assert (await upkept(platform))["renew"] == 1


async def test_a_grant_that_its_provider_ended_meanwhile_is_ended_here_by_upkeep(kept: Platform) -> None:
    tokens = await kept.grant("crm", kept.alice)
    declared = await kept.services.catalogue.get_connection("crm")
    mortal = declared.provider.model_copy(update={"refresh_token_life": timedelta(days=10)})
    await kept.redeclare("crm", provider=mortal)
    crm = kept.systems["crm"]
    async with crm.client() as client:
        await client.revoke_token(crm.url + crm.system.oauth.revoke, token=tokens.refresh_token)
    await change(kept, GrantRow, renewed_at=utc_now() - LONG_AGO)

    assert (await upkept(kept))["renew"] == 1

    (ended,) = await kept.trail("grant.renewed")
    assert ended["error"] == "invalid_grant"
    assert [grant.has_lapsed for grant in await kept.services.grants.list_grants(kept.alice.id)] == [True]


async def test_what_is_over_is_put_away_by_the_clock(kept: Platform) -> None:
    run = await kept.start("read_once", {"account_id": NORTHWIND}, kept.alice)
    (request,) = await kept.parked(run)
    await consent_page(kept.services, request, "browser")
    await kept.services.notification_channels.claim_notes(["a note"], "somebody")
    async with kept.services.database.open_write_session() as session:
        session.add(
            DeviceSignInRow(
                request_id=request.id,
                sealed_code=b"",
                interval_seconds=5,
                poll_after=utc_now(),
                expires_at=utc_now(),
            )
        )

    assert (await upkept(kept))["expire"] == 0
    await change(kept, AuthorizationRequestRow, expires_at=utc_now() - timedelta(seconds=1))
    await change(kept, AuthorizationAttemptRow, expires_at=utc_now() - LONG_AGO)
    await change(kept, DeviceSignInRow, expires_at=utc_now() - LONG_AGO)
    await change(kept, NotificationRow, created_at=utc_now() - LONGER_THAN_ANY_WAIT)
    await change(kept, WaiterRow, expires_at=utc_now() - timedelta(days=29))
    assert (await upkept(kept))["expire"] == 4
    await change(kept, WaiterRow, expires_at=utc_now() - timedelta(days=31), due_at=utc_now())
    assert (await upkept(kept))["expire"] == 0, "a wake-up is owed"
    await change(kept, WaiterRow, due_at=None)
    assert (await upkept(kept))["expire"] == 1

    assert [row.state for row in await rows(kept, AuthorizationRequestRow)] == ["expired"]
    for table in (AuthorizationAttemptRow, DeviceSignInRow, NotificationRow, WaiterRow):
        assert await rows(kept, table) == []


async def forgotten(platform: Platform, workflow_id: str, first_run_id: str = "") -> None:
    """Let Temporal forget a workflow that ended, or one run of it, as it does after the retention time."""
    execution = WorkflowExecution(workflow_id=workflow_id, run_id=first_run_id)
    request = DeleteWorkflowExecutionRequest(
        namespace=platform.temporal.namespace, workflow_execution=execution
    )
    await platform.temporal.workflow_service.delete_workflow_execution(request)
    query = f"WorkflowId = '{workflow_id}'"

    async def is_gone() -> bool:
        left = [each.run_id async for each in platform.temporal.list_workflows(query)]
        described = await platform.runs.describe_workflow(workflow_id, first_run_id or None)
        return described is None and (bool(left) == bool(first_run_id)) and first_run_id not in left

    await until(is_gone)


async def choose(platform: Platform, account: str) -> None:
    """Let Alice use this account of the CRM from now on."""
    declared, name = (
        await platform.services.catalogue.get_connection("crm"),
        platform.systems["crm"].account(account),
    )
    await platform.services.answer_recorder.choose_account(declared, platform.alice, name)


async def looked_for(platform: Platform) -> int:
    """Have upkeep look for all runs again, a day later; how many accounts were forgotten."""
    async with platform.services.database.open_write_session() as session:
        runs = update(AccountChoiceRow).where(col(AccountChoiceRow.run_id) != "")
        await session.exec(runs.values(due_at=utc_now()))
    return (await upkept(platform))["expire"]


async def keeping(platform: Platform) -> list[str]:
    """The runs that keep an account."""
    return sorted({row.run_id for row in await rows(platform, AccountChoiceRow) if row.run_id})


async def test_a_runs_account_is_kept_until_temporal_forgot_all_of_the_run(kept: Platform) -> None:
    for account in ("alice", "bob"):
        await kept.grant("crm", kept.alice, account=account)
    await choose(kept, "alice")
    reading = {"account_id": NORTHWIND, "ticket_id": DISPUTE}
    finished = await kept.start("read_once", {"account_id": NORTHWIND}, kept.alice)
    await kept.outcome(finished)
    parked = await kept.start("read_on", reading, kept.alice)
    await kept.parked(parked)
    continued = await kept.start("read_on", {**reading, "continued": 1}, kept.alice)
    await kept.parked(continued)
    left = await kept.start("leave_it_to_another", reading, kept.alice)
    await kept.outcome(left)
    (request,) = await kept.asked(left)
    await choose(kept, "bob")
    alive = sorted([parked, continued, left])

    assert await looked_for(kept) == 0, "what ended a moment ago can still be reset"
    record = await kept.services.run_records.find_run(continued)
    assert record is not None
    await asyncio.gather(
        forgotten(kept, finished),
        forgotten(kept, left),
        forgotten(kept, continued, str(record.first_run_id)),
    )
    assert await looked_for(kept) == 1
    assert await keeping(kept) == alive

    await kept.consent(request, kept.alice)
    await asyncio.gather(kept.outcome(parked), kept.outcome(continued))
    await kept.temporal.get_workflow_handle(f"{left}-left").result()
    asked = [each["account"] for each in kept.requests("crm")]
    assert asked == [kept.systems["crm"].account("alice")] * 8
    assert await looked_for(kept) == 0, "what went on can still be reset"
    assert await keeping(kept) == alive
