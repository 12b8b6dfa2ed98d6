"""Two models side by side in the terminal: `freetf compare`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from freetf_cli.records.compare import Comparison, SamplePair, Side
from freetf_cli.report import compare_rows as rows_of
from freetf_cli.report.bars import FULL, bar
from freetf_cli.report.console import hint, out, page_width, visible
from freetf_cli.report.estimates import fraction
from freetf_cli.report.figure4 import FRAME, row_text
from freetf_cli.report.plot import STYLES, line_plot
from freetf_cli.report.rows import box_title, is_letters
from freetf_cli.report.tables import Cell, print_facts, print_heading, print_table
from freetf_cli.report.terminal import recipe_diff
from freetf_cli.report.units import is_number, scale

A_STYLE, B_STYLE = STYLES[rows_of.A_CLASS], STYLES[rows_of.B_CLASS]
MOODS = {"good": "bold green", "bad": "bold red", "open": "bold yellow"}
WIDE = 110  # columns from which there is room for more than the numbers
LEAST_TITLE = 24  # columns that a box needs for its title
LEAST_BOX = 40  # columns for running text beside another box


def comparison(result: Comparison) -> None:
    """All about the two, the verdict first and the checks last."""
    console = out()
    _head(console, result)
    if not result.equal:
        _metrics(console, result)
        _positions(console, result)
        _curves(console, result)
        _latent(console, result)
        _weights(console, result)
    if result.recipe:
        print_heading(console, "Recipe: settings that differ")
        recipe_diff("A", "B", [(one.key, one.a, one.b) for one in result.recipe])
    if result.samples:
        _samples(console, result, result.samples)
    if not result.equal:
        print_heading(console, "Size and speed")
        print_table(console, ["", "A", "B", "B / A"], rows_of.size_rows(result), right=_numbers(console, 4))
        _say(console, rows_of.SIZES_NOTE, "dim")
    _checks(console, result)
    for side in (result.a, result.b):
        if side.latent:
            hint(f"freetf probe-latent {shlex.quote(side.run)}")


def _head(console: Console, result: Comparison) -> None:
    text, mood = (rows_of.EQUAL, "good") if result.equal else rows_of.verdict(result)
    _say(console, text, MOODS[mood])
    console.print()
    facts: list[tuple[str, Cell]] = []
    for name, side, style in (("A", result.a, A_STYLE), ("B", result.b, B_STYLE)):
        facts += [(name, Text(visible(side.run), style=f"bold {style}")), ("", rows_of.side_text(side))]
    if result.facts:
        facts += [("data", f"{result.facts.name}, split {result.split}"), ("measured on", rows_of.measured_text(result))]
    print_facts(console, facts)


def _metrics(console: Console, result: Comparison) -> None:
    print_heading(console, f"Held-out cost, {rows_of.unit(result).name}")
    wide = page_width(console) >= WIDE
    kept = None if wide else -1  # what is seen can be told from the interval
    headers = ["", *rows_of.metric_headers(result)[1:kept], ""]
    bars = _bars(rows_of.metric_differences(result), 20 if wide else 6)
    rows: list[list[Cell]] = [[*row[:kept], one] for row, one in zip(rows_of.metric_rows(result), bars, strict=True)]
    print_table(console, headers, rows, right=_numbers(console, 5))
    for line in rows_of.reading(result):
        _say(console, line, "dim")


def _positions(console: Console, result: Comparison) -> None:
    rows, apart = rows_of.position_rows(result)
    if len(rows) < 2:
        return
    print_heading(console, "By position: CE + KL (a baseline: CE), bits/token")
    bars = _bars(apart, 20)
    cells: list[list[Cell]] = [[*row, one] for row, one in zip(rows, bars, strict=True)]
    print_table(console, ["positions", "A", "B", "B − A", ""], cells, right=_numbers(console, 4))


def _curves(console: Console, result: Comparison) -> None:
    assert result.facts is not None
    to = scale(result.facts)
    plot = line_plot(rows_of.curves(result, to), width=min(page_width(console), 110), floor=to.floor)
    if plot:
        print_heading(console, f"Training, held out, {to.unit}")
        console.print(plot)


def _latent(console: Console, result: Comparison) -> None:
    rows = rows_of.latent_rows(result)
    if rows:
        print_heading(console, "Use of Z")
        print_table(console, ["", "A", "B"], rows, right=_numbers(console, 3))


def _weights(console: Console, result: Comparison) -> None:
    assert result.weights is not None
    print_heading(console, "Weights: ‖B − A‖ / ‖A‖ (cosine)")
    print_facts(console, rows_of.weight_facts(result))
    relative = [one.all.relative for one in result.weights.groups]
    most = max((value for value in relative if value is not None and is_number(value)), default=0.0)
    width = 20 if page_width(console) >= WIDE else 10
    bars = [bar(fraction(value, most) if value is not None else None, width) for value in relative]
    rows = [[*row, one] for row, one in zip(rows_of.group_rows(result), bars, strict=True)]
    if rows:
        console.print()
        print_table(console, ["", "all", "attention", "ffn", ""], rows, right=_numbers(console, 4))


def _samples(console: Console, result: Comparison, samples: SamplePair) -> None:
    """Two columns where they fit, else one above the other."""
    print_heading(console, rows_of.samples_text(samples))
    beside = _beside([*samples.a, *samples.b], page_width(console))
    boxes = [
        _box(name, side, texts, samples.prompt, style, beside)
        for name, side, texts, style in (("A", result.a, samples.a, A_STYLE), ("B", result.b, samples.b, B_STYLE))
    ]
    if beside is None:
        for box in boxes:
            console.print(box)
        return
    line = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    line.add_row(*boxes)
    console.print(line)


def _beside(texts: Sequence[str], width: int) -> int | None:
    """The width of each of two boxes side by side; None where they do not fit. Running text that folds anyway may be narrower."""
    lines = (line for text in texts for line in text.split("\n"))
    longest = FRAME + max((cell_len(visible(line)) for line in lines), default=0)
    longest = max(longest, LEAST_TITLE)
    half = (width - 1) // 2
    if longest <= half:
        return longest
    return half if longest > width and half >= LEAST_BOX + FRAME else None


def _box(name: str, side: Side, texts: Sequence[str], prompt: str, style: str, width: int | None) -> Panel:
    apart = "\n" if all(map(is_letters, texts)) else "\n\n"  # running text has line ends of its own
    body = Text(apart).join(row_text(text, prompt) for text in texts)
    body.overflow = "fold"
    title = f"{name}: {box_title(shared=False, latent=side.kind == 'free')}"
    return Panel(body, title=Text(title, style=f"bold {style}"), title_align="left", border_style=style, expand=False, width=width)


def _checks(console: Console, result: Comparison) -> None:
    if not result.checks:
        return
    print_heading(console, "Checks: B relative to A")
    rows: list[list[Cell]] = [
        [Text("✓", "green") if one.holds else Text("✗", "bold red"), one.expression, rows_of.check_text(one)] for one in result.checks
    ]
    print_table(console, ["", "fails if", "found"], rows)


def _bars(values: Sequence[float | None], width: int) -> list[Text]:
    """Bars to the left (B lower) or to the right of a common zero; the longest fills its half of the width."""
    half = width // 2
    most = max((abs(value) for value in values if value is not None and is_number(value)), default=0.0)
    return [_signed_bar(fraction(abs(value), most) if value is not None else 0.0, value or 0.0, half) for value in values]


def _signed_bar(part: float, value: float, half: int) -> Text:
    filled = FULL * (round(part * half) if is_number(part) else 0)
    left, right = (filled, "") if value < 0 else ("", filled)
    return Text.assemble((left.rjust(half), "green"), ("│", "dim"), (right.ljust(half), "red"))


def _numbers(console: Console, columns: int) -> range:
    """Columns of numbers are never folded, so below 80 columns no column is one: a number in two lines beats half a number."""
    return range(1, columns if page_width(console) >= 80 else 1)


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(visible(text), style=style), overflow="fold")
