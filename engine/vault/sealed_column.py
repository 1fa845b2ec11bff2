"""Describes a column that the vault seals. The owner of its table registers it with the vault."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement
from sqlmodel import SQLModel


@dataclass(frozen=True)
class SealedColumn:
    """The column in which a table keeps a secret, and the text that binds a secret to its row.

    `make_pending_condition` selects the rows that are not over yet.
    """

    label: str
    row_class: type[SQLModel]
    column_name: str
    build_associated_data: Callable[[Any], str]
    make_pending_condition: Callable[[], ColumnElement[bool]] | None = None

    def read_sealed(self, table_row: Any) -> bytes | None:
        """Return the sealed value of a row, if it has one."""
        sealed_value: bytes | None = getattr(table_row, self.column_name)
        return sealed_value or None

    def write_sealed(self, table_row: Any, sealed_value: bytes) -> None:
        """Store a sealed value in the row."""
        setattr(table_row, self.column_name, sealed_value)
