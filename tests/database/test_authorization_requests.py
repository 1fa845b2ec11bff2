import asyncio
import random
from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlmodel import select

from engine.authorization.requests import AuthorizationRequest
from engine.db.database import utc_now
from engine.db.tables import AuthorizationRequestRow, WaiterRow
from engine.errors import (
    AuthorizationCancelled,
    AuthorizationDenied,
    AuthorizationExpired,
    AuthorizationRequired,
    PrincipalInactive,
)
from engine.identity.model import Principal
from engine.services import Services
from engine.waiting.waiters import ParkedAction
from tests.support.samples import build_connection, build_identity, build_tokens

READ_WRITE_BILLING = build_connection(scopes=("read", "write"))
UNREVOCABLE = READ_WRITE_BILLING.provider.model_copy(update={"revocation_endpoint": None})
BILLING = READ_WRITE_BILLING.model_copy(update={"provider": UNREVOCABLE})


def build_parked_action(number: int) -> ParkedAction:
    return ParkedAction(f"workflow-{number}", f"run-of-workflow-{number}", f"action-{number}")


async def request_authorization(
    services: Services,
    principal: Principal,
    number: int = 1,
    scopes: Sequence[str] = BILLING.scopes,
    *,
    refused_fingerprint: str | None = None,
) -> AuthorizationRequired | None:
    return await services.authorization_requests.require_authorization(
        build_identity(principal),
        BILLING,
        scopes,
        build_parked_action(number),
        run_id="run-1",
        needed_scopes=scopes,
        refused_grant_id=refused_fingerprint,
    )


async def find_request(services: Services, requirement: AuthorizationRequired | None) -> AuthorizationRequest:
    assert requirement is not None
    request = await services.authorization_requests.find_request(requirement.request_id)
    assert request is not None
    return request


async def consent(
    services: Services, principal: Principal, request: AuthorizationRequest, *scopes: str
) -> None:
    granted_tokens = build_tokens(*(scopes or BILLING.scopes))
    await services.answer_recorder.record_grant(
        request, BILLING, principal, granted_tokens, "alice@acme.example"
    )


async def list_waiter_rows(services: Services) -> list[WaiterRow]:
    async with services.database.open_read_session() as session:
        return list((await session.exec(select(WaiterRow))).all())


async def list_request_rows(services: Services) -> list[AuthorizationRequestRow]:
    async with services.database.open_read_session() as session:
        return list((await session.exec(select(AuthorizationRequestRow))).all())


async def list_kinds(services: Services) -> list[str]:
    return [line.kind for line in await services.trail.find_lines()]


async def test_everybody_who_waits_for_the_same_consent_joins_one_request(
    services: Services, other: Services, alice: Principal
) -> None:
    requirements = await asyncio.gather(
        *(request_authorization((services, other)[number % 2], alice, number) for number in range(20))
    )

    assert len({requirement.request_id for requirement in requirements if requirement is not None}) == 1
    assert len({requirement.waiter_id for requirement in requirements if requirement is not None}) == 20
    assert len(await list_request_rows(services)) == 1
    assert await list_kinds(services) == ["authorization.requested"]


async def test_each_person_connection_and_scope_set_is_a_question_of_its_own(
    services: Services, alice: Principal, bob: Principal
) -> None:
    for principal in (alice, bob):
        for scopes in (("read",), ("read", "write"), ("write", "read")):
            await request_authorization(services, principal, scopes=scopes)

    assert len(await list_request_rows(services)) == 4


async def test_an_attempt_that_is_repeated_finds_the_wait_it_began(
    services: Services, alice: Principal
) -> None:
    first = await request_authorization(services, alice)
    again = await request_authorization(services, alice)

    assert first is not None
    assert again is not None
    assert again.details == first.details
    assert len(await list_waiter_rows(services)) == 1


async def test_a_grant_wakes_everybody_who_waits(
    services: Services, other: Services, alice: Principal
) -> None:
    requirements = [await request_authorization(services, alice, number) for number in range(5)]
    await consent(other, alice, await find_request(services, requirements[0]))

    due = await services.waiters.list_due_wake_ups(100)
    assert {wake_up.waiter_id for wake_up in due} == {
        requirement.waiter_id for requirement in requirements if requirement is not None
    }
    assert {wake_up.workflow_id for wake_up in due} == {f"workflow-{number}" for number in range(5)}
    assert [row.state for row in await list_request_rows(services)] == ["granted"]
    assert await list_kinds(services) == ["authorization.requested", "authorization.granted"]


async def test_what_a_client_took_to_its_person_is_known_of_that_run_until_the_wait_is_over(
    services: Services, alice: Principal
) -> None:
    taken_request = await find_request(services, await request_authorization(services, alice, 1))
    left = await find_request(services, await request_authorization(services, alice, 2, ("delete",)))
    await services.waiters.record_announced("run-2", [left.id])
    await services.waiters.record_announced("run-1", [taken_request.id])
    another_action = await request_authorization(services, alice, 3)

    assert another_action is not None
    assert another_action.request_id == taken_request.id
    assert await services.waiters.list_announced("run-1") == {taken_request.id}
    assert await services.waiters.list_announced("run-2") == set()
    await consent(services, alice, taken_request)
    assert await services.waiters.list_announced("run-1") == set()


async def test_a_wake_up_is_due_until_it_was_delivered(services: Services, alice: Principal) -> None:
    requirement = await request_authorization(services, alice)
    await consent(services, alice, await find_request(services, requirement))
    (due,) = await services.waiters.list_due_wake_ups(100)

    await services.waiters.postpone_wake_ups([due.waiter_id], utc_now() + timedelta(minutes=1))
    assert await services.waiters.list_due_wake_ups(100) == []
    await services.waiters.postpone_wake_ups([due.waiter_id], utc_now())
    assert len(await services.waiters.list_due_wake_ups(100)) == 1
    await services.waiters.record_delivered([due.waiter_id])
    assert await services.waiters.list_due_wake_ups(100) == []


async def test_a_grant_answers_every_question_that_its_scopes_cover_and_no_other(
    services: Services, alice: Principal, bob: Principal
) -> None:
    whole = await request_authorization(services, alice, 1)
    part = await request_authorization(services, alice, 2, ("read",))
    more = await request_authorization(services, alice, 3, ("delete",))
    his = await request_authorization(services, bob, 4)
    await consent(services, alice, await find_request(services, whole))

    assert whole is not None
    assert part is not None
    assert {due.waiter_id for due in await services.waiters.list_due_wake_ups(100)} == {
        whole.waiter_id,
        part.waiter_id,
    }
    assert (await find_request(services, more)).is_open
    assert (await find_request(services, his)).is_open


async def test_a_grant_that_came_first_leaves_nothing_to_wait_for(
    services: Services, alice: Principal
) -> None:
    requirement = await request_authorization(services, alice)
    await consent(services, alice, await find_request(services, requirement))

    assert await request_authorization(services, alice, 2) is None
    assert await request_authorization(services, alice, 3, ("read",)) is None


async def test_the_grant_that_the_upstream_refused_is_not_taken_for_the_one_that_is_waited_for(
    services: Services, alice: Principal
) -> None:
    requirement = await request_authorization(services, alice)
    await consent(services, alice, await find_request(services, requirement))
    credential = await services.grants.find_credential(BILLING, alice.id)

    assert credential is not None
    assert (
        await request_authorization(services, alice, 2, refused_fingerprint=credential.grant_id) is not None
    )


@pytest.mark.parametrize("seed", range(8))
async def test_no_wake_up_is_lost_between_asking_and_consenting(
    services: Services, other: Services, alice: Principal, seed: int
) -> None:
    chance = random.Random(seed)
    number = 0

    async def ask(scopes: Sequence[str], later: int) -> AuthorizationRequired | None:
        nonlocal number
        number += 1
        mine, process = number, chance.choice((services, other))
        for _ in range(later):
            await asyncio.sleep(0)
        return await request_authorization(process, alice, mine, scopes)

    async def answer(request: AuthorizationRequest, later: int) -> None:
        for _ in range(later):
            await asyncio.sleep(0)
        await consent(other, alice, request)

    for _ in range(6):
        await services.grant_removal.remove_own_grant(BILLING, alice)
        first = await request_authorization(services, alice, 0)
        request = await find_request(services, first)
        scope_sets = [chance.choice((("read",), ("write",), BILLING.scopes)) for _ in range(6)]
        results = await asyncio.gather(
            answer(request, chance.randrange(40)),
            *(ask(scopes, chance.randrange(60)) for scopes in scope_sets),
        )
        waiting = {requirement.waiter_id for requirement in results[1:] if requirement is not None}
        waiter_rows = {row.id: row for row in await list_waiter_rows(services)}

        assert [waiter_rows[waiter].outcome for waiter in waiting] == ["granted"] * len(waiting)
        assert waiting <= {due.waiter_id for due in await services.waiters.list_due_wake_ups(1000)}


async def test_a_consent_given_again_finds_who_began_to_wait_meanwhile(
    services: Services, other: Services, alice: Principal
) -> None:
    request = await find_request(services, await request_authorization(services, alice, 0))
    await consent(services, alice, request)
    for number in range(1, 16):
        await services.grant_removal.remove_own_grant(BILLING, alice)
        requirements, _ = await asyncio.gather(
            request_authorization(services, alice, number), consent(other, alice, request)
        )
        if requirements is not None:
            assert requirements.waiter_id in {
                due.waiter_id for due in await services.waiters.list_due_wake_ups(1000)
            }


async def test_a_no_wakes_everybody_who_waits_and_ends_each_wait(
    services: Services, other: Services, alice: Principal
) -> None:
    requirements = [await request_authorization(services, alice, number) for number in range(5)]
    request = await find_request(services, requirements[0])

    assert await other.authorization_requests.deny_request(request.id, alice)

    assert len(await services.waiters.list_due_wake_ups(100)) == 5
    for requirement in requirements:
        assert requirement is not None
        with pytest.raises(AuthorizationDenied, match="Alice Adams declined"):
            await services.authorization_requests.check_wait_outcome(
                requirement.waiter_id, has_timed_out=False, identity=build_identity(alice)
            )
    assert await list_kinds(services) == ["authorization.requested", "authorization.denied"]


async def test_nobody_answers_for_somebody_else_and_nobody_answers_twice(
    services: Services, alice: Principal, bob: Principal
) -> None:
    request = await find_request(services, await request_authorization(services, alice))

    assert not await services.authorization_requests.deny_request(request.id, bob)
    assert not await services.authorization_requests.deny_request("unknown", alice)
    assert await services.authorization_requests.deny_request(request.id, alice)
    assert not await services.authorization_requests.deny_request(request.id, alice)


async def test_a_no_and_a_yes_at_once_leave_every_waiter_with_one_of_them(
    services: Services, other: Services, alice: Principal
) -> None:
    for number in range(8):
        await services.grant_removal.remove_own_grant(BILLING, alice)
        request = await find_request(services, await request_authorization(services, alice, number))
        await asyncio.gather(
            services.authorization_requests.deny_request(request.id, alice), consent(other, alice, request)
        )
    rows = await list_waiter_rows(services)

    assert {row.outcome for row in rows} <= {"granted", "denied"}
    assert all(row.due_at is not None for row in rows)


async def test_an_expired_request_gives_way_to_a_new_one(
    services: Services, other: Services, alice: Principal
) -> None:
    first = await find_request(services, await request_authorization(services, alice))
    async with services.database.open_write_session() as session:
        await session.exec(
            update(AuthorizationRequestRow).values(expires_at=utc_now() - timedelta(seconds=1))
        )
    assert await services.authorization_requests.list_open_requests(alice.id) == []
    requirements = await asyncio.gather(
        *(request_authorization((services, other)[number % 2], alice, number) for number in range(10))
    )

    assert (
        len({requirement.request_id for requirement in requirements if requirement is not None} - {first.id})
        == 1
    )
    assert sorted(row.state for row in await list_request_rows(services)) == ["expired", "open"]


async def test_a_wait_that_ran_out_ends_in_its_own_way_and_is_in_the_trail(
    services: Services, alice: Principal
) -> None:
    requirement = await request_authorization(services, alice)
    assert requirement is not None
    for _ in range(2):
        with pytest.raises(AuthorizationExpired, match="Call the tool again"):
            await services.authorization_requests.check_wait_outcome(
                requirement.waiter_id, has_timed_out=True, identity=build_identity(alice)
            )

    assert await list_kinds(services) == ["authorization.requested", "authorization.expired"]


async def test_a_wait_that_ran_out_just_as_the_grant_came_goes_on(
    services: Services, alice: Principal
) -> None:
    requirement = await request_authorization(services, alice)
    assert requirement is not None
    await consent(services, alice, await find_request(services, requirement))

    await services.authorization_requests.check_wait_outcome(
        requirement.waiter_id, has_timed_out=True, identity=build_identity(alice)
    )


async def test_a_wait_that_ran_out_while_the_grant_came_is_one_or_the_other(
    services: Services, other: Services, alice: Principal
) -> None:
    for number in range(8):
        await services.grant_removal.remove_own_grant(BILLING, alice)
        requirement = await request_authorization(services, alice, number)
        assert requirement is not None
        request = await find_request(services, requirement)
        outcome, _ = await asyncio.gather(
            services.authorization_requests.check_wait_outcome(
                requirement.waiter_id, has_timed_out=True, identity=build_identity(alice)
            ),
            consent(other, alice, request),
            return_exceptions=True,
        )
        (row,) = [row for row in await list_waiter_rows(services) if row.id == requirement.waiter_id]

        assert (type(outcome), row.outcome, row.due_at is None) in {
            (type(None), "granted", False),
            (AuthorizationExpired, "expired", True),
        }


async def test_a_withdrawn_wait_gets_no_wake_up_and_its_request_is_closed(
    services: Services, alice: Principal
) -> None:
    requirement = await request_authorization(services, alice)
    assert requirement is not None
    await services.waiters.cancel_waits([requirement.waiter_id])

    assert await services.authorization_requests.list_open_requests(alice.id) == []
    assert await services.authorization_requests.list_awaited_requests("run-1") == []
    await consent(services, alice, await find_request(services, requirement))
    assert await services.waiters.list_due_wake_ups(100) == []
    with pytest.raises(AuthorizationCancelled):
        await services.authorization_requests.check_wait_outcome(
            requirement.waiter_id, has_timed_out=False, identity=build_identity(alice)
        )


async def test_what_a_person_and_a_run_wait_for_is_known(
    services: Services, alice: Principal, bob: Principal
) -> None:
    requirement = await request_authorization(services, alice)
    request = await find_request(services, requirement)
    await request_authorization(services, bob, 2, ("read",))

    assert [
        open_request.id for open_request in await services.authorization_requests.list_open_requests(alice.id)
    ] == [request.id]
    assert request.id in {
        open_request.id
        for open_request in await services.authorization_requests.list_awaited_requests("run-1")
    }
    assert request.id in (await services.waiters.list_awaited_by_run(["run-1", "run-2"]))["run-1"]
    assert request.scopes == ("read", "write")


async def test_a_wait_for_a_person_whom_nobody_knows_is_refused(services: Services) -> None:
    with pytest.raises(PrincipalInactive):
        await request_authorization(services, Principal("unknown", "https://people.example", "x", "X"))
