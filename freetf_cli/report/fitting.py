"""Tables of measurements: as a table where one fits, else a row at a time, so that no number and no name is cut."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from freetf_cli.report.console import page_width, visible
from freetf_cli.report.tables import Cell, as_text, print_table

GAP = 3  # between the columns of a table
FOLDS = 80  # from here on only columns of words need to fold


def needed(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> int:
    """Columns that a table takes with nothing folded."""
    widths = [max(cell_len(as_text(cell).plain) for cell in column) for column in zip(headers, *rows, strict=True)]
    return sum(widths) + GAP * (len(widths) - 1)


def print_fitting(console: Console, headers: Sequence[str], rows: Sequence[Sequence[Cell]], *, right: Sequence[int]) -> None:
    """`print_table`; where that would fold numbers, each row under its name. Very narrow terminals stack in `print_table`."""
    width = page_width(console)
    if not 60 <= width < FOLDS or needed(headers, rows) <= width:
        # Columns of numbers are never folded: below 60 columns a number in two lines beats half a number.
        print_table(console, headers, rows, right=right if width >= 60 else ())
        return
    names = min(max(cell_len(visible(header)) for header in headers), 24)
    for row in rows:
        name = as_text(row[0])
        name.stylize("bold")
        console.print(name, overflow="fold")
        for header, cell in zip(headers[1:], row[1:], strict=True):
            console.print(Text.assemble((f"  {visible(header):<{names}}  ", "dim"), as_text(cell)), overflow="fold")
