"""Prints rows in columns for a terminal, with untrusted text escaped."""

from collections.abc import Iterable, Sequence

import typer

from gateway.terminal.safe_text import escape_text


def print_columns(
    table_rows: Iterable[Sequence[object]], *, empty_message: str, should_use_stderr: bool = False
) -> None:
    """Print each row on a line, with aligned columns. Without rows, `empty_message` goes to standard error."""
    escaped_rows = [
        ["" if cell_text is None else escape_text(cell_text) for cell_text in table_row]
        for table_row in table_rows
    ]
    if not escaped_rows:
        typer.echo(empty_message, err=True)
        return
    column_widths = [max(map(len, column)) for column in zip(*escaped_rows, strict=True)]
    for escaped_row in escaped_rows:
        padded_cells = (
            cell_text.ljust(column_width)
            for cell_text, column_width in zip(escaped_row, column_widths, strict=True)
        )
        typer.echo("  ".join(padded_cells).rstrip(), err=should_use_stderr)
