"""Proves the trail: finds every line that was edited, deleted, inserted or reordered; it repairs nothing."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from sqlmodel import col, select

from engine.audit.trail import GENESIS, chained_hash, index_columns
from engine.db.database import Database
from engine.db.tables import AuditEventRow, AuditHeadRow
from engine.identity.signing import SigningKeys

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Proof:
    """The outcome of a verification: the lines seen, the head to note down elsewhere, and what is wrong."""

    lines: int
    head_seq: int
    head_hash: str
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


async def verify_trail(
    database: Database, keys: SigningKeys, *, noted: tuple[int, str] | None = None
) -> Proof:
    """Check every line's place, hash, signature and searchable columns.

    A trail cut off at its end looks like a shorter one, unless a head `noted` earlier (sequence number and hash)
    is held against it.
    """
    problems: list[str] = []
    lines, previous_seq, previous_hash = 0, 0, GENESIS
    noted_hash: str | None = None
    async for row in _rows(database):
        lines += 1
        if row.seq != previous_seq + 1:
            problems.append(f"line {previous_seq + 1}: missing (the next one is {row.seq})")
        problems.extend(f"line {row.seq}: {problem}" for problem in await _problems(row, previous_hash, keys))
        if noted is not None and row.seq == noted[0]:
            noted_hash = row.hash
        previous_seq, previous_hash = row.seq, row.hash
    async with database.reading() as session:
        head = await session.get(AuditHeadRow, 1)
    head_seq, head_hash = (head.seq, head.hash) if head is not None else (0, GENESIS)
    if (head_seq, head_hash) != (previous_seq, previous_hash):
        problems.append(f"the head says {head_seq} lines, the last one found is {previous_seq}")
    if noted is not None and noted_hash != noted[1]:
        problems.append(f"line {noted[0]} is not the one noted")
    return Proof(lines, head_seq, head_hash, tuple(problems))


async def _problems(row: AuditEventRow, previous_hash: str, keys: SigningKeys) -> list[str]:
    found = []
    if row.previous_hash != previous_hash:
        found.append("does not follow the line before it")
    if row.hash != chained_hash(row.seq, row.time, row.kind, row.event, row.previous_hash):
        found.append("was edited")
    elif not await keys.verify_bytes(row.kid, row.signature, bytes.fromhex(row.hash)):
        found.append("is not signed by a key of this installation")
    if any(getattr(row, name) != value for name, value in index_columns(row.event).items()):
        found.append("its searchable columns were edited")
    return found


async def _rows(database: Database) -> AsyncIterator[AuditEventRow]:
    after = 0
    while True:
        query = (
            select(AuditEventRow)
            .where(AuditEventRow.seq > after)
            .order_by(col(AuditEventRow.seq))
            .limit(_PAGE)
        )
        async with database.reading() as session:
            page = (await session.exec(query)).all()
        for row in page:
            yield row
        if len(page) < _PAGE:
            return
        after = page[-1].seq
