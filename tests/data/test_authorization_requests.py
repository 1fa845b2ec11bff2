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
from tests.data.samples import connection, identity_of, tokens

DECLARED = connection(scopes=("read", "write"))
UNREVOCABLE = DECLARED.provider.model_copy(update={"revocation_endpoint": None})
BILLING = DECLARED.model_copy(update={"provider": UNREVOCABLE})


def place(number: int) -> ParkedAction:
    return ParkedAction(f"workflow-{number}", f"run-of-workflow-{number}", f"action-{number}")


async def asked(
    services: Services,
    principal: Principal,
    number: int = 1,
    scopes: Sequence[str] = BILLING.scopes,
    *,
    refused: str | None = None,
) -> AuthorizationRequired | None:
    return await services.authorization_requests.require_authorization(
        identity_of(principal),
        BILLING,
        scopes,
        place(number),
        run_id="run-1",
        needed_scopes=scopes,
        refused_grant_id=refused,
    )


async def request_of(services: Services, required: AuthorizationRequired | None) -> AuthorizationRequest:
    assert required is not None
    request = await services.authorization_requests.find_request(required.request_id)
    assert request is not None
    return request


async def consent(
    services: Services, principal: Principal, request: AuthorizationRequest, *scopes: str
) -> None:
    granted = tokens(*(scopes or BILLING.scopes))
    await services.answer_recorder.record_grant(request, BILLING, principal, granted, "alice@acme.example")


async def waiters(services: Services) -> list[WaiterRow]:
    async with services.database.open_read_session() as session:
        return list((await session.exec(select(WaiterRow))).all())


async def requests(services: Services) -> list[AuthorizationRequestRow]:
    async with services.database.open_read_session() as session:
        return list((await session.exec(select(AuthorizationRequestRow))).all())


async def kinds(services: Services) -> list[str]:
    return [line.kind for line in await services.trail.find_lines()]


async def test_everybody_who_waits_for_the_same_consent_joins_one_request(
    services: Services, other: Services, alice: Principal
) -> None:
    required = await asyncio.gather(
        *(asked((services, other)[number % 2], alice, number) for number in range(20))
    )

    assert len({each.request_id for each in required if each is not None}) == 1
    assert len({each.waiter_id for each in required if each is not None}) == 20
    assert len(await requests(services)) == 1
    assert await kinds(services) == ["authorization.requested"]


async def test_each_person_connection_and_scope_set_is_a_question_of_its_own(
    services: Services, alice: Principal, bob: Principal
) -> None:
    for principal in (alice, bob):
        for scopes in (("read",), ("read", "write"), ("write", "read")):
            await asked(services, principal, scopes=scopes)

    assert len(await requests(services)) == 4


async def test_an_attempt_that_is_repeated_finds_the_wait_it_began(
    services: Services, alice: Principal
) -> None:
    first = await asked(services, alice)
    again = await asked(services, alice)

    assert first is not None
    assert again is not None
    assert again.details == first.details
    assert len(await waiters(services)) == 1


async def test_a_grant_wakes_everybody_who_waits(
    services: Services, other: Services, alice: Principal
) -> None:
    required = [await asked(services, alice, number) for number in range(5)]
    await consent(other, alice, await request_of(services, required[0]))

    due = await services.waiters.list_due_wake_ups(100)
    assert {wake_up.waiter_id for wake_up in due} == {each.waiter_id for each in required if each is not None}
    assert {wake_up.workflow_id for wake_up in due} == {f"workflow-{number}" for number in range(5)}
    assert [row.state for row in await requests(services)] == ["granted"]
    assert await kinds(services) == ["authorization.requested", "authorization.granted"]


async def test_what_a_client_took_to_its_person_is_known_of_that_run_until_the_wait_is_over(
    services: Services, alice: Principal
) -> None:
    taken = await request_of(services, await asked(services, alice, 1))
    left = await request_of(services, await asked(services, alice, 2, ("delete",)))
    await services.waiters.record_announced("run-2", [left.id])
    await services.waiters.record_announced("run-1", [taken.id])
    another_action = await asked(services, alice, 3)

    assert another_action is not None
    assert another_action.request_id == taken.id
    assert await services.waiters.list_announced("run-1") == {taken.id}
    assert await services.waiters.list_announced("run-2") == set()
    await consent(services, alice, taken)
    assert await services.waiters.list_announced("run-1") == set()


async def test_a_wake_up_is_owed_until_it_was_delivered(services: Services, alice: Principal) -> None:
    required = await asked(services, alice)
    await consent(services, alice, await request_of(services, required))
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
    whole = await asked(services, alice, 1)
    part = await asked(services, alice, 2, ("read",))
    more = await asked(services, alice, 3, ("delete",))
    his = await asked(services, bob, 4)
    await consent(services, alice, await request_of(services, whole))

    assert whole is not None
    assert part is not None
    assert {due.waiter_id for due in await services.waiters.list_due_wake_ups(100)} == {
        whole.waiter_id,
        part.waiter_id,
    }
    assert (await request_of(services, more)).is_open
    assert (await request_of(services, his)).is_open


async def test_a_grant_that_came_first_leaves_nothing_to_wait_for(
    services: Services, alice: Principal
) -> None:
    required = await asked(services, alice)
    await consent(services, alice, await request_of(services, required))

    assert await asked(services, alice, 2) is None
    assert await asked(services, alice, 3, ("read",)) is None


async def test_the_grant_that_the_upstream_refused_is_not_taken_for_the_one_that_is_waited_for(
    services: Services, alice: Principal
) -> None:
    required = await asked(services, alice)
    await consent(services, alice, await request_of(services, required))
    held = await services.grants.find_credential(BILLING, alice.id)

    assert held is not None
    assert await asked(services, alice, 2, refused=held.grant_id) is not None


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
        return await asked(process, alice, mine, scopes)

    async def answer(request: AuthorizationRequest, later: int) -> None:
        for _ in range(later):
            await asyncio.sleep(0)
        await consent(other, alice, request)

    for _ in range(6):
        await services.grant_removal.remove_own_grant(BILLING, alice)
        first = await asked(services, alice, 0)
        request = await request_of(services, first)
        scope_sets = [chance.choice((("read",), ("write",), BILLING.scopes)) for _ in range(6)]
        ended = await asyncio.gather(
            answer(request, chance.randrange(40)),
            *(ask(scopes, chance.randrange(60)) for scopes in scope_sets),
        )
        waiting = {required.waiter_id for required in ended[1:] if required is not None}
        found = {row.id: row for row in await waiters(services)}

        assert [found[waiter].outcome for waiter in waiting] == ["granted"] * len(waiting)
        assert waiting <= {due.waiter_id for due in await services.waiters.list_due_wake_ups(1000)}


async def test_a_consent_given_again_finds_who_began_to_wait_meanwhile(
    services: Services, other: Services, alice: Principal
) -> None:
    request = await request_of(services, await asked(services, alice, 0))
    await consent(services, alice, request)
    for number in range(1, 16):
        await services.grant_removal.remove_own_grant(BILLING, alice)
        required, _ = await asyncio.gather(asked(services, alice, number), consent(other, alice, request))
        if required is not None:
            assert required.waiter_id in {
                due.waiter_id for due in await services.waiters.list_due_wake_ups(1000)
            }


async def test_a_no_wakes_everybody_who_waits_and_ends_each_wait(
    services: Services, other: Services, alice: Principal
) -> None:
    required = [await asked(services, alice, number) for number in range(5)]
    request = await request_of(services, required[0])

    assert await other.authorization_requests.deny_request(request.id, alice)

    assert len(await services.waiters.list_due_wake_ups(100)) == 5
    for each in required:
        assert each is not None
        with pytest.raises(AuthorizationDenied, match="Alice Adams declined"):
            await services.authorization_requests.check_wait_outcome(
                each.waiter_id, has_timed_out=False, identity=identity_of(alice)
            )
    assert await kinds(services) == ["authorization.requested", "authorization.denied"]


async def test_nobody_answers_for_somebody_else_and_nobody_answers_twice(
    services: Services, alice: Principal, bob: Principal
) -> None:
    request = await request_of(services, await asked(services, alice))

    assert not await services.authorization_requests.deny_request(request.id, bob)
    assert not await services.authorization_requests.deny_request("unknown", alice)
    assert await services.authorization_requests.deny_request(request.id, alice)
    assert not await services.authorization_requests.deny_request(request.id, alice)


async def test_a_no_and_a_yes_at_once_leave_every_waiter_with_one_of_them(
    services: Services, other: Services, alice: Principal
) -> None:
    for number in range(8):
        await services.grant_removal.remove_own_grant(BILLING, alice)
        request = await request_of(services, await asked(services, alice, number))
        await asyncio.gather(
            services.authorization_requests.deny_request(request.id, alice), consent(other, alice, request)
        )
    rows = await waiters(services)

    assert {row.outcome for row in rows} <= {"granted", "denied"}
    assert all(row.due_at is not None for row in rows)


async def test_an_expired_request_gives_way_to_a_new_one(
    services: Services, other: Services, alice: Principal
) -> None:
    first = await request_of(services, await asked(services, alice))
    async with services.database.open_write_session() as session:
        await session.exec(
            update(AuthorizationRequestRow).values(expires_at=utc_now() - timedelta(seconds=1))
        )
    assert await services.authorization_requests.list_open_requests(alice.id) == []
    required = await asyncio.gather(
        *(asked((services, other)[number % 2], alice, number) for number in range(10))
    )

    assert len({each.request_id for each in required if each is not None} - {first.id}) == 1
    assert sorted(row.state for row in await requests(services)) == ["expired", "open"]


async def test_a_wait_that_ran_out_ends_in_its_own_way_and_is_in_the_trail(
    services: Services, alice: Principal
) -> None:
    required = await asked(services, alice)
    assert required is not None
    for _ in range(2):
        with pytest.raises(AuthorizationExpired, match="Call the tool again"):
            await services.authorization_requests.check_wait_outcome(
                required.waiter_id, has_timed_out=True, identity=identity_of(alice)
            )

    assert await kinds(services) == ["authorization.requested", "authorization.expired"]


async def test_a_wait_that_ran_out_just_as_the_grant_came_goes_on(
    services: Services, alice: Principal
) -> None:
    required = await asked(services, alice)
    assert required is not None
    await consent(services, alice, await request_of(services, required))

    await services.authorization_requests.check_wait_outcome(
        required.waiter_id, has_timed_out=True, identity=identity_of(alice)
    )


async def test_a_wait_that_ran_out_while_the_grant_came_is_one_or_the_other(
    services: Services, other: Services, alice: Principal
) -> None:
    for number in range(8):
        await services.grant_removal.remove_own_grant(BILLING, alice)
        required = await asked(services, alice, number)
        assert required is not None
        request = await request_of(services, required)
        looked, _ = await asyncio.gather(
            services.authorization_requests.check_wait_outcome(
                required.waiter_id, has_timed_out=True, identity=identity_of(alice)
            ),
            consent(other, alice, request),
            return_exceptions=True,
        )
        (row,) = [row for row in await waiters(services) if row.id == required.waiter_id]

        assert (type(looked), row.outcome, row.due_at is None) in {
            (type(None), "granted", False),
            (AuthorizationExpired, "expired", True),
        }


async def test_a_wait_that_was_withdrawn_is_owed_nothing_and_asked_of_nobody(
    services: Services, alice: Principal
) -> None:
    required = await asked(services, alice)
    assert required is not None
    await services.waiters.cancel_waits([required.waiter_id])

    assert await services.authorization_requests.list_open_requests(alice.id) == []
    assert await services.authorization_requests.list_awaited_requests("run-1") == []
    await consent(services, alice, await request_of(services, required))
    assert await services.waiters.list_due_wake_ups(100) == []
    with pytest.raises(AuthorizationCancelled):
        await services.authorization_requests.check_wait_outcome(
            required.waiter_id, has_timed_out=False, identity=identity_of(alice)
        )


async def test_what_a_person_and_a_run_wait_for_is_known(
    services: Services, alice: Principal, bob: Principal
) -> None:
    required = await asked(services, alice)
    request = await request_of(services, required)
    await asked(services, bob, 2, ("read",))

    assert [each.id for each in await services.authorization_requests.list_open_requests(alice.id)] == [
        request.id
    ]
    assert request.id in {
        each.id for each in await services.authorization_requests.list_awaited_requests("run-1")
    }
    assert request.id in (await services.waiters.list_awaited_by_run(["run-1", "run-2"]))["run-1"]
    assert request.scopes == ("read", "write")


async def test_a_wait_for_a_person_whom_nobody_knows_is_refused(services: Services) -> None:
    with pytest.raises(PrincipalInactive):
        await asked(services, Principal("unknown", "https://people.example", "x", "X"))
