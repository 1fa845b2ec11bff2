import json
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlmodel import col

from engine.audit.trail import AuditEvent
from engine.db.tables import AuditEventRow
from engine.identity.model import Actor, Principal
from engine.services import Services
from tests.data.commands import Commands
from tests.data.samples import identity_of

INTENT = AuditEvent(
    kind="action.intended",
    run_id="run-1",
    chain=("resolve_billing_dispute:run-1", "close_case:run-1/close"),
    action="zendesk.update_ticket",
    connection="support",
    mode="user",
    system="zendesk",
    method="PUT",
    resource="/api/v2/tickets/35436",
    record_id="ticket/35436",
    account="alice@acme.example",
    scopes=("tickets:read", "tickets:write"),
    grant_id="grant-1",
    fingerprint="0123456789abcdef",
)
READ = replace(INTENT, method="GET", action="zendesk.read_ticket")


async def acted(services: Services, principal: Principal, event: AuditEvent = INTENT) -> int:
    """An action with its outcome; gives the number of the outcome's line."""
    event = replace(event, identity=identity_of(principal))
    intent = await services.trail.append_event(event)
    return await services.trail.append_event(
        replace(event, kind="action.ended", intent=intent, status=200, verdict="allowed")
    )


async def seqs(byline: Commands, *question: str) -> list[int]:
    answered = await byline.answer("audit", "--json", *question)
    return [json.loads(line)["seq"] for line in answered.splitlines()]


async def test_who_changed_a_record_is_told_with_name_run_workflows_account_scopes_and_verdict(
    services: Services, alice: Principal, commands: Commands
) -> None:
    await acted(services, alice)
    told = await commands.answer("audit", "--record", "zendesk:ticket/35436")

    for fact in (
        "Alice Adams (alice at https://people.example)",
        "Chat (mcp_client chat), by mcp",
        "zendesk.update_ticket PUT /api/v2/tickets/35436",
        "zendesk:ticket/35436",
        "resolve_billing_dispute:run-1 → close_case:run-1/close",
        "run-1",
        "support (user)",
        "tickets:read tickets:write",
        "alice@acme.example",
        "grant-1, token 0123456789abcdef",
        "allowed (200)",
    ):
        assert fact in told


async def test_the_trail_answers_by_record_person_run_time_and_kind_of_action(
    services: Services, alice: Principal, bob: Principal, commands: Commands
) -> None:
    first = await acted(services, alice)
    second = await acted(services, alice, replace(READ, run_id="run-2", record_id="ticket/2"))
    third = await acted(services, bob)
    (moment,) = [line.time for line in await services.trail.find_lines() if line.seq == second - 1]
    instant = f"{moment:%Y-%m-%dT%H:%M:%S.%f}"

    assert await seqs(commands) == [first, second, third]
    assert await seqs(commands, "--record", "zendesk:ticket/35436") == [first, third]
    assert await seqs(commands, "--principal", "Alice Adams") == [first, second]
    assert await seqs(commands, "--principal", "bob") == [third]
    assert await seqs(commands, "--principal", bob.id) == [third]
    assert await seqs(commands, "--run", "run-2") == [second]
    assert await seqs(commands, "--writes") == [first, third]
    assert await seqs(commands, "--since", instant) == [second, third]
    assert await seqs(commands, "--until", instant) == [first]
    assert await seqs(commands, "--principal", "nobody") == []


async def test_an_intent_without_an_outcome_is_shown_as_such(
    services: Services, alice: Principal, commands: Commands
) -> None:
    await services.trail.append_event(replace(INTENT, identity=identity_of(alice)))

    assert "unknown: the request was about to leave" in await commands.answer("audit")


async def test_an_intent_whose_outcome_was_not_asked_for_is_not_called_unknown(
    services: Services, alice: Principal, commands: Commands
) -> None:
    ended = await acted(services, alice)
    async with services.database.open_write_session() as session:
        (outcome,) = [line for line in await services.trail.find_lines() if line.seq == ended]
        later = outcome.time + timedelta(minutes=5)
        await session.exec(update(AuditEventRow).where(col(AuditEventRow.seq) == ended).values(time=later))
    until = f"{outcome.time + timedelta(minutes=1):%Y-%m-%dT%H:%M:%S}"

    assert "nothing that fits" in await commands.answer("audit", "--until", until)


async def test_a_record_that_is_not_named_as_it_should_be_is_told(commands: Commands) -> None:
    told = await commands("audit", "--record", "35436")

    assert (told.code, told.err) == (1, "--record takes system:kind/id, such as zendesk:ticket/35436\n")


async def test_the_proof_names_the_head_that_proves_the_trail_later(
    services: Services, alice: Principal, commands: Commands
) -> None:
    await acted(services, alice)
    proven = await commands.answer("audit", "verify")
    noted = proven.split()[-1]
    await acted(services, alice)
    again = await commands.answer("audit", "verify", "--noted", noted)
    wrong = await commands("audit", "verify", "--noted", f"1:{noted.partition(':')[2]}")

    assert proven.startswith("The trail holds: 2 lines, head 2:")
    assert again.startswith("The trail holds: 4 lines, head 4:")
    assert (wrong.code, wrong.err) == (1, "line 1 is not the one noted\n")


async def test_a_broken_trail_is_told_line_by_line_and_fails(
    services: Services, alice: Principal, commands: Commands
) -> None:
    await acted(services, alice)
    async with services.database.open_write_session() as session:
        await session.exec(
            update(AuditEventRow).where(col(AuditEventRow.seq) == 2).values(record_id="ticket/1", kind="x")
        )
    proven = await commands("audit", "verify")

    assert (proven.code, proven.out) == (1, "")
    assert proven.err == "line 2: was edited\n"


@pytest.mark.parametrize("noted", ["12", "x:abc", "12:"])
async def test_a_noted_head_that_is_none_is_told(commands: Commands, noted: str) -> None:
    told = await commands.refusal("audit", "verify", "--noted", noted)

    assert told.startswith("--noted takes what `byline audit verify` printed as head")


async def test_what_strangers_name_writes_no_line_of_its_own_and_moves_no_cursor(
    services: Services, alice: Principal, commands: Commands
) -> None:
    forged = "\n  verdict    denied\x1b[2J\u202e"
    actor = Actor(kind="mcp_client", id="chat", name=f"Chat{forged}")
    identity = replace(identity_of(alice), actor=actor, name=f"Alice{forged}")
    event = replace(
        INTENT,
        identity=identity,
        chain=(forged,),
        resource=f"/1{forged}",
        record_id=f"ticket/1{forged}",
        account=f"alice{forged}",
        scopes=(forged,),
    )
    intent = await services.trail.append_event(event)
    await services.trail.append_event(
        replace(event, kind="action.ended", intent=intent, verdict="allowed", message=f"said{forged}")
    )

    told = await commands.answer("audit", "--principal", alice.id)

    assert told.count("verdict    ") == 1 + told.count(r"\n  verdict    denied\x1b[2J\u202e")
    assert [line for line in told.splitlines() if line.startswith("  verdict")] == ["  verdict    allowed"]
    assert "\x1b" not in told
    assert "\u202e" not in told
