"""Verifies the trail: finds every line that was edited, deleted, inserted or reordered. It repairs nothing."""

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
    """The outcome of a verification: the number of lines, the head to note down elsewhere, and the problems found."""

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

    A trail that was cut off at its end looks like a shorter one. Only a comparison with `noted_head`, a head that was
    noted earlier (sequence number and hash), shows the difference.
    """
    walk = _Walk(keys, None if noted is None else noted[0])
    head_seq, head_hash, promised, readable = 0, GENESIS, 0, True
    # Lines may be appended meanwhile. The head is read after the lines, and the lines up to it are then read too.
    while readable and walk.seq >= promised:
        promised = head_seq
        try:
            async for row in _rows(database, after=walk.seq if walk.lines else None):
                await walk.take(row)
        except ValueError:
            readable = False
            walk.problems.append(
                f"a line after {walk.seq} cannot be read as one, so it and the rest are unproven"
            )
        head_seq, head_hash = await _head(database)
        if head_seq <= walk.seq:
            break
    if (head_seq, head_hash) != (walk.seq, walk.hash):
        walk.problems.append(f"the head says {head_seq} lines, the last one found is {walk.seq}")
    if noted is not None and walk.noted_hash != noted[1]:
        walk.problems.append(f"line {noted[0]} is not the one noted")
    return Proof(walk.lines, head_seq, head_hash, tuple(walk.problems))


class _Walk:
    """How far a verification has come along the chain, and the problems found so far."""

    def __init__(self, keys: SigningKeys, noted_seq: int | None) -> None:
        self._keys = keys
        self._noted_seq = noted_seq
        self.noted_hash: str | None = None
        self.lines = 0
        self.seq = 0
        self.hash = GENESIS
        self.problems: list[str] = []

    async def take(self, row: AuditEventRow) -> None:
        """Check the next line against the one before, and move on to it."""
        self.lines += 1
        if row.seq != self.seq + 1:
            self.problems.append(f"line {self.seq + 1}: missing (the next one is {row.seq})")
        self.problems += [f"line {row.seq}: {found}" for found in await _problems(row, self.hash, self._keys)]
        if row.seq == self._noted_seq:
            self.noted_hash = row.hash
        self.seq, self.hash = row.seq, row.hash


async def _head(database: Database) -> tuple[int, str]:
    async with database.reading() as session:
        head = await session.get(AuditHeadRow, 1)
    return (0, GENESIS) if head is None else (head.seq, head.hash)


async def _problems(row: AuditEventRow, previous_hash: str, keys: SigningKeys) -> list[str]:
    found = []
    if row.previous_hash != previous_hash:
        found.append("does not follow the line before it")
    if row.hash != chained_hash(row.seq, row.time, row.kind, row.event, row.previous_hash):
        found.append("was edited")
    elif not await keys.verify_bytes(row.kid, row.signature, bytes.fromhex(row.hash)):
        found.append("is not signed by a key of this installation")
    elif any(getattr(row, name) != value for name, value in index_columns(row.event).items()):
        found.append("its searchable columns were edited")
    return found


async def _rows(database: Database, *, after: int | None) -> AsyncIterator[AuditEventRow]:
    while True:
        query = select(AuditEventRow).order_by(col(AuditEventRow.seq)).limit(_PAGE)
        if after is not None:
            query = query.where(AuditEventRow.seq > after)
        async with database.reading() as session:
            page = (await session.exec(query)).all()
        for row in page:
            yield row
        if len(page) < _PAGE:
            return
        after = page[-1].seq
