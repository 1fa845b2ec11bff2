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
from tests.administration import retire_signing_key, rotate_signing_key
from tests.data.conftest import Opener
from tests.data.samples import TOOL, identity_of

EVENT = AuditEvent(kind="action.ended", system="zendesk", record_id="ticket/1", run_id="run-1")
LINES = 6


async def problems(services: Services, noted: tuple[int, str] | None = None) -> tuple[str, ...]:
    return (await verify_trail(services.database, services.signing_keys, noted_head=noted)).problems


async def changed(services: Services, *statements: Any) -> None:
    """Change the tables behind the trail's back."""
    async with services.database.open_write_session() as session:
        connection = await session.connection()
        for statement in statements:
            await connection.execute(statement)


async def rows(services: Services) -> list[dict[str, Any]]:
    async with services.database.open_read_session() as session:
        found = (await session.exec(select(AuditEventRow).order_by(col(AuditEventRow.seq)))).all()
    return [row.model_dump() for row in found]


def line(seq: int) -> Any:
    return update(AuditEventRow).where(col(AuditEventRow.seq) == seq)


def without(condition: Any) -> Any:
    return delete(AuditEventRow).where(condition)


def renumbered(seq: int, to: int) -> Any:
    return line(seq).values(seq=to)


@pytest.fixture
async def written(services: Services, alice: Principal) -> Services:
    """A trail of six lines."""
    for number in range(LINES):
        event = replace(EVENT, identity=identity_of(alice), record_id=f"ticket/{number + 1}")
        await services.trail.append_event(event)
    return services


async def test_an_empty_trail_holds(services: Services) -> None:
    proof = await verify_trail(services.database, services.signing_keys)

    assert proof.is_intact
    assert (proof.line_count, proof.head_seq, proof.head_hash) == (0, 0, GENESIS_HASH)


async def test_every_line_follows_from_the_one_before(written: Services) -> None:
    proof = await verify_trail(written.database, written.signing_keys)
    lines = await rows(written)

    assert proof.is_intact
    assert [row["seq"] for row in lines] == [1, 2, 3, 4, 5, 6]
    assert [row["previous_hash"] for row in lines] == [GENESIS_HASH, *(row["hash"] for row in lines[:-1])]
    assert (proof.line_count, proof.head_seq, proof.head_hash) == (LINES, LINES, lines[-1]["hash"])


async def test_whatever_people_write_comes_back_and_proves_itself(
    services: Services, alice: Principal
) -> None:
    said = "„Zoë“ → 100 % 'quoted' \"twice\" \\ 日本 \N{PILE OF POO} \t\n"
    await services.trail.append_event(replace(EVENT, principal=replace(alice, name=said), message=said))

    (found,) = await services.trail.find_lines()
    assert found.event["message"] == said
    assert found.event["principal"]["name"] == said
    assert await problems(services) == ()


async def test_an_edited_event_is_found(written: Services) -> None:
    event = {**(await rows(written))[2]["event"], "record_id": "ticket/9"}
    await changed(written, line(3).values(event=event))

    assert await problems(written) == ("line 3: was edited",)


@pytest.mark.parametrize(
    "edit",
    [{"kind": "action.refused"}, {"time": utc_now()}, {"hash": "0" * 64}, {"event": []}, {"event": {}}],
)
async def test_an_edited_part_of_a_line_is_found(written: Services, edit: dict[str, Any]) -> None:
    await changed(written, line(3).values(**edit))

    assert "line 3: was edited" in await problems(written)


@pytest.mark.parametrize("column", ["principal_id", "run_id", "system", "record_id"])
async def test_an_edited_column_that_is_searched_is_found(written: Services, column: str) -> None:
    await changed(written, line(3).values(**{column: "another"}))

    assert await problems(written) == ("line 3: its searchable columns were edited",)


async def test_a_deleted_line_is_found(written: Services) -> None:
    await changed(written, without(col(AuditEventRow.seq) == 3))

    assert await problems(written) == (
        "line 3: missing (the next one is 4)",
        "line 4: does not follow the line before it",
    )


async def test_a_deleted_line_is_found_though_the_later_ones_were_renumbered(written: Services) -> None:
    later = [renumbered(seq, seq - 1) for seq in (4, 5, 6)]
    await changed(
        written, without(col(AuditEventRow.seq) == 3), *later, update(AuditHeadRow).values(seq=LINES - 1)
    )

    assert {"line 3: does not follow the line before it", "line 3: was edited"} <= set(
        await problems(written)
    )


async def test_a_deleted_first_line_is_found(written: Services) -> None:
    await changed(written, without(col(AuditEventRow.seq) == 1))

    assert await problems(written) == (
        "line 1: missing (the next one is 2)",
        "line 2: does not follow the line before it",
    )


async def test_reordered_lines_are_found(written: Services) -> None:
    await changed(written, renumbered(2, 99), renumbered(3, 2), renumbered(99, 3))

    found = await problems(written)
    assert "line 2: was edited" in found
    assert "line 3: was edited" in found


@pytest.mark.parametrize("seq", [-1, 0, LINES + 1])
async def test_a_line_that_was_added_at_an_end_is_found(written: Services, seq: int) -> None:
    await changed(written, insert(AuditEventRow).values({**(await rows(written))[-1], "seq": seq}))

    assert f"line {seq}: was edited" in await problems(written)


async def test_a_line_that_was_inserted_is_found(written: Services) -> None:
    copy = (await rows(written))[2]
    later = [renumbered(seq, seq + 1) for seq in (6, 5, 4, 3)]
    await changed(
        written, *later, insert(AuditEventRow).values(copy), update(AuditHeadRow).values(seq=LINES + 1)
    )

    found = await problems(written)
    assert "line 4: was edited" in found
    assert "line 4: does not follow the line before it" in found


async def test_a_cut_off_end_is_found_by_the_head(written: Services) -> None:
    await changed(written, without(col(AuditEventRow.seq) > 4))

    assert await problems(written) == ("the head says 6 lines, the last one found is 4",)


async def test_a_cut_off_end_whose_head_was_rewritten_is_found_by_a_head_noted_before(
    written: Services,
) -> None:
    noted = await verify_trail(written.database, written.signing_keys)
    last = (await rows(written))[3]
    await changed(
        written,
        without(col(AuditEventRow.seq) > 4),
        update(AuditHeadRow).values(seq=4, hash=last["hash"]),
    )

    assert await problems(written) == ()
    assert await problems(written, (noted.head_seq, noted.head_hash)) == ("line 6 is not the one noted",)


async def test_a_trail_that_began_anew_is_found_by_a_head_noted_before(written: Services) -> None:
    noted = await verify_trail(written.database, written.signing_keys)
    await changed(written, delete(AuditEventRow), delete(AuditHeadRow))
    for _ in range(LINES):
        await written.trail.append_event(EVENT)

    assert await problems(written) == ()
    assert await problems(written, (noted.head_seq, noted.head_hash)) == ("line 6 is not the one noted",)


async def test_a_noted_head_goes_on_holding_as_the_trail_grows(written: Services) -> None:
    noted = await verify_trail(written.database, written.signing_keys)
    await written.trail.append_event(EVENT)

    assert await problems(written, (noted.head_seq, noted.head_hash)) == ()


@pytest.mark.parametrize("forged", [{"signature": b"\x00" * 64}, {"signature": b"short"}, {"kid": "unknown"}])
async def test_a_forged_signature_is_found(written: Services, forged: dict[str, Any]) -> None:
    await changed(written, line(3).values(**forged))

    assert await problems(written) == ("line 3: is not signed by a key of this installation",)


async def test_a_chain_made_again_with_a_key_that_the_vault_did_not_seal_proves_nothing(
    written: Services, another_process: Opener
) -> None:
    forger = Ed25519PrivateKey.generate()
    previous, forged = GENESIS_HASH, []
    for row in await rows(written):
        event = {**row["event"], "record_id": "ticket/9"}
        digest = compute_chained_hash(row["seq"], row["time"], row["kind"], event, previous)
        signature = forger.sign(bytes.fromhex(digest))
        forged.append(
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
        sealed_private_key=(await _a_key(written)).sealed_private_key,
        created_at=utc_now() - timedelta(days=1),
        retired_at=utc_now(),
    )
    await changed(written, key, *forged, update(AuditHeadRow).values(hash=previous))
    auditor = await another_process()

    with pytest.raises(VaultSealBroken):
        await verify_trail(auditor.database, auditor.signing_keys)


async def _a_key(services: Services) -> SigningKeyRow:
    async with services.database.open_read_session() as session:
        return (await session.exec(select(SigningKeyRow))).one()


async def test_a_key_that_was_retired_still_vouches_for_the_lines_it_signed(written: Services) -> None:
    first = (await _a_key(written)).kid
    await rotate_signing_key(written)
    await written.trail.append_event(EVENT)
    assert await retire_signing_key(written, first)

    assert await problems(written) == ()


@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
@pytest.mark.parametrize("edit", ["event = 'no json'", "time = 'no time'"])
async def test_a_line_that_cannot_even_be_read_is_found(written: Services, edit: str) -> None:
    await changed(written, text(f"UPDATE audit_event SET {edit} WHERE seq = 3"))

    assert "a line after 0 cannot be read as one, so it and the rest are unproven" in await problems(written)


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
    assert await problems(services) == ()


async def test_a_trail_that_grows_while_it_is_proven_holds(services: Services, other: Services) -> None:
    async def write() -> None:
        for _ in range(60):
            await other.trail.append_event(EVENT)

    writing = asyncio.create_task(write())
    while not writing.done():
        assert await problems(services) == ()
    await writing

    assert (await verify_trail(services.database, services.signing_keys)).line_count == 60


async def test_an_append_tells_the_number_of_its_line(services: Services) -> None:
    seq = await services.trail.append_event(EVENT)
    found = await services.trail.find_lines()

    assert [line.seq for line in found] == [seq]


def person(username: str) -> PersonRow:
    return PersonRow(username=username, subject=username, name=username, password_hash="-")


async def people(services: Services) -> int:
    async with services.database.open_read_session() as session:
        return (await session.exec(select(func.count()).select_from(PersonRow))).one()


async def test_rows_that_come_with_a_line_are_written_with_it(services: Services) -> None:
    await services.trail.append_event(EVENT, person("a"), person("b"))

    assert await people(services) == 2


async def test_a_row_that_is_refused_takes_its_line_with_it(services: Services) -> None:
    await services.trail.append_event(EVENT, person("a"))
    with pytest.raises(IntegrityError):
        await services.trail.append_event(EVENT, person("b"), person("a"))

    assert await people(services) == 1
    assert len(await services.trail.find_lines()) == 1
    assert await problems(services) == ()


async def test_a_line_that_is_refused_takes_its_rows_with_it(services: Services) -> None:
    with pytest.raises(IntegrityError):
        await services.trail.append_event(replace(EVENT, kind=cast("Any", None)), person("a"))

    assert await people(services) == 0


async def test_an_append_that_is_refused_does_no_harm_to_those_it_shared_a_transaction_with(
    services: Services,
) -> None:
    await services.trail.append_event(EVENT, person("a"))
    ended = await asyncio.gather(
        services.trail.append_event(EVENT, person("b")),
        services.trail.append_event(EVENT, person("a")),
        services.trail.append_event(EVENT, person("c")),
        return_exceptions=True,
    )

    assert [type(outcome) for outcome in ended] == [int, IntegrityError, int]
    assert await people(services) == 3
    assert await problems(services) == ()


async def test_the_trail_answers_by_record_by_person_by_run_and_by_time(
    services: Services, alice: Principal, bob: Principal
) -> None:
    trail = services.trail
    hers = replace(EVENT, identity=identity_of(alice))
    await trail.append_event(hers)
    await trail.append_event(replace(hers, run_id="run-2", record_id="ticket/2"))
    between = utc_now()
    await trail.append_event(replace(EVENT, identity=identity_of(bob)))
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
    trail, intended = services.trail, replace(EVENT, kind="action.intended", idempotency_key="key-1")
    assert not await trail.may_have_acted("run-1", "key-1")

    seq = await trail.append_event(intended)
    assert await trail.may_have_acted("run-1", "key-1")
    assert not await trail.may_have_acted("run-1", "key-2")
    assert not await trail.may_have_acted("run-2", "key-1")

    await trail.append_event(replace(intended, kind="action.ended", intent=seq, verdict="denied"))
    assert not await trail.may_have_acted("run-1", "key-1")


async def test_a_request_that_was_allowed_has_acted(services: Services) -> None:
    trail, intended = services.trail, replace(EVENT, kind="action.intended", idempotency_key="key-1")
    seq = await trail.append_event(intended)
    await trail.append_event(replace(intended, kind="action.ended", intent=seq, verdict="allowed"))

    assert await trail.may_have_acted("run-1", "key-1")


async def test_an_intent_whose_answer_was_lost_may_have_acted(services: Services) -> None:
    trail, intended = services.trail, replace(EVENT, kind="action.intended", idempotency_key="key-1")
    seq = await trail.append_event(intended)
    await trail.append_event(replace(intended, kind="action.ended", intent=seq, verdict="no_answer"))

    assert await trail.may_have_acted("run-1", "key-1")


async def test_an_open_intent_is_found_however_much_was_written_since(services: Services) -> None:
    await services.trail.append_event(replace(EVENT, kind="action.intended", idempotency_key="key-1"))
    await asyncio.gather(*(services.trail.append_event(EVENT) for _ in range(1100)))

    assert await services.trail.may_have_acted("run-1", "key-1")


async def test_the_last_use_of_a_grant_is_its_newest_action_of_that_person_since_then(
    services: Services, alice: Principal, bob: Principal
) -> None:
    used = replace(EVENT, kind="action.intended", connection="support")
    before = utc_now()
    assert await services.trail.find_last_use(alice.id, "grant-1", before) is None
    for who, grant in ((alice, "grant-1"), (alice, "grant-1"), (alice, "grant-2"), (bob, "grant-1")):
        await services.trail.append_event(replace(used, identity=identity_of(who), grant_id=grant))

    found = await services.trail.find_last_use(alice.id, "grant-1", before)

    assert found is not None
    assert (found.seq, found.event["tool"]) == (2, TOOL)
    assert await services.trail.find_last_use(alice.id, "grant-1", utc_now()) is None
