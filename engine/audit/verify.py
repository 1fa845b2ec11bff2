"""Verifies the trail: finds every line that was edited, deleted, inserted or reordered. It repairs nothing."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from sqlmodel import col, select

from engine.audit.trail import GENESIS_HASH, compute_chained_hash, extract_index_columns
from engine.db.database import Database
from engine.db.tables import AuditEventRow, AuditHeadRow
from engine.identity.signing import SigningKeys

_PAGE_ROWS = 1000


@dataclass(frozen=True, slots=True)
class TrailProof:
    """The outcome of a verification: the number of lines, the head to note down elsewhere, and the problems found."""

    line_count: int
    head_seq: int
    head_hash: str
    problems: tuple[str, ...]

    @property
    def is_intact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


async def verify_trail(
    database: Database, signing_keys: SigningKeys, *, noted_head: tuple[int, str] | None = None
) -> TrailProof:
    """Check every line's place, hash, signature and searchable columns.

    A trail that was cut off at its end looks like a shorter one. Only a comparison with `noted_head`, a head that was
    noted earlier (sequence number and hash), shows the difference.
    """
    chain_walk = _ChainWalk(signing_keys, None if noted_head is None else noted_head[0])
    head_seq, head_hash, expected_seq, is_readable = 0, GENESIS_HASH, 0, True
    # Lines may be appended meanwhile. The head is read after the lines, and the lines up to it are then read too.
    while is_readable and chain_walk.last_seq >= expected_seq:
        expected_seq = head_seq
        try:
            async for event_row in _iterate_rows(
                database, after_seq=chain_walk.last_seq if chain_walk.line_count else None
            ):
                await chain_walk.check_next_line(event_row)
        except ValueError:
            is_readable = False
            chain_walk.problems.append(
                f"a line after {chain_walk.last_seq} cannot be read as one, so it and the rest are unproven"
            )
        head_seq, head_hash = await _read_head(database)
        if head_seq <= chain_walk.last_seq:
            break
    if (head_seq, head_hash) != (chain_walk.last_seq, chain_walk.last_hash):
        chain_walk.problems.append(
            f"the head says {head_seq} lines, the last one found is {chain_walk.last_seq}"
        )
    if noted_head is not None and chain_walk.noted_hash != noted_head[1]:
        chain_walk.problems.append(f"line {noted_head[0]} is not the one noted")
    return TrailProof(chain_walk.line_count, head_seq, head_hash, tuple(chain_walk.problems))


class _ChainWalk:
    """How far a verification has come along the chain, and the problems found so far."""

    def __init__(self, signing_keys: SigningKeys, noted_seq: int | None) -> None:
        self._signing_keys = signing_keys
        self._noted_seq = noted_seq
        self.noted_hash: str | None = None
        self.line_count = 0
        self.last_seq = 0
        self.last_hash = GENESIS_HASH
        self.problems: list[str] = []

    async def check_next_line(self, event_row: AuditEventRow) -> None:
        """Check the next line against the one before, and move on to it."""
        self.line_count += 1
        if event_row.seq != self.last_seq + 1:
            self.problems.append(f"line {self.last_seq + 1}: missing (the next one is {event_row.seq})")
        self.problems += [
            f"line {event_row.seq}: {problem}"
            for problem in await _find_problems(event_row, self.last_hash, self._signing_keys)
        ]
        if event_row.seq == self._noted_seq:
            self.noted_hash = event_row.hash
        self.last_seq, self.last_hash = event_row.seq, event_row.hash


async def _read_head(database: Database) -> tuple[int, str]:
    async with database.open_read_session() as db_session:
        head_row = await db_session.get(AuditHeadRow, 1)
    return (0, GENESIS_HASH) if head_row is None else (head_row.seq, head_row.hash)


async def _find_problems(
    event_row: AuditEventRow, previous_hash: str, signing_keys: SigningKeys
) -> list[str]:
    problems = []
    if event_row.previous_hash != previous_hash:
        problems.append("does not follow the line before it")
    if event_row.hash != compute_chained_hash(
        event_row.seq, event_row.time, event_row.kind, event_row.event, event_row.previous_hash
    ):
        problems.append("was edited")
    elif not await signing_keys.verify_signature(
        event_row.kid, event_row.signature, bytes.fromhex(event_row.hash)
    ):
        problems.append("is not signed by a key of this installation")
    elif any(
        getattr(event_row, column_name) != column_value
        for column_name, column_value in extract_index_columns(event_row.event).items()
    ):
        problems.append("its searchable columns were edited")
    return problems


async def _iterate_rows(database: Database, *, after_seq: int | None) -> AsyncIterator[AuditEventRow]:
    while True:
        statement = select(AuditEventRow).order_by(col(AuditEventRow.seq)).limit(_PAGE_ROWS)
        if after_seq is not None:
            statement = statement.where(AuditEventRow.seq > after_seq)
        async with database.open_read_session() as db_session:
            event_rows = (await db_session.exec(statement)).all()
        for event_row in event_rows:
            yield event_row
        if len(event_rows) < _PAGE_ROWS:
            return
        after_seq = event_rows[-1].seq
