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
from engine.runs.outcome import Failed, Finished
from engine.upkeep.schedule import ensure_upkeep_schedule, make_upkeep_id
from tests.fixtures.tools import two_requests
from tests.support.administration import set_active
from tests.support.commands import Commands
from tests.support.platform import DISPUTE, NORTHWIND, Platform, variables, wait_until
from tests.support.sign_ins import consent_page

WIDTH = 100
LONG_AGO = timedelta(days=8)
LONGER_THAN_ANY_WAIT = timedelta(days=400)
PROFILE = {"crm": "/services/oauth2/userinfo", "billing": "/v1/invoices"}


async def change_rows(platform: Platform, table: type[SQLModel], **values: object) -> None:
    async with platform.services.database.open_write_session() as session:
        await session.exec(update(table).values(**values))


async def list_rows(platform: Platform, table: type[SQLModel]) -> list[Any]:
    async with platform.services.database.open_read_session() as session:
        return list((await session.exec(select(table))).all())


def is_good(platform: Platform, system: str, token: str) -> bool:
    """Whether the upstream still takes this access token."""
    return platform.systems[system].get_path(PROFILE[system], token).status_code == 200


def count_refreshes(platform: Platform) -> int:
    return sum(request["grant_type"] == "refresh_token" for request in platform.list_requests("crm", "token"))


async def run_upkeep(platform: Platform) -> dict[str, int]:
    """Have the schedule of upkeep fire, and give what was done."""
    handle: ScheduleHandle = platform.temporal.get_schedule_handle(
        make_upkeep_id(platform.settings.temporal.task_queue)
    )
    before = (await handle.describe()).info.num_actions

    async def has_fired() -> bool:
        return (await handle.describe()).info.num_actions > before

    await handle.trigger()
    await wait_until(has_fired)
    recent_action = (await handle.describe()).info.recent_actions[-1].action
    assert isinstance(recent_action, ScheduleActionExecutionStartWorkflow)
    run = platform.temporal.get_workflow_handle(
        recent_action.workflow_id, run_id=recent_action.first_execution_run_id
    )
    result_counts: dict[str, int] = await run.result()
    return result_counts


@pytest.fixture
async def upkeep_platform(platform: Platform) -> AsyncIterator[Platform]:
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


async def test_a_hundred_actions_of_two_processes_renew_an_expired_token_once(
    idle_platform: Platform,
) -> None:
    await idle_platform.give_grant("crm", idle_platform.alice)
    await change_rows(idle_platform, GrantRow, expires_at=utc_now() - timedelta(minutes=1))
    # The sandbox rotates refresh tokens, and ends the whole family when one is used twice.
    idle_platform.systems["crm"].add_fault(on="token", hang_seconds=1.0)

    # Neither can hold more than half of what waits for the renewal.
    half = {"BYLINE_TEMPORAL__MAX_CONCURRENT_ACTIVITIES": str(WIDTH // 2)}
    async with idle_platform.run_worker_process(**half), idle_platform.run_worker_process(**half):
        run = await idle_platform.start_run(
            "read_widely", {"account_id": NORTHWIND, "width": WIDTH}, idle_platform.alice
        )
        assert isinstance(await idle_platform.wait_for_outcome(run), Finished)

    (grant,) = await list_rows(idle_platform, GrantRow)
    assert count_refreshes(idle_platform) == 1
    assert grant.version == 2
    assert [request["status"] for request in idle_platform.list_requests("crm")] == [200] * WIDTH
    children = list_child_ids(await idle_platform.fetch_history(run))
    workers = {
        event.activity_task_started_event_attributes.identity
        for history in await asyncio.gather(*(idle_platform.fetch_history(child) for child in children))
        for event in history
        if event.HasField("activity_task_started_event_attributes")
    }
    assert len(workers) == 2


def list_child_ids(history: list[Any]) -> list[str]:
    """The ids of the workflows that one started."""
    return [
        event.child_workflow_execution_started_event_attributes.workflow_execution.workflow_id
        for event in history
        if event.HasField("child_workflow_execution_started_event_attributes")
    ]


async def remove_by_holder(platform: Platform, _: Commands, __: UpstreamTokens) -> None:
    declaration = await platform.services.catalogue.get_connection("crm")
    assert await platform.services.grant_removal.remove_own_grant(declaration, platform.alice)


async def remove_by_administrator(platform: Platform, administrator: Commands, _: UpstreamTokens) -> None:
    await administrator.read_output("grants", "remove", platform.alice.id, "crm")


async def revoke_upstream(platform: Platform, _: Commands, tokens: UpstreamTokens) -> None:
    crm = platform.systems["crm"]
    async with crm.build_client() as client:
        await client.revoke_token(crm.url + crm.system.oauth.revoke, token=tokens.refresh_token)


@pytest.mark.parametrize(
    ("end_grant", "statuses"),
    [(remove_by_holder, [200]), (remove_by_administrator, [200]), (revoke_upstream, [200, 401])],
)
async def test_a_grant_that_ends_in_the_middle_of_an_action_is_missed_by_its_next_request(
    platform: Platform,
    administrator: Commands,
    monkeypatch: pytest.MonkeyPatch,
    end_grant: Callable[[Platform, Commands, UpstreamTokens], Awaitable[None]],
    statuses: list[int],
) -> None:
    between, go_on = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(two_requests, "BETWEEN", between)
    monkeypatch.setattr(two_requests, "GO_ON", go_on)
    tokens = await platform.give_grant("crm", platform.alice)
    declaration = await platform.services.catalogue.get_connection("crm")
    # Without a way to tell the upstream, which would go on taking the token.
    quiet = declaration.provider.model_copy(update={"revocation_endpoint": None})
    await platform.redeclare("crm", provider=quiet)
    run = await platform.start_run("read_twice", {"account_id": NORTHWIND}, platform.alice)
    async with asyncio.timeout(60):
        await between.wait()

    await end_grant(platform, administrator, tokens)
    go_on.set()
    (request,) = await platform.wait_until_parked(run)

    assert [api_request["status"] for api_request in platform.list_requests("crm")] == statuses
    await platform.consent(request, platform.alice)
    assert await platform.wait_for_outcome(run) == Finished({"status": 200})


async def test_who_is_deactivated_in_the_middle_of_an_action_is_not_asked_to_sign_in_again(
    platform: Platform, administrator: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    between, go_on = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(two_requests, "BETWEEN", between)
    monkeypatch.setattr(two_requests, "GO_ON", go_on)
    await platform.give_grant("crm", platform.alice)
    run = await platform.start_run("read_twice", {"account_id": NORTHWIND}, platform.alice)
    async with asyncio.timeout(60):
        await between.wait()

    await administrator.read_output("people", "deactivate", platform.alice.id)
    go_on.set()

    outcome = await platform.wait_for_outcome(run)
    assert isinstance(outcome, Failed)
    assert outcome.code == "principal_inactive"
    assert len(platform.list_requests("crm")) == 1
    assert await platform.list_waiters(run) == []


async def test_who_is_deactivated_leaves_no_grant_behind_here_or_upstream(
    upkeep_platform: Platform, administrator: Commands
) -> None:
    platform = upkeep_platform
    hers = {
        name: (await platform.give_grant(name, platform.alice)).access_token for name in ("billing", "crm")
    }
    his = (await platform.give_grant("crm", platform.bob)).access_token
    platform.systems["billing"].add_fault(on="revoke", status=503)

    output = await administrator.read_output("people", "deactivate", platform.alice.id)

    assert (
        "Their grants are gone: 2. To be told upstream yet, which Byline goes on trying: billing." in output
    )
    assert {name: is_good(platform, name, token) for name, token in hers.items()} == {
        "billing": True,
        "crm": False,
    }
    assert is_good(platform, "crm", his)
    assert sorted(bool(row.sealed_tokens) for row in await list_rows(platform, GrantRow)) == [
        False,
        False,
        True,
    ]
    removed_events, revoked_event = (
        await platform.list_trail_events("grant.removed"),
        await platform.list_trail_events("grant.revoked"),
    )
    assert {event["connection"]: event.get("error") for event in removed_events} == {
        "billing": None,
        "crm": None,
    }
    assert {event["connection"]: event.get("error") for event in revoked_event} == {
        "billing": "upstream_unavailable",
        "crm": None,
    }
    assert {event["principal"]["id"] for event in removed_events} == {platform.alice.id}

    assert (await run_upkeep(platform))["revoke"] == 0, "it was tried a moment ago"
    await change_rows(platform, RevocationRow, due_at=utc_now())
    assert (await run_upkeep(platform))["revoke"] == 1
    assert not is_good(platform, "billing", hers["billing"])
    assert await list_rows(platform, RevocationRow) == []
    last = (await platform.list_trail_events("grant.revoked"))[-1]
    assert (last["connection"], last.get("error")) == ("billing", None)
    assert last["principal"]["id"] == platform.alice.id


async def test_an_administrator_removes_a_grant_whose_upstream_is_away(
    platform: Platform, administrator: Commands
) -> None:
    await platform.give_grant("billing", platform.alice)
    platform.systems["billing"].add_fault(on="revoke", status=503)

    output = await administrator.read_output("grants", "remove", platform.alice.id, "billing")

    assert "is gone. Its upstream is to be told yet, which Byline goes on trying" in output
    assert await platform.services.grants.list_grants(platform.alice.id) == []
    (removed_event,), (revoked,) = (
        await platform.list_trail_events("grant.removed"),
        await platform.list_trail_events("grant.revoked"),
    )
    assert removed_event["actor"]["kind"] == "shell"
    assert revoked["error"] == "upstream_unavailable"
    assert len(await list_rows(platform, RevocationRow)) == 1


async def test_a_revocation_that_fails_for_a_week_is_abandoned_and_the_tokens_go(
    upkeep_platform: Platform,
) -> None:
    await upkeep_platform.give_grant("billing", upkeep_platform.alice)
    await set_active(upkeep_platform.services, upkeep_platform.alice.id, is_active=False)
    upkeep_platform.systems["billing"].add_fault(on="revoke", status=503, count=2)

    # A deactivation that was cut short is finished as well.
    assert (await run_upkeep(upkeep_platform))["end"] == 1
    await change_rows(upkeep_platform, RevocationRow, due_at=utc_now(), created_at=utc_now() - LONG_AGO)
    assert (await run_upkeep(upkeep_platform))["revoke"] == 1

    assert await list_rows(upkeep_platform, RevocationRow) == []
    at_once, given_up_event = await upkeep_platform.list_trail_events("grant.revoked")
    assert (at_once["error"], given_up_event["error"]) == ("upstream_unavailable",) * 2


async def test_a_grant_that_nobody_uses_is_renewed_before_it_dies_of_that(upkeep_platform: Platform) -> None:
    platform = upkeep_platform
    tokens = await platform.give_grant("crm", platform.alice)
    declaration = await platform.services.catalogue.get_connection("crm")
    mortal = declaration.provider.model_copy(update={"refresh_token_life": timedelta(days=10)})
    await platform.redeclare("crm", provider=mortal)

    assert (await run_upkeep(platform))["renew"] == 0
    await change_rows(platform, GrantRow, renewed_at=utc_now() - LONG_AGO)
    assert (await run_upkeep(platform))["renew"] == 1
    assert (await run_upkeep(platform))["renew"] == 0
    (renewed_event,) = await platform.list_trail_events("grant.renewed")
    assert (renewed_event["connection"], renewed_event["principal"]["id"]) == ("crm", platform.alice.id)
    assert count_refreshes(platform) == 1
    assert platform.list_requests("crm") == []

    credential = await platform.services.grants.find_credential(
        await platform.services.catalogue.get_connection("crm"), platform.alice.id
    )
    assert credential is not None
    assert credential.access_token != tokens.access_token
    crm = platform.systems["crm"]
    async with crm.build_client() as client:
        await client.revoke_token(crm.url + crm.system.oauth.revoke, token=credential.access_token)
    await change_rows(platform, GrantRow, renewed_at=utc_now() - LONG_AGO)
    crm.add_fault(on="token", status=503)
    assert (await run_upkeep(platform))["renew"] == 0, "the token endpoint failed, and the grant is kept"
    assert (await run_upkeep(platform))["renew"] == 1


async def test_a_grant_that_its_provider_ended_meanwhile_is_ended_here_by_upkeep(
    upkeep_platform: Platform,
) -> None:
    tokens = await upkeep_platform.give_grant("crm", upkeep_platform.alice)
    declaration = await upkeep_platform.services.catalogue.get_connection("crm")
    mortal = declaration.provider.model_copy(update={"refresh_token_life": timedelta(days=10)})
    await upkeep_platform.redeclare("crm", provider=mortal)
    crm = upkeep_platform.systems["crm"]
    async with crm.build_client() as client:
        await client.revoke_token(crm.url + crm.system.oauth.revoke, token=tokens.refresh_token)
    await change_rows(upkeep_platform, GrantRow, renewed_at=utc_now() - LONG_AGO)

    assert (await run_upkeep(upkeep_platform))["renew"] == 1

    (ended_event,) = await upkeep_platform.list_trail_events("grant.renewed")
    assert ended_event["error"] == "invalid_grant"
    assert [
        grant.has_lapsed
        for grant in await upkeep_platform.services.grants.list_grants(upkeep_platform.alice.id)
    ] == [True]


async def test_what_is_over_is_put_away_by_the_clock(upkeep_platform: Platform) -> None:
    run = await upkeep_platform.start_run("read_once", {"account_id": NORTHWIND}, upkeep_platform.alice)
    (request,) = await upkeep_platform.wait_until_parked(run)
    await consent_page(upkeep_platform.services, request, "browser")
    await upkeep_platform.services.notification_channels.claim_notes(["a note"], "somebody")
    async with upkeep_platform.services.database.open_write_session() as session:
        session.add(
            DeviceSignInRow(
                request_id=request.id,
                sealed_code=b"",
                interval_seconds=5,
                poll_after=utc_now(),
                expires_at=utc_now(),
            )
        )

    assert (await run_upkeep(upkeep_platform))["expire"] == 0
    await change_rows(upkeep_platform, AuthorizationRequestRow, expires_at=utc_now() - timedelta(seconds=1))
    await change_rows(upkeep_platform, AuthorizationAttemptRow, expires_at=utc_now() - LONG_AGO)
    await change_rows(upkeep_platform, DeviceSignInRow, expires_at=utc_now() - LONG_AGO)
    await change_rows(upkeep_platform, NotificationRow, created_at=utc_now() - LONGER_THAN_ANY_WAIT)
    await change_rows(upkeep_platform, WaiterRow, expires_at=utc_now() - timedelta(days=29))
    assert (await run_upkeep(upkeep_platform))["expire"] == 4
    await change_rows(upkeep_platform, WaiterRow, expires_at=utc_now() - timedelta(days=31), due_at=utc_now())
    assert (await run_upkeep(upkeep_platform))["expire"] == 0, "a wake-up is owed"
    await change_rows(upkeep_platform, WaiterRow, due_at=None)
    assert (await run_upkeep(upkeep_platform))["expire"] == 1

    assert [row.state for row in await list_rows(upkeep_platform, AuthorizationRequestRow)] == ["expired"]
    for table in (AuthorizationAttemptRow, DeviceSignInRow, NotificationRow, WaiterRow):
        assert await list_rows(upkeep_platform, table) == []


async def wait_until_forgotten(platform: Platform, workflow_id: str, first_run_id: str = "") -> None:
    """Let Temporal forget a workflow that ended, or one run of it, as it does after the retention time."""
    execution = WorkflowExecution(workflow_id=workflow_id, run_id=first_run_id)
    request = DeleteWorkflowExecutionRequest(
        namespace=platform.temporal.namespace, workflow_execution=execution
    )
    await platform.temporal.workflow_service.delete_workflow_execution(request)
    query = f"WorkflowId = '{workflow_id}'"

    async def is_gone() -> bool:
        left = [execution.run_id async for execution in platform.temporal.list_workflows(query)]
        description = await platform.runs.workflows.describe_workflow(workflow_id, first_run_id or None)
        return description is None and (bool(left) == bool(first_run_id)) and first_run_id not in left

    await wait_until(is_gone)


async def choose_account(platform: Platform, account: str) -> None:
    """Let Alice use this account of the CRM from now on."""
    declaration, name = (
        await platform.services.catalogue.get_connection("crm"),
        platform.systems["crm"].find_account(account),
    )
    await platform.services.answer_recorder.choose_account(declaration, platform.alice, name)


async def count_looked_for(platform: Platform) -> int:
    """Have upkeep look for all runs again, a day later; how many accounts were forgotten."""
    async with platform.services.database.open_write_session() as session:
        runs = update(AccountChoiceRow).where(col(AccountChoiceRow.run_id) != "")
        await session.exec(runs.values(due_at=utc_now()))
    return (await run_upkeep(platform))["expire"]


async def list_kept_runs(platform: Platform) -> list[str]:
    """The runs that keep an account."""
    return sorted({row.run_id for row in await list_rows(platform, AccountChoiceRow) if row.run_id})


async def test_a_runs_account_is_kept_until_temporal_forgot_all_of_the_run(upkeep_platform: Platform) -> None:
    for account in ("alice", "bob"):
        await upkeep_platform.give_grant("crm", upkeep_platform.alice, account=account)
    await choose_account(upkeep_platform, "alice")
    reading = {"account_id": NORTHWIND, "ticket_id": DISPUTE}
    finished_run = await upkeep_platform.start_run(
        "read_once", {"account_id": NORTHWIND}, upkeep_platform.alice
    )
    await upkeep_platform.wait_for_outcome(finished_run)
    parked_run = await upkeep_platform.start_run("read_on", reading, upkeep_platform.alice)
    await upkeep_platform.wait_until_parked(parked_run)
    continued_run = await upkeep_platform.start_run(
        "read_on", {**reading, "continued": 1}, upkeep_platform.alice
    )
    await upkeep_platform.wait_until_parked(continued_run)
    left = await upkeep_platform.start_run("leave_it_to_another", reading, upkeep_platform.alice)
    await upkeep_platform.wait_for_outcome(left)
    (request,) = await upkeep_platform.wait_for_requests(left)
    await choose_account(upkeep_platform, "bob")
    alive = sorted([parked_run, continued_run, left])

    assert await count_looked_for(upkeep_platform) == 0, "what ended a moment ago can still be reset"
    record = await upkeep_platform.services.run_records.find_run(continued_run)
    assert record is not None
    await asyncio.gather(
        wait_until_forgotten(upkeep_platform, finished_run),
        wait_until_forgotten(upkeep_platform, left),
        wait_until_forgotten(upkeep_platform, continued_run, str(record.first_run_id)),
    )
    assert await count_looked_for(upkeep_platform) == 1
    assert await list_kept_runs(upkeep_platform) == alive

    await upkeep_platform.consent(request, upkeep_platform.alice)
    await asyncio.gather(
        upkeep_platform.wait_for_outcome(parked_run), upkeep_platform.wait_for_outcome(continued_run)
    )
    await upkeep_platform.temporal.get_workflow_handle(f"{left}-left").result()
    used_accounts = [api_request["account"] for api_request in upkeep_platform.list_requests("crm")]
    assert used_accounts == [upkeep_platform.systems["crm"].find_account("alice")] * 8
    assert await count_looked_for(upkeep_platform) == 0, "what went on can still be reset"
    assert await list_kept_runs(upkeep_platform) == alive
