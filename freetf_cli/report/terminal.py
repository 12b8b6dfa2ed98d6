"""Renders reports on stdout with rich. A pipe gets the same text without colour, folding or truncation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from functools import singledispatch
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Column
from rich.table import Table as Grid
from rich.text import Text

from freetf_cli.report import blocks
from freetf_cli.report.console import hint, out, page_width, visible
from freetf_cli.report.units import is_number, number

STYLES = {
    "prompt": "dim",
    "blank": "dim",
    "noise": "red",
    "target": "bold magenta",
    "invalid": "bold white on red",
    "good": "green",
    "bad": "bold red",
    "warn": "bold yellow",
    "strong": "bold",
    "dim": "dim",
    "command": "cyan",
    "ce": "magenta",
    "kl": "cyan",
    "nelbo": "yellow",
    "floor": "green",
    "a": "cyan",
    "b": "yellow",
}
BOX_STYLES = {"independent": "blue", "shared": "green"}
FRAME = 4  # columns of a box's border and padding
WIDE = 80  # columns from which boxes of text may stand side by side
NARROW = 40  # columns below which a value stands under its label
BARS = "▁▂▃▄▅▆▇█"
SPARKLINE = 40  # columns


def show(report: blocks.Report) -> None:
    """Print a report on stdout, and the commands to try next on stderr."""
    console = out()
    if report.title:
        state, mood = report.status or ("", "")
        words = [(report.title, "bold"), (report.kicker, "dim"), (state, STYLES.get(mood, "dim"))]
        console.print(Text("  ").join(_text(*word) for word in words if word[0]))
    for line in report.about:
        _say(console, line, "dim")
    if report.title or report.about:
        console.print()
    show_blocks(report.blocks)
    if report.glossary:
        console.print()
        _say(console, "; ".join(f"{symbol}: {meaning}" for symbol, meaning in report.glossary) + ".", "dim")
    for command in report.hints:
        hint(command)


def watch(reports: Iterable[blocks.Report]) -> None:
    """Show each report in place of the one before, as far as it fits on the screen; the last one as `show` does. Needs a terminal."""
    report = None
    with Live(console=out(), screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as display:
        for report in reports:
            display.update(Text.from_ansi(_drawn(report)), refresh=True)
    if report is not None:
        show(report)


def _drawn(report: blocks.Report) -> str:
    """What `show` prints, with its colours."""
    with redirect_stdout(_Drawing()) as drawing:
        show(report)
    return drawing.getvalue()


class _Drawing(StringIO):
    """Text for a terminal."""

    def isatty(self) -> bool:
        return True


def show_blocks(shown: Iterable[blocks.Block]) -> None:
    """Print blocks on stdout, without those that are details."""
    console = out()
    for order, block in enumerate(one for one in shown if one and not one.detail):
        if order and (isinstance(block, blocks.Chart | blocks.Grid) or (isinstance(block, blocks.Table) and not block.caption)):
            console.print()
        _print(block, console)


def show_line(spans: blocks.Line) -> None:
    """Print one generated sequence: coloured on a terminal, its plain text in a pipe."""
    console = out()
    if console.is_terminal:
        console.print(_line(spans), soft_wrap=True)
    else:
        console.file.write("".join(text for text, _ in spans) + "\n")
        console.file.flush()


def sparkline(values: Sequence[float], width: int = SPARKLINE) -> str:
    """The values as bars, at most `width` of them; a space where a value is not finite."""
    shown = [values[int(i * len(values) / width)] for i in range(width - 1)] + [values[-1]] if len(values) > width > 1 else list(values)
    finite = [value for value in shown if is_number(value)]
    if not finite:
        return ""
    low, extent = min(finite), max(finite) - min(finite)
    return "".join(BARS[round((value - low) / extent * 7) if extent else 3] if is_number(value) else " " for value in shown)


@singledispatch
def _print(block: blocks.Block, console: Console) -> None:
    """Print a block. Heat maps and interval charts are left to pages; tables have their numbers."""


@_print.register
def _(block: blocks.Note, console: Console) -> None:
    if block.style == "command":
        console.print(_text(f"   {block.text}", "cyan"), soft_wrap=True)  # a command to copy stays whole, and has no prompt
    else:
        _say(console, block.text, "bold" if block.style == "strong" else "")


@_print.register
def _(block: blocks.Verdict, console: Console) -> None:
    label = f"{block.label}. " if block.label else ""
    console.print(_joined([_text(label, STYLES.get(block.mood, "bold blue")), _text(block.sentence, "bold")]))
    for line in block.evidence:
        _say(console, f"· {line}")
    console.print()


@_print.register
def _(block: blocks.Facts, console: Console) -> None:
    _facts(console, block.shown)


@_print.register
def _(block: blocks.Cards, console: Console) -> None:
    _facts(console, [(card.label, f"{card.value} {card.unit}" + (f" ({card.other})" if card.other else "")) for card in block.cards])


@_print.register
def _(block: blocks.Table, console: Console) -> None:
    if block.caption:
        _heading(console, block.caption)
    table = Grid(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, padding=(0, 1), show_header=any(block.columns))
    for column, name in enumerate(block.columns):
        right = block.is_right(column)
        table.add_column(visible(name), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in block.rows:
        table.add_row(*map(_cell, row), style="bold" if block.total and row is block.rows[-1] else "")
    if Measurement.get(console, console.options.update(width=10_000), table).minimum > console.width:
        _stacked(console, block)
    else:
        _unpadded(console, table)


@_print.register
def _(block: blocks.Chart, console: Console) -> None:
    pairs = _sparklines(block, console)
    if pairs:
        _say(console, block.title if " by " in block.title else f"{block.title}, by {block.x_label}", "bold")
    _facts(console, pairs)
    for line in block.references if pairs else ():
        _say(console, line.label, STYLES.get(line.role, "dim"))


def _sparklines(chart: blocks.Chart, console: Console) -> list[tuple[str, str]]:
    """A sparkline for each curve, with its least and its last value."""
    pairs = []
    for series in chart.series:
        values = [value for value in series.y if is_number(value)]
        if values and not series.faint:
            digits = 2 if max(map(abs, values)) >= 0.1 else 6
            line = sparkline(series.y, max(8, min(SPARKLINE, page_width(console) - 54)))
            pairs.append((series.name, f"{line}  min {number(min(values), digits)}, last {number(values[-1], digits)}"))
    return pairs


@_print.register
def _(block: blocks.Samples, console: Console) -> None:
    if block.title:
        _heading(console, block.title)
    for line in block.measured:
        _say(console, line, "dim")
    width = page_width(console)
    if block.beside and width >= WIDE:
        row = Grid.grid(*(Column(ratio=1) for _ in block.boxes), expand=True)
        row.add_row(*map(_panel, block.boxes))
        console.print(row, width=width)
        return
    widest = FRAME + max(_line(line).cell_len for box in block.boxes for line in box.lines or [()])
    beside = max(1, min(len(block.boxes), width // widest)) if all(box.fixed for box in block.boxes) else 1
    gap = min(2, (width - beside * widest) // max(beside - 1, 1))
    for start in range(0, len(block.boxes), beside):
        row = Grid.grid(padding=(0, gap, 0, 0), pad_edge=False)
        panels = [_panel(box) for box in block.boxes[start : start + beside]]
        row.add_row(*panels)
        console.print(row if beside > 1 else panels[0], width=width)


@_print.register
def _(block: blocks.Grid, console: Console) -> None:
    small = [one for one in block.blocks if isinstance(one, blocks.Chart) and one.small]
    _facts(console, [pair for chart in small for pair in _sparklines(chart, console)])
    show_blocks(one for one in block.blocks if one not in small)


@_print.register
def _(block: blocks.Section, console: Console) -> None:
    _heading(console, block.title)
    show_blocks(block.blocks)


def _panel(box: blocks.Box) -> Panel:
    colour = BOX_STYLES[box.kind]
    body = Text("\n" if box.fixed else "\n\n", overflow="fold").join(map(_line, box.lines))
    return Panel(body, title=_text(box.title, f"bold {colour}"), title_align="left", border_style=colour, expand=False)


def _text(text: str, style: str = "") -> Text:
    """Text as it is, never as rich markup; folded where it is too long."""
    return Text(visible(text), style=style, overflow="fold")


def _joined(parts: Iterable[Text]) -> Text:
    return Text(overflow="fold").join(parts)


def _line(spans: blocks.Line) -> Text:
    return _joined(map(_cell, spans))


def _cell(cell: blocks.Cell) -> Text:
    text, role = (cell, "") if isinstance(cell, str) else cell
    return _text(text, STYLES.get(role, ""))


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(_text(text, style))


def _heading(console: Console, text: str) -> None:
    console.print()
    _say(console, text, "bold")


def _facts(console: Console, pairs: Sequence[tuple[str, str]]) -> None:
    if console.width < NARROW:
        for label, value in pairs:
            _say(console, label, "dim")
            _say(console, value)
        return
    grid = Grid.grid(padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(style="dim", overflow="fold", max_width=console.width // 2)
    grid.add_column(overflow="fold")
    for label, value in pairs:
        grid.add_row(_text(label), _text(value))
    _unpadded(console, grid)


def _unpadded(console: Console, table: RenderableType) -> None:
    """A table; in a pipe without the spaces that fill its last column."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as drawn:
        console.print(table)
    console.file.write("".join(line.rstrip() + "\n" for line in drawn.get().splitlines()))


def _stacked(console: Console, table: blocks.Table) -> None:
    """A table that is too wide for the terminal: each row as its first cell, and below it a line for each other cell."""
    names = min(max(map(cell_len, table.columns)), 24)
    for row in table.rows:
        first, *rest = map(_cell, row)
        first.stylize("bold")
        console.print(first)
        for name, cell in zip(table.columns[1:], rest, strict=True):
            if cell.plain:
                console.print(_joined([_text(f"  {visible(name):<{names}} ", "dim"), cell]))
