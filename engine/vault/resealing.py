"""Seals stored secrets again with the current data key, while everything runs. It may stop after any row."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import inspect
from sqlmodel import select

from engine.db.database import Database
from engine.vault.sealed_column import SealedColumn
from engine.vault.vault import Vault

_PAGE_ROWS = 100

ProgressCallback = Callable[[str, int, int], None]
"""Receives the progress: the label of the column, how many rows were visited, and of how many."""


async def reseal_columns(database: Database, vault: Vault, report_progress: ProgressCallback) -> int:
    """Seal again every value of every registered column that the current key did not seal; return how many."""
    return sum(
        [
            await _reseal_column(database, vault, sealed_column, report_progress)
            for sealed_column in vault.sealed_columns
        ]
    )


async def _reseal_column(
    database: Database, vault: Vault, sealed_column: SealedColumn, report_progress: ProgressCallback
) -> int:
    """Seal again every value that the current key did not seal, one short transaction each; return how many."""
    (key_column,) = inspect(sealed_column.row_class, raiseerr=True).primary_key
    statement = select(key_column).order_by(key_column)
    if sealed_column.make_pending_condition is not None:
        statement = statement.where(sealed_column.make_pending_condition())
    async with database.open_read_session() as db_session:
        row_ids = (await db_session.exec(statement)).all()
    resealed_count = 0
    for page_start in range(0, len(row_ids), _PAGE_ROWS):
        page_row_ids = row_ids[page_start : page_start + _PAGE_ROWS]
        async with database.open_read_session() as db_session:
            table_rows = (
                await db_session.exec(
                    select(sealed_column.row_class, key_column).where(key_column.in_(page_row_ids))
                )
            ).all()
        for table_row, row_id in table_rows:
            if await _is_stale(vault, sealed_column.read_sealed(table_row)):
                resealed_count += await _reseal_row(database, vault, sealed_column, row_id)
        report_progress(sealed_column.label, page_start + len(page_row_ids), len(row_ids))
    return resealed_count


async def _reseal_row(database: Database, vault: Vault, sealed_column: SealedColumn, row_id: Any) -> bool:
    async with database.open_write_session() as db_session:
        # The row is locked, so that a value that is being renewed at this moment is not overwritten with an old one.
        table_row = await db_session.get(sealed_column.row_class, row_id, with_for_update=True)
        sealed_value = None if table_row is None else sealed_column.read_sealed(table_row)
        if table_row is None or sealed_value is None or not await _is_stale(vault, sealed_value):
            return False
        associated_data = sealed_column.build_associated_data(table_row)
        sealed_column.write_sealed(
            table_row,
            await vault.seal_secret(await vault.open_secret(sealed_value, associated_data), associated_data),
        )
        db_session.add(table_row)
    return True


async def _is_stale(vault: Vault, sealed_value: bytes | None) -> bool:
    return sealed_value is not None and not await vault.has_current_key(sealed_value)
