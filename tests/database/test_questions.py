"""Holds questions to one answer each, from whom they are put to, in one transaction with whoever waits."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from engine.db.database import utc_now
from engine.db.tables import PrincipalRow, QuestionRow
from engine.errors import (
    AnswerInvalid,
    AnswerRequired,
    ApprovalDenied,
    ApprovalExpired,
    NotAllowed,
    QuestionCancelled,
    QuestionClosed,
    QuestionDeclined,
    QuestionExpired,
    QuestionUnknown,
)
from engine.identity.model import Principal
from engine.questions.ask_people import Person, QuestionAnswer, QuestionInput
from engine.questions.questions import AskingStep, Question
from engine.services import Services
from engine.waiting.waiters import ParkedAction
from tests.support.administration import give_role, take_role
from tests.support.samples import build_identity

ROLE = "refund-approver"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"account": {"type": "string", "enum": ["Northwind", "Contoso"]}},
    "required": ["account"],
}
CHOICE = QuestionInput("Which one?", SCHEMA)
REFUND = QuestionInput("Refund 500 EUR?", {"type": "object", "properties": {}, "required": []}, role=ROLE)


def build_asking_step(
    asker: Principal, number: int = 1, waiter: str | None = None, *, timed_out: bool = False
) -> AskingStep:
    parked_action = ParkedAction(f"workflow-{number}", f"run-of-workflow-{number}", "action")
    return AskingStep(build_identity(asker), "run-1", parked_action, waiter, timed_out)


async def ask_question(
    services: Services, asker: Principal, what: QuestionInput = CHOICE, number: int = 1
) -> AnswerRequired:
    with pytest.raises(AnswerRequired) as requirement:
        await services.questions.ask_question(build_asking_step(asker, number), what)
    return requirement.value


async def answer_question(
    services: Services, asker: Principal, requirement: AnswerRequired, what: QuestionInput = CHOICE
) -> QuestionAnswer:
    return await services.questions.ask_question(build_asking_step(asker, waiter=requirement.waiter_id), what)


async def find_question(services: Services, requirement: AnswerRequired) -> Question:
    question = await services.questions.find_question(requirement.awaited_id)
    assert question is not None
    return question


async def list_kinds(services: Services) -> list[str]:
    return [line.kind for line in await services.trail.find_lines()]


async def test_a_repeated_attempt_finds_its_question_and_its_wait(
    services: Services, alice: Principal
) -> None:
    first, again = await ask_question(services, alice), await ask_question(services, alice)

    assert again.details == first.details
    assert len(await services.questions.list_open_questions(alice)) == 1
    assert await list_kinds(services) == ["question.asked"]


async def test_an_answer_wakes_the_place_that_asked_and_is_there_for_it(
    services: Services, other: Services, alice: Principal
) -> None:
    requirement = await ask_question(services, alice)
    await other.questions.answer_question(requirement.awaited_id, alice, {"account": "Contoso"})

    (due,) = await services.waiters.list_due_wake_ups(10)
    answer = await answer_question(services, alice, requirement)
    assert (due.waiter_id, due.workflow_id) == (requirement.waiter_id, "workflow-1")
    assert answer == QuestionAnswer({"account": "Contoso"}, Person(alice.id, alice.name))
    assert await answer_question(services, alice, requirement) == answer
    assert await services.questions.list_open_questions(alice) == []
    assert await list_kinds(services) == ["question.asked", "question.answered"]


async def test_an_answer_that_comes_before_the_attempt_has_reported_its_question_is_found_by_the_next(
    services: Services, alice: Principal
) -> None:
    requirement = await ask_question(services, alice)
    await services.questions.answer_question(requirement.awaited_id, alice, {"account": "Contoso"})

    assert (await services.questions.ask_question(build_asking_step(alice), CHOICE)).content == {
        "account": "Contoso"
    }


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({}, "account: this is missing"),
        ({"account": None}, "account: this is missing"),
        ({"account": "Fabrikam"}, "account: this should be one of: Northwind, Contoso"),
        ({"account": 7}, "account: this should be text"),
        ({"account": "Contoso", "more": 1}, "more: this was not asked for"),
    ],
)
async def test_an_answer_that_does_not_fit_is_refused_and_leaves_the_question_open(
    services: Services, alice: Principal, answer: dict[str, Any], problem: str
) -> None:
    requirement = await ask_question(services, alice)

    with pytest.raises(AnswerInvalid, match=problem):
        await services.questions.answer_question(requirement.awaited_id, alice, answer)

    assert (await find_question(services, requirement)).is_open
    assert await services.waiters.list_due_wake_ups(10) == []


async def test_a_declined_question_is_reported_as_declined(services: Services, alice: Principal) -> None:
    requirement = await ask_question(services, alice)
    await services.questions.decline_question(requirement.awaited_id, alice)

    assert len(await services.waiters.list_due_wake_ups(10)) == 1
    with pytest.raises(QuestionDeclined, match=f"{alice.name} declined to answer"):
        await answer_question(services, alice, requirement)
    assert await list_kinds(services) == ["question.asked", "question.declined"]


async def test_a_question_ends_with_the_time_of_the_run_that_asks(
    services: Services, alice: Principal
) -> None:
    requirement = await ask_question(services, alice)

    for _ in range(2):
        with pytest.raises(QuestionExpired):
            await services.questions.ask_question(
                build_asking_step(alice, waiter=requirement.waiter_id, timed_out=True), CHOICE
            )
    with pytest.raises(QuestionClosed):
        await services.questions.answer_question(requirement.awaited_id, alice, {"account": "Contoso"})
    assert await list_kinds(services) == ["question.asked", "question.expired"]


async def test_a_question_whose_time_is_over_is_not_answered_even_before_its_run_has_noticed(
    services: Services, alice: Principal
) -> None:
    requirement = await ask_question(services, alice)
    past = utc_now() - timedelta(seconds=1)
    async with services.database.open_write_session() as session:
        await session.exec(update(QuestionRow).values(expires_at=past))

    with pytest.raises(QuestionClosed, match="too late"):
        await services.questions.answer_question(requirement.awaited_id, alice, {"account": "Contoso"})
    assert await services.questions.list_open_questions(alice) == []


async def test_an_answer_that_came_in_time_counts_where_the_timer_ran_out_meanwhile(
    services: Services, alice: Principal
) -> None:
    requirement = await ask_question(services, alice)
    await services.questions.answer_question(requirement.awaited_id, alice, {"account": "Contoso"})

    late = build_asking_step(alice, waiter=requirement.waiter_id, timed_out=True)
    assert (await services.questions.ask_question(late, CHOICE)).content == {"account": "Contoso"}


async def test_a_wait_that_was_withdrawn_leaves_a_question_that_nobody_can_answer(
    services: Services, alice: Principal
) -> None:
    requirement = await ask_question(services, alice)
    await services.waiters.cancel_waits([requirement.waiter_id])

    assert (await find_question(services, requirement)).state == "cancelled"
    assert await services.questions.list_open_questions(alice) == []
    assert await services.questions.list_awaited_questions("run-1") == []
    with pytest.raises(QuestionClosed, match="does not wait"):
        await services.questions.answer_question(requirement.awaited_id, alice, {"account": "Contoso"})
    with pytest.raises(QuestionCancelled):
        await answer_question(services, alice, requirement)


async def test_a_wait_is_withdrawn_by_no_other_workflow_than_the_one_that_waits(
    services: Services, alice: Principal
) -> None:
    requirement = await ask_question(services, alice)
    await services.waiters.cancel_waits([requirement.waiter_id], workflow_id="another")
    assert (await find_question(services, requirement)).state == "open"

    (waiting,) = await services.waiters.list_waiters("run-1")
    await services.waiters.cancel_waits([requirement.waiter_id], workflow_id=waiting.workflow_id)
    assert (await find_question(services, requirement)).state == "cancelled"


async def test_a_question_of_ones_own_run_is_answered_by_nobody_else(
    services: Services, alice: Principal, bob: Principal
) -> None:
    requirement = await ask_question(services, alice)
    await give_role(services, bob.id, ROLE)

    assert await services.questions.list_open_questions(bob) == []
    with pytest.raises(NotAllowed):
        await services.questions.answer_question(requirement.awaited_id, bob, {"account": "Contoso"})
    with pytest.raises(QuestionUnknown):
        await services.questions.answer_question("unknown", bob, {})
    (refused_event,) = [
        line.event for line in await services.trail.find_lines() if line.kind == "question.refused"
    ]
    assert (refused_event["principal"]["name"], refused_event["object_id"]) == (
        bob.name,
        requirement.awaited_id,
    )
    assert (await find_question(services, requirement)).is_open


async def test_an_approval_takes_somebody_else_who_has_the_role_now(
    services: Services, alice: Principal, bob: Principal
) -> None:
    await give_role(services, alice.id, ROLE)
    requirement = await ask_question(services, alice, REFUND)
    assert await services.questions.list_open_questions(alice) == []
    with pytest.raises(NotAllowed, match="somebody else"):
        await services.questions.answer_question(requirement.awaited_id, alice, {})
    with pytest.raises(NotAllowed, match="Only people with the role"):
        await services.questions.answer_question(requirement.awaited_id, bob, {})

    await give_role(services, bob.id, ROLE)
    assert [question.id for question in await services.questions.list_open_questions(bob)] == [
        requirement.awaited_id
    ]
    await take_role(services, bob.id, ROLE)
    with pytest.raises(NotAllowed):
        await services.questions.answer_question(requirement.awaited_id, bob, {})

    await give_role(services, bob.id, ROLE)
    await services.questions.answer_question(requirement.awaited_id, bob, {})
    assert (await answer_question(services, alice, requirement, REFUND)).by == Person(bob.id, bob.name)
    (event,) = [line.event for line in await services.trail.find_lines() if line.kind == "question.answered"]
    assert (event["principal"]["name"], event["role"], event["run_id"]) == (bob.name, ROLE, "run-1")


@pytest.mark.parametrize("change", [{"kind": "service"}, {"active": False}], ids=["service", "deactivated"])
async def test_no_service_and_nobody_who_was_deactivated_approves(
    services: Services, alice: Principal, bob: Principal, change: dict[str, Any]
) -> None:
    await give_role(services, bob.id, ROLE)
    requirement = await ask_question(services, alice, REFUND)
    async with services.database.open_write_session() as session:
        await session.exec(update(PrincipalRow).where(col(PrincipalRow.id) == bob.id).values(**change))

    with pytest.raises(NotAllowed):
        await services.questions.answer_question(requirement.awaited_id, bob, {})


async def test_of_two_people_who_decide_at_once_one_does(
    services: Services, other: Services, alice: Principal, bob: Principal
) -> None:
    carol = await services.principals.resolve_principal("https://id.example", "carol", "Carol")
    for approver in (bob, carol):
        await give_role(services, approver.id, ROLE)
    requirement = await ask_question(services, alice, REFUND)

    decisions = await asyncio.gather(
        services.questions.answer_question(requirement.awaited_id, bob, {}),
        other.questions.decline_question(requirement.awaited_id, carol),
        return_exceptions=True,
    )

    (winning_question,) = [decision for decision in decisions if isinstance(decision, Question)]
    (losing_error,) = [decision for decision in decisions if isinstance(decision, BaseException)]
    assert isinstance(losing_error, QuestionClosed)
    written = [kind for kind in await list_kinds(services) if kind.startswith("question.")]
    assert len(written) == 2, "asked once, decided once"
    if winning_question.state == "answered":
        assert (await answer_question(services, alice, requirement, REFUND)).by.name == bob.name
    else:
        with pytest.raises(ApprovalDenied, match=f"Carol, who has the role '{ROLE}', said no"):
            await answer_question(services, alice, requirement, REFUND)


async def test_an_approval_that_nobody_gives_in_time_says_so(services: Services, alice: Principal) -> None:
    requirement = await ask_question(services, alice, REFUND)

    with pytest.raises(ApprovalExpired, match=f"Nobody with the role '{ROLE}'"):
        await services.questions.ask_question(
            build_asking_step(alice, waiter=requirement.waiter_id, timed_out=True), REFUND
        )


async def test_everybody_who_can_decide_is_asked_and_the_one_who_asks_is_not(
    services: Services, alice: Principal, bob: Principal
) -> None:
    for principal in (alice, bob):
        await give_role(services, principal.id, ROLE)

    assert (await ask_question(services, alice, REFUND)).asked_principal_ids == [bob.id]
    assert (await ask_question(services, alice, CHOICE, number=2)).asked_principal_ids == [alice.id]


SAMPLING = QuestionInput(
    "Say hello.", {}, timeout=60, kind="sampling", parameters={"maxTokens": 9}, name="greeting"
)


async def test_what_a_client_is_asked_is_shown_to_nobody_and_answered_by_it_alone(
    services: Services, alice: Principal, bob: Principal
) -> None:
    requirement = await ask_question(services, alice, SAMPLING)
    (question,) = await services.questions.list_awaited_questions("run-1")
    completion = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "Hello!"}}

    assert requirement.asked_principal_ids == []
    assert await services.questions.list_open_questions(alice) == []
    assert (question.kind, question.key, question.parameters) == ("sampling", "greeting", {"maxTokens": 9})
    with pytest.raises(NotAllowed):
        await services.questions.answer_question(question.id, bob, completion)
    with pytest.raises(AnswerInvalid):
        await services.questions.answer_question(question.id, alice, {"text": "Hello!"})
    await services.questions.answer_question(question.id, alice, completion)
    assert (await answer_question(services, alice, requirement, SAMPLING)).content == {"text": "Hello!"}


async def test_a_client_that_declines_or_does_not_answer_in_time_is_reported_as_such(
    services: Services, alice: Principal
) -> None:
    declined_requirement, expired_requirement = (
        await ask_question(services, alice, SAMPLING),
        await ask_question(services, alice, SAMPLING, 2),
    )
    await services.questions.decline_question(declined_requirement.awaited_id, alice)

    with pytest.raises(QuestionDeclined, match="The client"):
        await answer_question(services, alice, declined_requirement, SAMPLING)
    with pytest.raises(QuestionExpired, match="The client"):
        await services.questions.ask_question(
            build_asking_step(alice, 2, expired_requirement.waiter_id, timed_out=True), SAMPLING
        )


async def test_what_only_a_client_can_answer_is_not_waited_for_where_none_called(
    services: Services, alice: Principal
) -> None:
    by_clock = replace(build_asking_step(alice), identity=replace(build_identity(alice), trigger="schedule"))

    with pytest.raises(QuestionDeclined, match="No MCP client called"):
        await services.questions.ask_question(by_clock, SAMPLING)
    assert await list_kinds(services) == []


async def test_two_open_questions_of_a_run_never_have_one_key(services: Services, alice: Principal) -> None:
    first = await ask_question(services, alice, SAMPLING)
    second = await find_question(services, await ask_question(services, alice, SAMPLING, 2))
    await services.waiters.cancel_waits([first.waiter_id])
    third = await find_question(services, await ask_question(services, alice, SAMPLING, 3))

    assert (second.key, third.key) == (second.id, "greeting")


async def test_somebody_elses_wait_does_not_end_a_question(
    services: Services, alice: Principal, bob: Principal
) -> None:
    mine = await ask_question(services, alice)
    theirs = await ask_question(services, bob, number=2)

    forged_step = build_asking_step(alice, waiter=theirs.waiter_id, timed_out=True)
    with pytest.raises(AnswerRequired):
        await services.questions.ask_question(forged_step, CHOICE)
    assert (await find_question(services, mine)).is_open
    assert (await find_question(services, theirs)).is_open
