"""Holds runs of somebody with two accounts at a system to using the one that was chosen, or asking which."""

import asyncio

import pytest

from engine.errors import AccountMismatched
from engine.runs.outcome import Finished
from tests.support.platform import CONTOSO, DISPUTE, NORTHWIND, Platform

READ = {"account_id": CONTOSO}


async def choose_account(platform: Platform, connection: str, account: str, tool: str = "") -> None:
    """Let Alice choose an account."""
    declaration = await platform.services.catalogue.get_connection(connection)
    name = platform.systems[connection].find_account(account)
    await platform.services.answer_recorder.choose_account(declaration, platform.alice, name, tool_name=tool)


async def connect_two_accounts(platform: Platform, *connections: str) -> None:
    """Connect Alice's account, and Bob's as her other one."""
    for connection in connections:
        await platform.give_grant(connection, platform.alice)
        await platform.give_grant(connection, platform.alice, account="bob")


def list_used_accounts(platform: Platform, system: str) -> list[str]:
    """By which of the accounts a system was asked; by nobody where it knows no account for a token."""
    names = {platform.systems[system].find_account(name): name for name in ("alice", "bob")}
    return [names.get(request["account"], "nobody") for request in platform.list_requests(system)]


async def test_a_run_waits_for_the_choice_between_two_accounts_which_is_remembered(
    platform: Platform,
) -> None:
    await connect_two_accounts(platform, "crm")
    crm = await platform.services.catalogue.get_connection("crm")

    run = await platform.start_run("read_once", {**READ, "label": "1"}, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    before = platform.list_requests("crm")
    bobs = platform.systems["crm"].find_account("bob")
    await platform.services.answer_recorder.answer_choice(request, crm, platform.alice, bobs)

    assert (request.request_kind, request.about, before) == ("choice", "read_once", [])
    assert isinstance(await platform.wait_for_outcome(run), Finished)
    again = await platform.start_run("read_once", {**READ, "label": "2"}, platform.alice)
    assert isinstance(await platform.wait_for_outcome(again), Finished)
    assert list_used_accounts(platform, "crm") == ["bob", "bob"]
    trail = [event["account"] for event in await platform.list_trail_events("action.intended")]
    assert trail == [bobs, bobs]


async def test_a_run_that_waits_for_a_choice_goes_on_with_an_account_that_is_connected_for_it(
    platform: Platform,
) -> None:
    await platform.give_grant("crm", platform.alice)
    await choose_account(platform, "crm", "alice")
    declaration = await platform.services.catalogue.get_connection("crm")
    await platform.services.grant_removal.remove_own_grant(declaration, platform.alice)

    run = await platform.start_run("read_once", READ, platform.alice)
    (request,) = await platform.wait_until_parked(run)
    await platform.consent(request, platform.alice, account="bob")

    assert request.request_kind == "choice"
    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert list_used_accounts(platform, "crm") == ["bob"]
    choice = (await platform.services.accounts.list_choices(platform.alice.id))["crm"]
    assert choice == {"": platform.systems["crm"].find_account("bob")}


async def test_each_tool_uses_the_account_that_was_chosen_for_it_at_the_same_time(platform: Platform) -> None:
    await connect_two_accounts(platform, "crm")
    await choose_account(platform, "crm", "alice")
    await choose_account(platform, "crm", "bob", tool="read_once")

    runs = [
        await platform.start_run(tool, arguments, platform.alice)
        for tool, arguments in (
            ("read_once", READ),
            ("read_widely", {"account_id": CONTOSO, "width": 3}),
        )
    ]
    outcomes = await asyncio.gather(*(platform.wait_for_outcome(run) for run in runs))

    assert all(isinstance(outcome, Finished) for outcome in outcomes)
    assert sorted(list_used_accounts(platform, "crm")) == ["alice", "alice", "alice", "bob"]


async def test_branches_that_need_a_choice_a_step_up_and_a_sign_in_ask_for_all_three_at_once(
    platform: Platform,
) -> None:
    await connect_two_accounts(platform, "crm")
    await platform.give_grant("support", platform.alice, scope="tickets:write")
    dispute = {"account_id": NORTHWIND, "customer_id": "cus_NffrFeUfNV2Hib", "ticket_id": DISPUTE}

    run = await platform.start_run("resolve_billing_dispute", dispute, platform.alice)
    requests = {
        request.connection_name: request for request in await platform.wait_for_requests(run, questions=3)
    }

    assert {name: request.request_kind for name, request in requests.items()} == {
        "crm": "choice",
        "billing": "any_account",
        "support": "account",
    }
    crm = await platform.services.catalogue.get_connection("crm")
    alices = platform.systems["crm"].find_account("alice")
    await platform.services.answer_recorder.answer_choice(requests["crm"], crm, platform.alice, alices)
    for name in ("billing", "support"):
        await platform.consent(requests[name], platform.alice)
    assert isinstance(await platform.wait_for_outcome(run), Finished)


async def test_a_step_up_with_another_account_is_refused_and_waits_for_the_right_one(
    platform: Platform,
) -> None:
    await platform.redeclare("support", scopes=("tickets:read",))
    await connect_two_accounts(platform, "support")
    await choose_account(platform, "support", "alice")
    support = await platform.services.catalogue.get_connection("support")
    alices, bobs = (platform.systems["support"].find_account(name) for name in ("alice", "bob"))

    run = await platform.start_run(
        "comment_on_ticket", {"ticket_id": DISPUTE, "text": "Looked into"}, platform.alice
    )
    (request,) = await platform.wait_until_parked(run)
    with pytest.raises(AccountMismatched, match="goes on with that account alone"):
        await platform.consent(request, platform.alice, account="bob")
    (still,) = await platform.wait_for_requests(run)
    assert (still.id, still.account, still.is_open) == (request.id, alices, True)
    assert platform.list_requests("support") == []

    await platform.consent(request, platform.alice)
    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert set(list_used_accounts(platform, "support")) == {"alice"}
    active_scopes = await platform.services.grants.list_active_scopes(support, platform.alice.id, alices)
    assert set(active_scopes) == {"tickets:read", "tickets:write"}
    assert {grant.account for grant in await platform.services.grants.list_grants(platform.alice.id)} == {
        alices,
        bobs,
    }


async def test_the_chosen_account_that_its_upstream_revoked_is_asked_for_and_no_other_is_used(
    platform: Platform,
) -> None:
    tokens = await platform.give_grant("crm", platform.alice)
    await platform.give_grant("crm", platform.alice, account="bob")
    await choose_account(platform, "crm", "alice")
    crm = platform.systems["crm"]
    async with crm.build_client() as client:
        await client.revoke_token(crm.url + crm.system.oauth.revoke, token=tokens.refresh_token)

    run = await platform.start_run("read_once", READ, platform.alice)
    (request,) = await platform.wait_until_parked(run)

    assert set(list_used_accounts(platform, "crm")) == {"nobody"}
    assert request.account == crm.find_account("alice")
    await platform.consent(request, platform.alice)
    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert set(list_used_accounts(platform, "crm")) == {"nobody", "alice"}


async def test_a_run_goes_on_with_its_account_though_another_was_chosen_while_it_waited(
    platform: Platform,
) -> None:
    await connect_two_accounts(platform, "crm")
    await choose_account(platform, "crm", "alice")

    run = await platform.start_run(
        "read_account_around_ticket", {**READ, "ticket_id": DISPUTE}, platform.alice
    )
    (request,) = await platform.wait_until_parked(run)
    await choose_account(platform, "crm", "bob")
    await platform.consent(request, platform.alice)

    assert request.connection_name == "support"
    assert isinstance(await platform.wait_for_outcome(run), Finished)
    assert list_used_accounts(platform, "crm") == ["alice", "alice"]
