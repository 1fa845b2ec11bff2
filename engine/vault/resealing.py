"""Seals stored secrets again with the current data key, while everything runs. It may stop after any row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, inspect
from sqlmodel import SQLModel, select

from engine.db.database import Database
from engine.vault.vault import Vault

_PAGE = 100

Told = Callable[[str, int, int], None]
"""Receives the progress: the label of the column, how many rows were visited, and of how many."""


@dataclass(frozen=True)
class SealedColumn:
    """The column in which a table keeps a secret, and the text that binds a secret to its row.

    `make_pending_condition` selects the rows that are not over yet.
    """

    what: str
    table: type[SQLModel]
    column: str
    bound_to: Callable[[Any], str]
    pending: Callable[[], ColumnElement[bool]] | None = None

    def read(self, row: Any) -> bytes | None:
        """Return the sealed value of a row, if it has one."""
        value: bytes | None = getattr(row, self.column)
        return value or None

    def write(self, row: Any, sealed: bytes) -> None:
        """Store a sealed value in the row."""
        setattr(row, self.column, sealed)


async def reseal(database: Database, vault: Vault, kept: SealedColumn, told: Told) -> int:
    """Seal again every value that the current key did not seal, one short transaction each; return how many."""
    (key,) = inspect(kept.table, raiseerr=True).primary_key
    query = select(key).order_by(key)
    if kept.pending is not None:
        query = query.where(kept.pending())
    async with database.reading() as session:
        ids = (await session.exec(query)).all()
    changed = 0
    for begin in range(0, len(ids), _PAGE):
        page = ids[begin : begin + _PAGE]
        async with database.reading() as session:
            rows = (await session.exec(select(kept.table, key).where(key.in_(page)))).all()
        for row, row_id in rows:
            if await _is_stale(vault, kept.read(row)):
                changed += await _reseal_row(database, vault, kept, row_id)
        told(kept.what, begin + len(page), len(ids))
    return changed


async def _reseal_row(database: Database, vault: Vault, kept: SealedColumn, row_id: Any) -> bool:
    async with database.writing() as session:
        # The row is locked, so that a value that is being renewed at this moment is not overwritten with an old one.
        row = await session.get(kept.table, row_id, with_for_update=True)
        sealed = None if row is None else kept.read(row)
        if row is None or sealed is None or not await _is_stale(vault, sealed):
            return False
        bound_to = kept.bound_to(row)
        kept.write(row, await vault.seal(await vault.open(sealed, bound_to), bound_to))
        session.add(row)
    return True


async def _is_stale(vault: Vault, sealed: bytes | None) -> bool:
    return sealed is not None and not await vault.is_current(sealed)
