"""Holds several accounts of one person on one connection to being used as their owner chose, and never otherwise."""

import asyncio
import secrets
from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlmodel import col

from engine.authorization.requests import AuthorizationRequest
from engine.connections.connection import Connection
from engine.db.database import utc_now
from engine.db.tables import AccountChoiceRow
from engine.errors import AccountUnclear, AccountUnknown, AuthorizationRequired
from engine.identity.model import Principal
from engine.services import Services
from engine.waiting.waiters import ParkedAction
from tests.support.samples import TOOL, build_connection, build_identity, build_tokens

READ_WRITE_BILLING = build_connection(scopes=("read", "write"))
BILLING = READ_WRITE_BILLING.model_copy(
    update={"provider": READ_WRITE_BILLING.provider.model_copy(update={"revocation_endpoint": None})}
)
WORK, HOME = "alice@work.example", "alice@home.example"


async def connect_accounts(
    services: Services, principal: Principal, *accounts: str, declaration: Connection = BILLING
) -> None:
    for account in accounts:
        async with services.database.open_write_session() as session:
            await services.grants.store_grant(
                session, declaration, principal.id, build_tokens("read", "write"), account
            )


async def use_account(
    services: Services, principal: Principal, *, tool: str = TOOL, run: str = "run-1"
) -> str | None:
    """The account that an action of this run may use."""
    credential = await services.grants.find_credential(BILLING, principal.id, tool_name=tool, run_id=run)
    if credential is None or not await services.grants.pin_account(BILLING, principal.id, run, credential):
        return None
    return credential.account


async def request_sign_in(
    services: Services, principal: Principal, run: str = "run-1", *scopes: str
) -> AuthorizationRequired | None:
    place = ParkedAction(run, f"of {run}", secrets.token_hex(4))
    needed_scopes = scopes or BILLING.scopes
    return await services.authorization_requests.require_authorization(
        build_identity(principal, run), BILLING, needed_scopes, place, run_id=run, needed_scopes=needed_scopes
    )


async def open_question(
    services: Services, principal: Principal, run: str = "run-1", *scopes: str
) -> AuthorizationRequest:
    requirement = await request_sign_in(services, principal, run, *scopes)
    assert requirement is not None
    stored_request = await services.authorization_requests.find_request(requirement.request_id)
    assert stored_request is not None
    return stored_request


async def signed_in(
    services: Services, principal: Principal, request: AuthorizationRequest, account: str, tool: str = ""
) -> bool:
    return await services.answer_recorder.record_grant(
        request, BILLING, principal, build_tokens(*BILLING.scopes), account, tool_name=tool
    )


async def is_open(services: Services, request: AuthorizationRequest) -> bool:
    stored_request = await services.authorization_requests.find_request(request.id)
    return stored_request is not None and stored_request.is_open


async def lapse_account(services: Services, principal: Principal, account: str) -> None:
    """Let the upstream refuse what was granted with this account."""
    await services.answer_recorder.choose_account(
        BILLING, principal, account, tool_name="the one that finds out"
    )
    credential = await services.grants.find_credential(
        BILLING, principal.id, tool_name="the one that finds out"
    )
    assert credential is not None
    await services.grants.lapse_grant(credential)
    await services.answer_recorder.forget_choice(BILLING, principal, tool_name="the one that finds out")


async def test_one_account_needs_no_choice_and_several_do(services: Services, alice: Principal) -> None:
    await connect_accounts(services, alice, WORK)
    before = await use_account(services, alice)
    await connect_accounts(services, alice, HOME)

    assert before == WORK
    assert await use_account(services, alice, run="run-2") is None
    assert [grant.account for grant in await services.grants.list_grants(alice.id)] == [HOME, WORK]


async def test_signing_in_to_an_account_again_replaces_its_grant_and_no_other(
    services: Services, alice: Principal
) -> None:
    await connect_accounts(services, alice, WORK, HOME)
    before = {grant.account: grant.id for grant in await services.grants.list_grants(alice.id)}
    await connect_accounts(services, alice, WORK)
    after = {grant.account: grant.id for grant in await services.grants.list_grants(alice.id)}

    assert after.keys() == before.keys()
    assert after[HOME] == before[HOME]
    assert after[WORK] != before[WORK]


async def test_a_shared_connection_has_one_grant_whatever_its_account(
    services: Services, alice: Principal
) -> None:
    ledger = build_connection("ledger", mode="shared")
    await connect_accounts(services, alice, "one", "another", declaration=ledger)
    credential = await services.grants.find_credential(ledger, alice.id)

    assert credential is not None
    assert credential.account == "another"


async def test_the_choice_for_a_tool_goes_before_the_one_for_every_tool_and_lasts_until_it_is_changed(
    services: Services, other: Services, alice: Principal, bob: Principal
) -> None:
    await connect_accounts(services, alice, WORK, HOME)
    await connect_accounts(services, bob, WORK, HOME)
    await services.answer_recorder.choose_account(BILLING, alice, WORK)
    await services.answer_recorder.choose_account(BILLING, alice, HOME, tool_name="plan_holidays")

    assert await use_account(other, alice, run="run-1") == WORK
    assert await use_account(other, alice, run="run-2", tool="plan_holidays") == HOME
    assert await use_account(other, bob, run="run-3") is None
    await services.answer_recorder.forget_choice(BILLING, alice, tool_name="plan_holidays")
    assert await use_account(other, alice, run="run-4", tool="plan_holidays") == WORK
    await services.answer_recorder.choose_account(BILLING, alice, HOME)
    assert await use_account(other, alice, run="run-5") == HOME
    assert await services.accounts.list_choices(alice.id) == {"billing": {"": HOME}}
    used_accounts = [
        (line.kind, line.event.get("account"), line.event.get("for_tool"))
        for line in await services.trail.find_lines()
    ]
    assert used_accounts == [
        ("account.chosen", WORK, None),
        ("account.chosen", HOME, "plan_holidays"),
        ("account.unchosen", None, "plan_holidays"),
        ("account.chosen", HOME, None),
    ]


async def test_an_account_that_is_not_connected_cannot_be_chosen(
    services: Services, alice: Principal
) -> None:
    await connect_accounts(services, alice, WORK)
    await lapse_account(services, alice, WORK)

    for account in (WORK, HOME):
        with pytest.raises(AccountUnknown, match=account):
            await services.answer_recorder.choose_account(BILLING, alice, account)


async def test_a_run_keeps_the_account_that_it_used_first_whatever_is_chosen_meanwhile(
    services: Services, alice: Principal
) -> None:
    await connect_accounts(services, alice, WORK)
    assert await use_account(services, alice) == WORK
    await connect_accounts(services, alice, HOME)
    await services.answer_recorder.choose_account(BILLING, alice, HOME)

    assert await use_account(services, alice) == WORK
    assert await use_account(services, alice, run="run-2") == HOME
    await services.grant_removal.remove_own_grant(BILLING, alice, WORK)
    assert await use_account(services, alice) is None
    request = await open_question(services, alice)
    assert (request.request_kind, request.account) == ("account", WORK)
    assert not await signed_in(services, alice, request, HOME)
    assert await is_open(services, request)
    assert await use_account(services, alice) is None
    assert await signed_in(services, alice, request, WORK)
    assert await use_account(services, alice) == WORK


async def test_of_first_uses_that_meet_while_the_choice_changes_one_decides_for_the_run(
    services: Services, other: Services, alice: Principal
) -> None:
    await connect_accounts(services, alice, WORK, HOME)
    for number in range(6):
        await services.answer_recorder.choose_account(BILLING, alice, WORK)
        uses = (use_account((services, other)[place % 2], alice, run=f"run-{number}") for place in range(8))
        used_credential, *_ = await asyncio.gather(
            asyncio.gather(*uses), other.answer_recorder.choose_account(BILLING, alice, HOME)
        )
        assert len({account for account in used_credential if account is not None}) == 1


async def test_the_account_that_was_chosen_is_asked_for_and_never_replaced_by_another(
    services: Services, alice: Principal
) -> None:
    await connect_accounts(services, alice, WORK, HOME)
    await services.answer_recorder.choose_account(BILLING, alice, WORK)
    await services.grant_removal.remove_own_grant(BILLING, alice, WORK)

    assert await use_account(services, alice) is None
    request = await open_question(services, alice)
    assert (request.request_kind, request.about) == ("choice", TOOL)
    await services.answer_recorder.answer_choice(request, BILLING, alice, HOME)
    assert await use_account(services, alice) == HOME
    assert await services.accounts.list_choices(alice.id) == {"billing": {"": HOME}}


async def test_an_account_whose_sign_in_lapsed_gives_way_to_no_other(
    services: Services, alice: Principal
) -> None:
    await connect_accounts(services, alice, WORK)
    await lapse_account(services, alice, WORK)
    first = await open_question(services, alice, "run-1")
    await connect_accounts(services, alice, HOME)

    assert first.request_kind == "any_account"
    assert await use_account(services, alice, run="run-2") is None
    assert (await open_question(services, alice, "run-2")).request_kind == "choice"
    await connect_accounts(services, alice, WORK)
    await services.grant_removal.remove_own_grant(BILLING, alice, HOME)
    assert await use_account(services, alice, run="run-3") == WORK


async def test_whoever_signs_in_elsewhere_when_their_only_account_lapsed_is_not_asked_again_which_to_use(
    services: Services, alice: Principal
) -> None:
    await connect_accounts(services, alice, WORK)
    await lapse_account(services, alice, WORK)

    assert await signed_in(services, alice, await open_question(services, alice), HOME)

    assert await use_account(services, alice, run="run-2") == HOME


async def test_an_answer_holds_for_the_runs_that_waited_even_if_it_is_changed_before_they_wake(
    services: Services, alice: Principal
) -> None:
    await connect_accounts(services, alice, WORK, HOME)
    request = await open_question(services, alice, "run-1")
    assert (await open_question(services, alice, "run-2")).id == request.id

    await services.answer_recorder.answer_choice(request, BILLING, alice, WORK)
    await services.answer_recorder.choose_account(BILLING, alice, HOME)

    assert len(await services.waiters.list_due_wake_ups(10)) == 2
    assert [await use_account(services, alice, run=f"run-{number}") for number in (1, 2, 3)] == [
        WORK,
        WORK,
        HOME,
    ]


async def test_a_new_account_that_answers_for_one_tool_is_used_by_that_tool_alone(
    services: Services, alice: Principal
) -> None:
    await connect_accounts(services, alice, WORK)
    await services.answer_recorder.choose_account(BILLING, alice, WORK)
    await services.grant_removal.remove_own_grant(BILLING, alice)
    request = await open_question(services, alice)

    assert await signed_in(services, alice, request, HOME, tool=TOOL)

    assert await services.accounts.list_choices(alice.id) == {"billing": {"": WORK, TOOL: HOME}}
    assert await use_account(services, alice, run="run-2") == HOME
    assert await use_account(services, alice, run="run-3", tool="another_tool") is None


async def test_a_choice_by_page_answers_the_tools_that_wait_for_one(
    services: Services, alice: Principal
) -> None:
    await connect_accounts(services, alice, WORK, HOME)
    request = await open_question(services, alice)

    await services.answer_recorder.choose_account(BILLING, alice, HOME, tool_name="another_tool")
    assert await is_open(services, request)
    await services.answer_recorder.choose_account(BILLING, alice, HOME)

    assert not await is_open(services, request)
    assert await use_account(services, alice) == HOME


async def test_a_step_up_widens_the_chosen_account_and_leaves_the_others_as_they_are(
    services: Services, alice: Principal
) -> None:
    await connect_accounts(services, alice, WORK, HOME)
    await services.answer_recorder.choose_account(BILLING, alice, HOME)

    request = await open_question(services, alice, "run-1", "delete")

    assert (request.request_kind, request.about, request.scopes) == ("account", HOME, ("delete",))
    assert await services.authorization_requests.collect_requested_scopes(request, BILLING) == (
        "read",
        "write",
        "delete",
    )
    widened_tokens = build_tokens("read", "write", "delete")
    await services.answer_recorder.record_grant(request, BILLING, alice, widened_tokens, HOME)
    assert await request_sign_in(services, alice, "run-1", "delete") is None
    assert set(await services.grants.list_active_scopes(BILLING, alice.id, WORK)) == {"read", "write"}


async def test_a_request_ahead_has_no_waiter_and_serves_whoever_comes(
    services: Services, alice: Principal
) -> None:
    ahead = await services.authorization_requests.open_request_ahead(alice, BILLING, BILLING.scopes)

    assert await services.authorization_requests.list_open_requests(alice.id) == []
    assert (
        await services.authorization_requests.open_request_ahead(alice, BILLING, BILLING.scopes)
    ).id == ahead.id
    assert (await open_question(services, alice)).id == ahead.id
    assert await signed_in(services, alice, ahead, WORK)
    assert await use_account(services, alice) == WORK


async def test_a_removal_says_which_account_where_there_are_several(
    services: Services, alice: Principal
) -> None:
    await connect_accounts(services, alice, WORK, HOME)

    with pytest.raises(AccountUnclear, match=f"'{HOME}', '{WORK}'"):
        await services.grant_removal.remove_own_grant(BILLING, alice)
    assert await services.grant_removal.remove_own_grant(BILLING, alice, "somebody@else.example") is None
    removed = await services.grant_removal.remove_own_grant(BILLING, alice, WORK)
    assert removed is not None
    assert removed.account == WORK
    assert [grant.account for grant in await services.grants.list_grants(alice.id)] == [HOME]


async def test_the_account_of_a_run_is_forgotten_only_by_a_namespace_that_had_the_run(
    services: Services, alice: Principal
) -> None:
    await connect_accounts(services, alice, WORK)
    for run in ("run-1", "run-2"):
        assert await use_account(services, alice, run=run) == WORK
    await services.answer_recorder.choose_account(BILLING, alice, WORK)

    async def count_looked_for(namespace: str, *kept_run_ids: str, days: int = 1) -> int:
        runs = update(AccountChoiceRow).where(col(AccountChoiceRow.run_id) != "")
        async with services.database.open_write_session() as session:
            await session.exec(runs.values(due_at=utc_now(), chosen_at=utc_now() - timedelta(days=days)))
        return await services.accounts.forget_deleted_runs(
            await services.accounts.list_due_runs(10), kept_run_ids, namespace
        )

    assert await count_looked_for("new") == 0, "a namespace that never knew a run says nothing of it"
    assert await count_looked_for("old", "run-1") == 0
    assert await services.accounts.list_due_runs(10) == [], (
        "who was looked for is looked for again a day later"
    )
    assert await count_looked_for("new") == 0, "another one may still have it"
    assert await count_looked_for("new", days=400) == 1, "nobody was seen to have the other one"
    assert await count_looked_for("old") == 1
    assert await services.accounts.list_choices(alice.id) == {"billing": {"": WORK}}
