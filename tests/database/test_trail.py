import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import delete, func, insert, text, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from engine.audit.trail import GENESIS_HASH, AuditEvent, compute_chained_hash
from engine.audit.verify import verify_trail
from engine.db.database import utc_now
from engine.db.tables import AuditEventRow, AuditHeadRow, PersonRow, SigningKeyRow
from engine.errors import VaultSealBroken
from engine.identity.model import Principal
from engine.services import Services
from tests.database.conftest import Opener
from tests.support.administration import retire_signing_key, rotate_signing_key
from tests.support.samples import TOOL, build_identity

EVENT = AuditEvent(kind="action.ended", system="zendesk", record_id="ticket/1", run_id="run-1")
LINES = 6


async def find_problems(services: Services, noted_head: tuple[int, str] | None = None) -> tuple[str, ...]:
    return (await verify_trail(services.database, services.signing_keys, noted_head=noted_head)).problems


async def execute_statements(services: Services, *statements: Any) -> None:
    """Change the tables behind the trail's back."""
    async with services.database.open_write_session() as session:
        connection = await session.connection()
        for statement in statements:
            await connection.execute(statement)


async def list_rows(services: Services) -> list[dict[str, Any]]:
    async with services.database.open_read_session() as session:
        audit_rows = (await session.exec(select(AuditEventRow).order_by(col(AuditEventRow.seq)))).all()
    return [row.model_dump() for row in audit_rows]


def line(seq: int) -> Any:
    return update(AuditEventRow).where(col(AuditEventRow.seq) == seq)


def without(condition: Any) -> Any:
    return delete(AuditEventRow).where(condition)


def renumber_line(seq: int, to: int) -> Any:
    return line(seq).values(seq=to)


@pytest.fixture
async def services_with_lines(services: Services, alice: Principal) -> Services:
    """A trail of six lines."""
    for number in range(LINES):
        event = replace(EVENT, identity=build_identity(alice), record_id=f"ticket/{number + 1}")
        await services.trail.append_event(event)
    return services


async def test_an_empty_trail_holds(services: Services) -> None:
    proof = await verify_trail(services.database, services.signing_keys)

    assert proof.is_intact
    assert (proof.line_count, proof.head_seq, proof.head_hash) == (0, 0, GENESIS_HASH)


async def test_every_line_follows_from_the_one_before(services_with_lines: Services) -> None:
    proof = await verify_trail(services_with_lines.database, services_with_lines.signing_keys)
    lines = await list_rows(services_with_lines)

    assert proof.is_intact
    assert [row["seq"] for row in lines] == [1, 2, 3, 4, 5, 6]
    assert [row["previous_hash"] for row in lines] == [GENESIS_HASH, *(row["hash"] for row in lines[:-1])]
    assert (proof.line_count, proof.head_seq, proof.head_hash) == (LINES, LINES, lines[-1]["hash"])


async def test_whatever_people_write_comes_back_and_proves_itself(
    services: Services, alice: Principal
) -> None:
    text = "„Zoë“ → 100 % 'quoted' \"twice\" \\ 日本 \N{PILE OF POO} \t\n"
    await services.trail.append_event(replace(EVENT, principal=replace(alice, name=text), message=text))

    (trail_line,) = await services.trail.find_lines()
    assert trail_line.event["message"] == text
    assert trail_line.event["principal"]["name"] == text
    assert await find_problems(services) == ()


async def test_an_edited_event_is_found(services_with_lines: Services) -> None:
    event = {**(await list_rows(services_with_lines))[2]["event"], "record_id": "ticket/9"}
    await execute_statements(services_with_lines, line(3).values(event=event))

    assert await find_problems(services_with_lines) == ("line 3: was edited",)


@pytest.mark.parametrize(
    "edit",
    [{"kind": "action.refused"}, {"time": utc_now()}, {"hash": "0" * 64}, {"event": []}, {"event": {}}],
)
async def test_an_edited_part_of_a_line_is_found(services_with_lines: Services, edit: dict[str, Any]) -> None:
    await execute_statements(services_with_lines, line(3).values(**edit))

    assert "line 3: was edited" in await find_problems(services_with_lines)


@pytest.mark.parametrize("column", ["principal_id", "run_id", "system", "record_id"])
async def test_an_edited_column_that_is_searched_is_found(services_with_lines: Services, column: str) -> None:
    await execute_statements(services_with_lines, line(3).values(**{column: "another"}))

    assert await find_problems(services_with_lines) == ("line 3: its searchable columns were edited",)


async def test_a_deleted_line_is_found(services_with_lines: Services) -> None:
    await execute_statements(services_with_lines, without(col(AuditEventRow.seq) == 3))

    assert await find_problems(services_with_lines) == (
        "line 3: missing (the next one is 4)",
        "line 4: does not follow the line before it",
    )


async def test_a_deleted_line_is_found_though_the_later_ones_were_renumbered(
    services_with_lines: Services,
) -> None:
    later = [renumber_line(seq, seq - 1) for seq in (4, 5, 6)]
    await execute_statements(
        services_with_lines,
        without(col(AuditEventRow.seq) == 3),
        *later,
        update(AuditHeadRow).values(seq=LINES - 1),
    )

    assert {"line 3: does not follow the line before it", "line 3: was edited"} <= set(
        await find_problems(services_with_lines)
    )


async def test_a_deleted_first_line_is_found(services_with_lines: Services) -> None:
    await execute_statements(services_with_lines, without(col(AuditEventRow.seq) == 1))

    assert await find_problems(services_with_lines) == (
        "line 1: missing (the next one is 2)",
        "line 2: does not follow the line before it",
    )


async def test_reordered_lines_are_found(services_with_lines: Services) -> None:
    await execute_statements(
        services_with_lines, renumber_line(2, 99), renumber_line(3, 2), renumber_line(99, 3)
    )

    problem_texts = await find_problems(services_with_lines)
    assert "line 2: was edited" in problem_texts
    assert "line 3: was edited" in problem_texts


@pytest.mark.parametrize("seq", [-1, 0, LINES + 1])
async def test_a_line_that_was_added_at_an_end_is_found(services_with_lines: Services, seq: int) -> None:
    await execute_statements(
        services_with_lines,
        insert(AuditEventRow).values({**(await list_rows(services_with_lines))[-1], "seq": seq}),
    )

    assert f"line {seq}: was edited" in await find_problems(services_with_lines)


async def test_a_line_that_was_inserted_is_found(services_with_lines: Services) -> None:
    copy = (await list_rows(services_with_lines))[2]
    later = [renumber_line(seq, seq + 1) for seq in (6, 5, 4, 3)]
    await execute_statements(
        services_with_lines,
        *later,
        insert(AuditEventRow).values(copy),
        update(AuditHeadRow).values(seq=LINES + 1),
    )

    problem_texts = await find_problems(services_with_lines)
    assert "line 4: was edited" in problem_texts
    assert "line 4: does not follow the line before it" in problem_texts


async def test_a_cut_off_end_is_found_by_the_head(services_with_lines: Services) -> None:
    await execute_statements(services_with_lines, without(col(AuditEventRow.seq) > 4))

    assert await find_problems(services_with_lines) == ("the head says 6 lines, the last one found is 4",)


async def test_a_cut_off_end_whose_head_was_rewritten_is_found_by_a_head_noted_before(
    services_with_lines: Services,
) -> None:
    noted_head = await verify_trail(services_with_lines.database, services_with_lines.signing_keys)
    last = (await list_rows(services_with_lines))[3]
    await execute_statements(
        services_with_lines,
        without(col(AuditEventRow.seq) > 4),
        update(AuditHeadRow).values(seq=4, hash=last["hash"]),
    )

    assert await find_problems(services_with_lines) == ()
    assert await find_problems(services_with_lines, (noted_head.head_seq, noted_head.head_hash)) == (
        "line 6 is not the one noted",
    )


async def test_a_trail_that_began_anew_is_found_by_a_head_noted_before(services_with_lines: Services) -> None:
    noted_head = await verify_trail(services_with_lines.database, services_with_lines.signing_keys)
    await execute_statements(services_with_lines, delete(AuditEventRow), delete(AuditHeadRow))
    for _ in range(LINES):
        await services_with_lines.trail.append_event(EVENT)

    assert await find_problems(services_with_lines) == ()
    assert await find_problems(services_with_lines, (noted_head.head_seq, noted_head.head_hash)) == (
        "line 6 is not the one noted",
    )


async def test_a_noted_head_goes_on_holding_as_the_trail_grows(services_with_lines: Services) -> None:
    noted_head = await verify_trail(services_with_lines.database, services_with_lines.signing_keys)
    await services_with_lines.trail.append_event(EVENT)

    assert await find_problems(services_with_lines, (noted_head.head_seq, noted_head.head_hash)) == ()


@pytest.mark.parametrize(
    "forged_columns", [{"signature": b"\x00" * 64}, {"signature": b"short"}, {"kid": "unknown"}]
)
async def test_a_forged_signature_is_found(
    services_with_lines: Services, forged_columns: dict[str, Any]
) -> None:
    await execute_statements(services_with_lines, line(3).values(**forged_columns))

    assert await find_problems(services_with_lines) == (
        "line 3: is not signed by a key of this installation",
    )


async def test_a_chain_made_again_with_a_key_that_the_vault_did_not_seal_proves_nothing(
    services_with_lines: Services, another_process: Opener
) -> None:
    forger = Ed25519PrivateKey.generate()
    previous, forged_rows = GENESIS_HASH, []
    for row in await list_rows(services_with_lines):
        event = {**row["event"], "record_id": "ticket/9"}
        digest = compute_chained_hash(row["seq"], row["time"], row["kind"], event, previous)
        signature = forger.sign(bytes.fromhex(digest))
        forged_rows.append(
            line(row["seq"]).values(
                event=event,
                record_id="ticket/9",
                previous_hash=previous,
                hash=digest,
                kid="forger",
                signature=signature,
            )
        )
        previous = digest
    key = insert(SigningKeyRow).values(
        kid="forger",
        public_key=forger.public_key().public_bytes_raw(),
        sealed_private_key=(await _a_key(services_with_lines)).sealed_private_key,
        created_at=utc_now() - timedelta(days=1),
        retired_at=utc_now(),
    )
    await execute_statements(
        services_with_lines, key, *forged_rows, update(AuditHeadRow).values(hash=previous)
    )
    auditor = await another_process()

    with pytest.raises(VaultSealBroken):
        await verify_trail(auditor.database, auditor.signing_keys)


async def _a_key(services: Services) -> SigningKeyRow:
    async with services.database.open_read_session() as session:
        return (await session.exec(select(SigningKeyRow))).one()


async def test_a_retired_key_still_verifies_the_lines_it_signed(services_with_lines: Services) -> None:
    first = (await _a_key(services_with_lines)).kid
    await rotate_signing_key(services_with_lines)
    await services_with_lines.trail.append_event(EVENT)
    assert await retire_signing_key(services_with_lines, first)

    assert await find_problems(services_with_lines) == ()


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
@pytest.mark.parametrize("edit", ["event = 'no json'", "time = 'no time'"])
async def test_a_line_that_cannot_even_be_read_is_found(services_with_lines: Services, edit: str) -> None:
    await execute_statements(services_with_lines, text(f"UPDATE audit_event SET {edit} WHERE seq = 3"))

    assert "a line after 0 cannot be read as one, so it and the rest are unproven" in await find_problems(
        services_with_lines
    )


async def test_two_processes_that_write_at_once_make_one_unbroken_chain(
    services: Services, other: Services
) -> None:
    appends = [
        process.trail.append_event(replace(EVENT, record_id=f"ticket/{number}"))
        for number in range(100)
        for process in (services, other)
    ]
    seqs = await asyncio.gather(*appends)

    assert sorted(seqs) == list(range(1, 201))
    assert await find_problems(services) == ()


async def test_a_trail_that_grows_while_it_is_proven_holds(services: Services, other: Services) -> None:
    async def write() -> None:
        for _ in range(60):
            await other.trail.append_event(EVENT)

    writing = asyncio.create_task(write())
    while not writing.done():
        assert await find_problems(services) == ()
    await writing

    assert (await verify_trail(services.database, services.signing_keys)).line_count == 60


async def test_an_append_returns_the_number_of_its_line(services: Services) -> None:
    seq = await services.trail.append_event(EVENT)
    trail_lines = await services.trail.find_lines()

    assert [line.seq for line in trail_lines] == [seq]


def build_person_row(username: str) -> PersonRow:
    return PersonRow(username=username, subject=username, name=username, password_hash="-")


async def count_people(services: Services) -> int:
    async with services.database.open_read_session() as session:
        return (await session.exec(select(func.count()).select_from(PersonRow))).one()


async def test_rows_that_come_with_a_line_are_written_with_it(services: Services) -> None:
    await services.trail.append_event(EVENT, build_person_row("a"), build_person_row("b"))

    assert await count_people(services) == 2


async def test_a_row_that_is_refused_takes_its_line_with_it(services: Services) -> None:
    await services.trail.append_event(EVENT, build_person_row("a"))
    with pytest.raises(IntegrityError):
        await services.trail.append_event(EVENT, build_person_row("b"), build_person_row("a"))

    assert await count_people(services) == 1
    assert len(await services.trail.find_lines()) == 1
    assert await find_problems(services) == ()


async def test_a_line_that_is_refused_takes_its_rows_with_it(services: Services) -> None:
    with pytest.raises(IntegrityError):
        await services.trail.append_event(replace(EVENT, kind=cast("Any", None)), build_person_row("a"))

    assert await count_people(services) == 0


async def test_an_append_that_is_refused_does_no_harm_to_those_it_shared_a_transaction_with(
    services: Services,
) -> None:
    await services.trail.append_event(EVENT, build_person_row("a"))
    results = await asyncio.gather(
        services.trail.append_event(EVENT, build_person_row("b")),
        services.trail.append_event(EVENT, build_person_row("a")),
        services.trail.append_event(EVENT, build_person_row("c")),
        return_exceptions=True,
    )

    assert [type(outcome) for outcome in results] == [int, IntegrityError, int]
    assert await count_people(services) == 3
    assert await find_problems(services) == ()


async def test_the_trail_answers_by_record_by_person_by_run_and_by_time(
    services: Services, alice: Principal, bob: Principal
) -> None:
    trail = services.trail
    hers = replace(EVENT, identity=build_identity(alice))
    await trail.append_event(hers)
    await trail.append_event(replace(hers, run_id="run-2", record_id="ticket/2"))
    between = utc_now()
    await trail.append_event(replace(EVENT, identity=build_identity(bob)))
    await trail.append_event(replace(hers, system="salesforce"))

    async def seqs(**conditions: Any) -> list[int]:
        return [line.seq for line in await trail.find_lines(**conditions)]

    assert await seqs(system="zendesk", record_id="ticket/1") == [1, 3]
    assert await seqs(principal_id=alice.id) == [1, 2, 4]
    assert await seqs(principal_id=alice.id, system="zendesk") == [1, 2]
    assert await seqs(run_id="run-2") == [2]
    assert await seqs(since=between) == [3, 4]
    assert await seqs(until=between) == [1, 2]
    assert await seqs(limit=2) == [3, 4]
    assert await seqs(record_id="ticket/3") == []


async def test_an_intent_may_have_acted_until_its_outcome_is_known(services: Services) -> None:
    trail, intent = services.trail, replace(EVENT, kind="action.intended", idempotency_key="key-1")
    assert not await trail.may_have_acted("run-1", "key-1")

    seq = await trail.append_event(intent)
    assert await trail.may_have_acted("run-1", "key-1")
    assert not await trail.may_have_acted("run-1", "key-2")
    assert not await trail.may_have_acted("run-2", "key-1")

    await trail.append_event(replace(intent, kind="action.ended", intent=seq, verdict="denied"))
    assert not await trail.may_have_acted("run-1", "key-1")


async def test_a_request_that_was_allowed_has_acted(services: Services) -> None:
    trail, intent = services.trail, replace(EVENT, kind="action.intended", idempotency_key="key-1")
    seq = await trail.append_event(intent)
    await trail.append_event(replace(intent, kind="action.ended", intent=seq, verdict="allowed"))

    assert await trail.may_have_acted("run-1", "key-1")


async def test_an_intent_whose_answer_was_lost_may_have_acted(services: Services) -> None:
    trail, intent = services.trail, replace(EVENT, kind="action.intended", idempotency_key="key-1")
    seq = await trail.append_event(intent)
    await trail.append_event(replace(intent, kind="action.ended", intent=seq, verdict="no_answer"))

    assert await trail.may_have_acted("run-1", "key-1")


async def test_an_open_intent_is_found_however_much_was_written_since(services: Services) -> None:
    await services.trail.append_event(replace(EVENT, kind="action.intended", idempotency_key="key-1"))
    await asyncio.gather(*(services.trail.append_event(EVENT) for _ in range(1100)))

    assert await services.trail.may_have_acted("run-1", "key-1")


async def test_the_last_use_of_a_grant_is_its_newest_action_of_that_person_since_then(
    services: Services, alice: Principal, bob: Principal
) -> None:
    used_event = replace(EVENT, kind="action.intended", connection="support")
    before = utc_now()
    assert await services.trail.find_last_use(alice.id, "grant-1", before) is None
    for who, grant in ((alice, "grant-1"), (alice, "grant-1"), (alice, "grant-2"), (bob, "grant-1")):
        await services.trail.append_event(replace(used_event, identity=build_identity(who), grant_id=grant))

    last_use = await services.trail.find_last_use(alice.id, "grant-1", before)

    assert last_use is not None
    assert (last_use.seq, last_use.event["tool"]) == (2, TOOL)
    assert await services.trail.find_last_use(alice.id, "grant-1", utc_now()) is None
