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
from tests.support.commands import Commands
from tests.support.samples import build_identity

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


async def record_action(services: Services, principal: Principal, event: AuditEvent = INTENT) -> int:
    """An action with its outcome; gives the number of the outcome's line."""
    event = replace(event, identity=build_identity(principal))
    intent = await services.trail.append_event(event)
    return await services.trail.append_event(
        replace(event, kind="action.ended", intent=intent, status=200, verdict="allowed")
    )


async def list_seqs(byline: Commands, *question: str) -> list[int]:
    output = await byline.read_output("audit", "--json", *question)
    return [json.loads(line)["seq"] for line in output.splitlines()]


async def test_who_changed_a_record_is_shown_with_name_run_workflows_account_scopes_and_verdict(
    services: Services, alice: Principal, commands: Commands
) -> None:
    await record_action(services, alice)
    output = await commands.read_output("audit", "--record", "zendesk:ticket/35436")

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
        assert fact in output


async def test_the_trail_answers_by_record_person_run_time_and_kind_of_action(
    services: Services, alice: Principal, bob: Principal, commands: Commands
) -> None:
    first = await record_action(services, alice)
    second = await record_action(services, alice, replace(READ, run_id="run-2", record_id="ticket/2"))
    third = await record_action(services, bob)
    (moment,) = [line.time for line in await services.trail.find_lines() if line.seq == second - 1]
    instant = f"{moment:%Y-%m-%dT%H:%M:%S.%f}"

    assert await list_seqs(commands) == [first, second, third]
    assert await list_seqs(commands, "--record", "zendesk:ticket/35436") == [first, third]
    assert await list_seqs(commands, "--principal", "Alice Adams") == [first, second]
    assert await list_seqs(commands, "--principal", "bob") == [third]
    assert await list_seqs(commands, "--principal", bob.id) == [third]
    assert await list_seqs(commands, "--run", "run-2") == [second]
    assert await list_seqs(commands, "--writes") == [first, third]
    assert await list_seqs(commands, "--since", instant) == [second, third]
    assert await list_seqs(commands, "--until", instant) == [first]
    assert await list_seqs(commands, "--principal", "nobody") == []


async def test_an_intent_without_an_outcome_is_shown_as_such(
    services: Services, alice: Principal, commands: Commands
) -> None:
    await services.trail.append_event(replace(INTENT, identity=build_identity(alice)))

    assert "unknown: the request was about to leave" in await commands.read_output("audit")


async def test_an_intent_whose_outcome_was_not_asked_for_is_not_called_unknown(
    services: Services, alice: Principal, commands: Commands
) -> None:
    outcome_seq = await record_action(services, alice)
    async with services.database.open_write_session() as session:
        (outcome,) = [line for line in await services.trail.find_lines() if line.seq == outcome_seq]
        later = outcome.time + timedelta(minutes=5)
        await session.exec(
            update(AuditEventRow).where(col(AuditEventRow.seq) == outcome_seq).values(time=later)
        )
    until = f"{outcome.time + timedelta(minutes=1):%Y-%m-%dT%H:%M:%S}"

    assert "nothing that fits" in await commands.read_output("audit", "--until", until)


async def test_a_malformed_record_name_is_reported(commands: Commands) -> None:
    output = await commands("audit", "--record", "35436")

    assert (output.code, output.err) == (1, "--record takes system:kind/id, such as zendesk:ticket/35436\n")


async def test_the_proof_names_the_head_that_proves_the_trail_later(
    services: Services, alice: Principal, commands: Commands
) -> None:
    await record_action(services, alice)
    proven = await commands.read_output("audit", "verify")
    noted_head = proven.split()[-1]
    await record_action(services, alice)
    again = await commands.read_output("audit", "verify", "--noted", noted_head)
    wrong = await commands("audit", "verify", "--noted", f"1:{noted_head.partition(':')[2]}")

    assert proven.startswith("The trail holds: 2 lines, head 2:")
    assert again.startswith("The trail holds: 4 lines, head 4:")
    assert (wrong.code, wrong.err) == (1, "line 1 is not the one noted\n")


async def test_a_broken_trail_is_reported_line_by_line_and_fails(
    services: Services, alice: Principal, commands: Commands
) -> None:
    await record_action(services, alice)
    async with services.database.open_write_session() as session:
        await session.exec(
            update(AuditEventRow).where(col(AuditEventRow.seq) == 2).values(record_id="ticket/1", kind="x")
        )
    proven = await commands("audit", "verify")

    assert (proven.code, proven.out) == (1, "")
    assert proven.err == "line 2: was edited\n"


@pytest.mark.parametrize("noted_head", ["12", "x:abc", "12:"])
async def test_a_malformed_noted_head_is_reported(commands: Commands, noted_head: str) -> None:
    output = await commands.read_refusal("audit", "verify", "--noted", noted_head)

    assert output.startswith("--noted takes what `byline audit verify` printed as head")


async def test_what_strangers_name_writes_no_line_of_its_own_and_moves_no_cursor(
    services: Services, alice: Principal, commands: Commands
) -> None:
    forged_text = "\n  verdict    denied\x1b[2J\u202e"
    actor = Actor(kind="mcp_client", id="chat", name=f"Chat{forged_text}")
    identity = replace(build_identity(alice), actor=actor, name=f"Alice{forged_text}")
    event = replace(
        INTENT,
        identity=identity,
        chain=(forged_text,),
        resource=f"/1{forged_text}",
        record_id=f"ticket/1{forged_text}",
        account=f"alice{forged_text}",
        scopes=(forged_text,),
    )
    intent = await services.trail.append_event(event)
    await services.trail.append_event(
        replace(event, kind="action.ended", intent=intent, verdict="allowed", message=f"said{forged_text}")
    )

    output = await commands.read_output("audit", "--principal", alice.id)

    assert output.count("verdict    ") == 1 + output.count(r"\n  verdict    denied\x1b[2J\u202e")
    assert [line for line in output.splitlines() if line.startswith("  verdict")] == ["  verdict    allowed"]
    assert "\x1b" not in output
    assert "\u202e" not in output
