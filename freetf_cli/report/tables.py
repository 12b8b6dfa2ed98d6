"""Tables on a terminal, and the same cells one under the other where a table has no room."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from freetf_cli.report.console import visible

Cell = str | Text


def print_table(
    console: Console, headers: Sequence[str], rows: Sequence[Sequence[Cell]], *, right: Sequence[int] = (), total: bool = False
) -> None:
    """Rows under headers; columns in `right` are numbers. total: the last row sums up the others."""
    if not rows:
        return
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, padding=(0, 1))
    for column, name in enumerate(headers):
        numbers = column in right
        table.add_column(as_text(name), justify="right" if numbers else "left", no_wrap=numbers, overflow="fold")
    for number, row in enumerate(rows):
        last = number == len(rows) - 1
        table.add_row(*(as_text(cell) for cell in row), style="bold" if total and last else "")
    needed = Measurement.get(console, console.options.update(width=10_000), table).maximum
    if needed > console.width and console.width < 60:
        _print_stacked(console, headers, rows)
    else:
        _print_unpadded(console, table)


def print_facts(console: Console, facts: Sequence[tuple[str, Cell]]) -> None:
    """Names and values, one a line; a narrow terminal has the value under its name."""
    if console.width < 40:
        _print_stacked(console, ["", ""], facts)
        return
    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(as_text(name), as_text(value))
    _print_unpadded(console, grid)


def _print_unpadded(console: Console, table: Table) -> None:
    """A table; in a pipe without the spaces that fill its last column."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as drawn:
        console.print(table)
    console.file.write("".join(line.rstrip() + "\n" for line in drawn.get().splitlines()))


def print_heading(console: Console, text: Cell) -> None:
    heading = as_text(text)
    heading.stylize("bold")
    console.print()
    console.print(heading, overflow="fold")


def as_text(cell: Cell) -> Text:
    """Text as it is, never as rich markup."""
    return cell.copy() if isinstance(cell, Text) else Text(visible(cell))


def _print_stacked(console: Console, headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    for row in rows:
        for name, cell in zip(headers, row, strict=True):
            line = as_text(cell)
            if name:
                line = Text.assemble((f"{visible(name)} ", "dim"), line)
            elif cell is row[0]:
                line.stylize("dim")
            console.print(line, overflow="fold")
        if any(headers):
            console.print()
