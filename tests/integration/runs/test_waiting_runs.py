"""Holds a run that needs a person to asking once, waiting in the open, and ending as that person says."""

import inspect
import re
from datetime import timedelta

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker

from activities.salesforce import Account
from engine.authorization.requests import AuthorizationRequest
from engine.errors import AuthorizationExpired, TemporalUnreachable
from engine.runs.caller import Caller
from engine.runs.outcome import Failed, Finished, PendingWaits
from engine.runs.runs import build_runs
from tests.fixtures.tools import account_reads
from tests.fixtures.tools.account_reads import Reading, ReadOnce
from tests.support.platform import (
    CHAT,
    CONTOSO,
    DISPUTE,
    NAMESPACE,
    NORTHWIND,
    Platform,
    connect_severed_client,
    wait_until,
)

READ = {"account_id": NORTHWIND}


async def list_open_questions(platform: Platform) -> list[AuthorizationRequest]:
    return await platform.services.authorization_requests.list_open_requests(platform.alice.id)


async def list_run_ids(platform: Platform, query: str) -> list[str]:
    return [execution.id async for execution in platform.temporal.list_workflows(query)]


async def test_branches_that_need_three_systems_ask_for_all_three_at_once(platform: Platform) -> None:
    dispute = {"account_id": NORTHWIND, "customer_id": "cus_NffrFeUfNV2Hib", "ticket_id": DISPUTE}

    run = await platform.start_run("resolve_billing_dispute", dispute, platform.alice)
    requests = await platform.wait_for_requests(run, questions=3)
    outcome = await platform.runs.outcomes.wait_for_outcome(run, timeout_seconds=30)
    for request in requests:
        await platform.consent(request, platform.alice)

    assert {request.connection_name for request in requests} == {"crm", "billing", "support"}
    assert isinstance(outcome, PendingWaits)
    assert {request.id for request in outcome.requests} == {request.id for request in requests}
    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert await list_open_questions(platform) == []


async def test_a_run_that_waits_can_be_found_by_person_and_connection_until_it_goes_on(
    platform: Platform,
) -> None:
    run = await platform.start_run("read_account_then_ticket", {**READ, "ticket_id": DISPUTE}, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    waits_for_crm = f"BylineAwaiting='crm' AND BylinePrincipal='Alice Liddell' AND BylineRun='{run}'"
    waits_for_support = waits_for_crm.replace("crm", "support")

    async def is_found_at_crm() -> bool:
        return await list_run_ids(platform, waits_for_crm) == [run]

    async def is_found_at_support() -> bool:
        return await list_run_ids(platform, waits_for_support) == [run]

    async def is_found_nowhere() -> bool:
        return not await list_run_ids(platform, f"BylineAwaiting IS NOT NULL AND BylineRun='{run}'")

    await wait_until(is_found_at_crm)
    await platform.consent(request, platform.alice)
    await wait_until(is_found_at_support)
    assert await list_run_ids(platform, waits_for_crm) == []

    (request,) = await platform.wait_for_requests(run)
    await platform.consent(request, platform.alice)
    assert isinstance(await platform.wait_for_outcome(run), Finished)
    await wait_until(is_found_nowhere)


async def test_the_history_shows_the_wait_and_the_code_of_the_tool_does_not(platform: Platform) -> None:
    run = await platform.start_run("read_once", READ, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    await platform.consent(request, platform.alice)
    assert isinstance(await platform.wait_for_outcome(run), Finished)

    history = {event.event_type for event in await platform.fetch_history(run)}
    code = inspect.getsource(ReadOnce)
    imported_names = re.findall(
        r"^(?:from|import) (engine\S*)", inspect.getsource(account_reads), flags=re.MULTILINE
    )
    assert history >= {
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
        EventType.EVENT_TYPE_TIMER_STARTED,
        EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES,
    }
    assert not re.search("signal|wait_|search_attribute|timer|identity|grant|consent|token", code)
    assert imported_names == ["engine.sdk"]


async def test_a_tool_runs_on_plain_temporal_as_it_does_here(temporal_address: str) -> None:
    @activity.defn(name="salesforce.read_account")
    async def read_account(account_id: str) -> Account:
        return Account(id=account_id, name="Plain", billing_customer_id=None)

    client = await Client.connect(
        temporal_address, namespace=NAMESPACE, data_converter=pydantic_data_converter
    )
    async with Worker(client, task_queue="plain", workflows=[ReadOnce], activities=[read_account]):
        account = await client.execute_workflow(
            ReadOnce.run, Reading(account_id=NORTHWIND), id="plain-1", task_queue="plain"
        )

    assert account.name == "Plain"


async def test_a_no_ends_the_run_and_says_who_said_it(platform: Platform) -> None:
    run = await platform.start_run("read_once", READ, platform.alice)
    (request,) = await platform.wait_until_parked(run)

    await platform.answer_sign_in(request, platform.alice, "Deny", by=platform.services)

    outcome = await platform.wait_for_outcome(run)
    (event,) = await platform.list_trail_events("authorization.denied")
    assert outcome == Failed(
        "authorization_denied", "Alice Liddell declined to let this run use connection 'crm'."
    )
    assert event["principal"]["name"] == "Alice Liddell"
    assert platform.list_requests("crm") == []


async def test_a_question_that_nobody_answers_in_time_ends_the_run(platform: Platform) -> None:
    await platform.redeclare("crm", wait_limit=timedelta(seconds=2))

    run = await platform.start_run("read_once", READ, platform.alice)
    (request,) = await platform.wait_for_requests(run)

    outcome = await platform.wait_for_outcome(run)
    (event,) = await platform.list_trail_events("authorization.expired", run)
    assert outcome == Failed(
        "authorization_expired",
        "Alice Liddell did not sign in to connection 'crm' in time. Call the tool again to get a new link.",
    )
    assert event["request_id"] == request.id
    assert await list_open_questions(platform) == []
    with pytest.raises(AuthorizationExpired):
        await platform.consent(request, platform.alice)


async def test_a_new_call_after_an_expired_question_asks_a_new_one(platform: Platform) -> None:
    await platform.redeclare("crm", wait_limit=timedelta(seconds=2))
    expired_run = await platform.start_run("read_once", READ, platform.alice)
    (first,) = await platform.wait_for_requests(expired_run)
    await platform.wait_for_outcome(expired_run)
    await platform.redeclare("crm", wait_limit=None)

    run = await platform.start_run("read_once", READ, platform.alice)
    (second,) = await platform.wait_until_parked(run)
    await platform.consent(second, platform.alice)

    assert run != expired_run
    assert second.id != first.id
    assert isinstance(await platform.wait_for_outcome(run), Finished)


async def test_a_repeated_call_is_refused_while_the_workflow_engine_does_not_answer(
    platform: Platform,
) -> None:
    run = await platform.start_run("read_once", READ, platform.alice)
    await platform.wait_until_parked(run)

    async with connect_severed_client(platform) as temporal:
        runs = build_runs(platform.services, temporal, platform.registry)
        with pytest.raises(TemporalUnreachable):
            await runs.starter.start_or_attach("read_once", READ, Caller(platform.alice, CHAT, "mcp"))


async def test_a_cancelled_run_waits_for_nothing_any_more(platform: Platform) -> None:
    run = await platform.start_run("read_once", READ, platform.alice)
    await platform.wait_until_parked(run)

    await platform.temporal.get_workflow_handle(run).cancel()

    outcome = await platform.wait_for_outcome(run)
    (waiter,) = await platform.list_waiters(run)
    assert outcome == Failed("run_cancelled", "The run was cancelled.")
    assert waiter.outcome == "cancelled"
    assert await list_open_questions(platform) == []
    assert platform.list_requests("crm") == []


async def test_an_action_that_is_taken_back_before_it_began_is_not_done(platform: Platform) -> None:
    await platform.give_grant("crm", platform.alice)

    run = await platform.start_run("think_better_of_it", READ, platform.alice)

    assert await platform.wait_for_outcome(run) == Finished({"names": []})
    assert platform.list_requests("crm") == []


async def test_a_cancelled_run_takes_the_waits_of_its_children_along(platform: Platform) -> None:
    run = await platform.start_run("read_at_every_level", {**READ, "levels": 2}, platform.alice)
    await platform.wait_for_requests(run)

    await platform.temporal.get_workflow_handle(run).cancel()

    assert await platform.wait_for_outcome(run) == Failed("run_cancelled", "The run was cancelled.")
    assert [waiter.outcome for waiter in await platform.list_waiters(run)] == ["cancelled"]


async def test_two_people_never_share_a_grant(platform: Platform) -> None:
    alices = await platform.start_run("read_once", {"account_id": CONTOSO}, platform.alice)
    bobs = await platform.start_run("read_once", {"account_id": CONTOSO}, platform.bob)
    (of_alice,) = await platform.wait_until_parked(alices)
    (of_bob,) = await platform.wait_until_parked(bobs)

    await platform.consent(of_alice, platform.alice)
    assert isinstance(await platform.wait_for_outcome(alices), Finished)
    assert await platform.read_awaited_connections(bobs) == ["crm"]
    assert await platform.count_events(bobs, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED) == 0

    await platform.consent(of_bob, platform.bob)
    assert isinstance(await platform.wait_for_outcome(bobs), Finished)
    crm = platform.systems["crm"]
    assert of_alice.id != of_bob.id
    assert [request["account"] for request in platform.list_requests("crm")] == [
        crm.find_account("alice"),
        crm.find_account("bob"),
    ]


@pytest.mark.parametrize("tool", ["comment_on_ticket", "rename_ticket"], ids=["declared", "challenged"])
async def test_a_grant_that_lacks_a_scope_is_widened_by_that_scope_alone_and_serves_meanwhile(
    platform: Platform, tool: str
) -> None:
    await platform.redeclare("support", scopes=("tickets:read",))
    await platform.give_grant("support", platform.alice)
    await platform.give_grant("crm", platform.alice)

    run = await platform.start_run(tool, {"ticket_id": DISPUTE, "text": "Looked into"}, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    meanwhile = await platform.start_run(
        "read_account_then_ticket", {**READ, "ticket_id": DISPUTE}, platform.alice
    )
    assert isinstance(await platform.wait_for_outcome(meanwhile), Finished)
    assert await platform.read_awaited_connections(run) == ["support"]

    await platform.consent(request, platform.alice)
    assert isinstance(await platform.wait_for_outcome(run), Finished)
    support = await platform.services.catalogue.get_connection("support")
    active_scopes = await platform.services.grants.list_active_scopes(support, platform.alice.id)
    assert request.scopes == ("tickets:write",)
    assert set(active_scopes) == {"tickets:read", "tickets:write"}
