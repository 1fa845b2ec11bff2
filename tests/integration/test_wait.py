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
from tests.platform import CHAT, CONTOSO, DISPUTE, NAMESPACE, NORTHWIND, Platform, severed, until
from tests.tools import reading
from tests.tools.reading import Reading, ReadOnce

READ = {"account_id": NORTHWIND}


async def open_questions(platform: Platform) -> list[AuthorizationRequest]:
    return await platform.services.authorization_requests.list_open_requests(platform.alice.id)


async def listed(platform: Platform, query: str) -> list[str]:
    return [found.id async for found in platform.temporal.list_workflows(query)]


async def test_branches_that_need_three_systems_ask_for_all_three_at_once(platform: Platform) -> None:
    dispute = {"account_id": NORTHWIND, "customer_id": "cus_NffrFeUfNV2Hib", "ticket_id": DISPUTE}

    run = await platform.start("resolve_billing_dispute", dispute, platform.alice)
    requests = await platform.asked(run, questions=3)
    told = await platform.runs.outcomes.wait_for_outcome(run, timeout_seconds=30)
    for request in requests:
        await platform.consent(request, platform.alice)

    assert {request.connection_name for request in requests} == {"crm", "billing", "support"}
    assert isinstance(told, PendingWaits)
    assert {request.id for request in told.requests} == {request.id for request in requests}
    assert isinstance(await platform.outcome(run), Finished)
    assert await open_questions(platform) == []


async def test_a_run_that_waits_can_be_found_by_person_and_connection_until_it_goes_on(
    platform: Platform,
) -> None:
    run = await platform.start("read_account_then_ticket", {**READ, "ticket_id": DISPUTE}, platform.alice)
    (request,) = await platform.parked(run)
    waits_for_crm = f"BylineAwaiting='crm' AND BylinePrincipal='Alice Liddell' AND BylineRun='{run}'"
    waits_for_support = waits_for_crm.replace("crm", "support")

    async def found_at_crm() -> bool:
        return await listed(platform, waits_for_crm) == [run]

    async def found_at_support() -> bool:
        return await listed(platform, waits_for_support) == [run]

    async def found_nowhere() -> bool:
        return not await listed(platform, f"BylineAwaiting IS NOT NULL AND BylineRun='{run}'")

    await until(found_at_crm)
    await platform.consent(request, platform.alice)
    await until(found_at_support)
    assert await listed(platform, waits_for_crm) == []

    (request,) = await platform.asked(run)
    await platform.consent(request, platform.alice)
    assert isinstance(await platform.outcome(run), Finished)
    await until(found_nowhere)


async def test_the_history_tells_of_the_wait_and_the_code_of_the_tool_does_not(platform: Platform) -> None:
    run = await platform.start("read_once", READ, platform.alice)
    (request,) = await platform.parked(run)
    await platform.consent(request, platform.alice)
    assert isinstance(await platform.outcome(run), Finished)

    history = {event.event_type for event in await platform.history(run)}
    code = inspect.getsource(ReadOnce)
    imported = re.findall(r"^(?:from|import) (engine\S*)", inspect.getsource(reading), flags=re.MULTILINE)
    assert history >= {
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
        EventType.EVENT_TYPE_TIMER_STARTED,
        EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES,
    }
    assert not re.search("signal|wait_|search_attribute|timer|identity|grant|consent|token", code)
    assert imported == ["engine.sdk"]


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
    run = await platform.start("read_once", READ, platform.alice)
    (request,) = await platform.parked(run)

    await platform.answer(request, platform.alice, "Deny", by=platform.services)

    outcome = await platform.outcome(run)
    (event,) = await platform.trail("authorization.denied")
    assert outcome == Failed(
        "authorization_denied", "Alice Liddell declined to let this run use connection 'crm'."
    )
    assert event["principal"]["name"] == "Alice Liddell"
    assert platform.requests("crm") == []


async def test_a_question_that_nobody_answers_in_time_ends_the_run(platform: Platform) -> None:
    await platform.redeclare("crm", wait_limit=timedelta(seconds=2))

    run = await platform.start("read_once", READ, platform.alice)
    (request,) = await platform.asked(run)

    outcome = await platform.outcome(run)
    (event,) = await platform.trail("authorization.expired", run)
    assert outcome == Failed(
        "authorization_expired",
        "Alice Liddell did not sign in to connection 'crm' in time. Call the tool again to get a new link.",
    )
    assert event["request_id"] == request.id
    assert await open_questions(platform) == []
    with pytest.raises(AuthorizationExpired):
        await platform.consent(request, platform.alice)


async def test_a_new_call_after_an_expired_question_asks_a_new_one(platform: Platform) -> None:
    await platform.redeclare("crm", wait_limit=timedelta(seconds=2))
    expired = await platform.start("read_once", READ, platform.alice)
    (first,) = await platform.asked(expired)
    await platform.outcome(expired)
    await platform.redeclare("crm", wait_limit=None)

    run = await platform.start("read_once", READ, platform.alice)
    (second,) = await platform.parked(run)
    await platform.consent(second, platform.alice)

    assert run != expired
    assert second.id != first.id
    assert isinstance(await platform.outcome(run), Finished)


async def test_a_repeated_call_is_told_where_the_workflow_engine_does_not_answer(platform: Platform) -> None:
    run = await platform.start("read_once", READ, platform.alice)
    await platform.parked(run)

    async with severed(platform) as temporal:
        runs = build_runs(platform.services, temporal, platform.registry)
        with pytest.raises(TemporalUnreachable):
            await runs.starter.start_or_attach("read_once", READ, Caller(platform.alice, CHAT, "mcp"))


async def test_a_cancelled_run_waits_for_nothing_any_more(platform: Platform) -> None:
    run = await platform.start("read_once", READ, platform.alice)
    await platform.parked(run)

    await platform.temporal.get_workflow_handle(run).cancel()

    outcome = await platform.outcome(run)
    (waiter,) = await platform.waiters(run)
    assert outcome == Failed("run_cancelled", "The run was cancelled.")
    assert waiter.outcome == "cancelled"
    assert await open_questions(platform) == []
    assert platform.requests("crm") == []


async def test_an_action_that_is_taken_back_before_it_began_is_not_done(platform: Platform) -> None:
    await platform.grant("crm", platform.alice)

    run = await platform.start("think_better_of_it", READ, platform.alice)

    assert await platform.outcome(run) == Finished({"names": []})
    assert platform.requests("crm") == []


async def test_a_cancelled_run_takes_the_waits_of_its_children_along(platform: Platform) -> None:
    run = await platform.start("read_at_every_level", {**READ, "levels": 2}, platform.alice)
    await platform.asked(run)

    await platform.temporal.get_workflow_handle(run).cancel()

    assert await platform.outcome(run) == Failed("run_cancelled", "The run was cancelled.")
    assert [waiter.outcome for waiter in await platform.waiters(run)] == ["cancelled"]


async def test_two_people_never_share_a_grant(platform: Platform) -> None:
    alices = await platform.start("read_once", {"account_id": CONTOSO}, platform.alice)
    bobs = await platform.start("read_once", {"account_id": CONTOSO}, platform.bob)
    (of_alice,) = await platform.parked(alices)
    (of_bob,) = await platform.parked(bobs)

    await platform.consent(of_alice, platform.alice)
    assert isinstance(await platform.outcome(alices), Finished)
    assert await platform.awaiting(bobs) == ["crm"]
    assert await platform.count(bobs, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED) == 0

    await platform.consent(of_bob, platform.bob)
    assert isinstance(await platform.outcome(bobs), Finished)
    crm = platform.systems["crm"]
    assert of_alice.id != of_bob.id
    assert [request["account"] for request in platform.requests("crm")] == [
        crm.account("alice"),
        crm.account("bob"),
    ]


@pytest.mark.parametrize("tool", ["comment_on_ticket", "rename_ticket"], ids=["declared", "challenged"])
async def test_a_grant_that_lacks_a_scope_is_widened_by_that_scope_alone_and_serves_meanwhile(
    platform: Platform, tool: str
) -> None:
    await platform.redeclare("support", scopes=("tickets:read",))
    await platform.grant("support", platform.alice)
    await platform.grant("crm", platform.alice)

    run = await platform.start(tool, {"ticket_id": DISPUTE, "text": "Looked into"}, platform.alice)
    (request,) = await platform.parked(run)
    meanwhile = await platform.start(
        "read_account_then_ticket", {**READ, "ticket_id": DISPUTE}, platform.alice
    )
    assert isinstance(await platform.outcome(meanwhile), Finished)
    assert await platform.awaiting(run) == ["support"]

    await platform.consent(request, platform.alice)
    assert isinstance(await platform.outcome(run), Finished)
    support = await platform.services.catalogue.get_connection("support")
    held = await platform.services.grants.list_active_scopes(support, platform.alice.id)
    assert request.scopes == ("tickets:write",)
    assert set(held) == {"tickets:read", "tickets:write"}
