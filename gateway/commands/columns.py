"""Prints rows in columns for a terminal, with untrusted text escaped."""

from collections.abc import Iterable, Sequence

import typer

from gateway.commands.plain import plain


def print_columns(rows: Iterable[Sequence[object]], *, otherwise: str, err: bool = False) -> None:
    """Print each row on a line, with aligned columns. Without rows, `empty_message` goes to standard error."""
    lines = [["" if cell is None else plain(cell) for cell in row] for row in rows]
    if not lines:
        typer.echo(otherwise, err=True)
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip(), err=err)
