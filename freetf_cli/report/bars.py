"""Bars, columns and shades in the terminal. Every character has a look-alike for streams that carry ASCII only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.text import Text

from freetf_cli.report.plot import BARS
from freetf_cli.report.units import figure, is_number

SHADES = " ░▒▓█"
FULL, HALF, REST = "█", "▒", "░"


def bar(share: float | None, width: int = 12) -> str:
    """A share of one as a bar: filled, then the rest. Spaces where there is no number."""
    if share is None or not is_number(share):
        return " " * width
    filled = round(min(max(share, 0.0), 1.0) * width)
    return FULL * filled + REST * (width - filled)


def split_bar(sure: float, open_: float, rest: float, width: int = 30) -> str:
    """Three parts of a whole: what is sure, what may be either, the rest. Empty where nothing is known."""
    parts = [max(part, 0.0) if is_number(part) else 0.0 for part in (sure, open_, rest)]
    whole = sum(parts)
    if not whole > 0:
        return ""
    first = round(parts[0] / whole * width)
    second = round((parts[0] + parts[1]) / whole * width)
    return FULL * first + HALF * (second - first) + REST * (width - second)


def pooled(values: Sequence[float], most: int) -> list[float]:
    """At most `most` numbers: the means of neighbours, NaN where none of them is finite."""
    if len(values) <= most:
        return list(values)
    edges = [round(i * len(values) / most) for i in range(most + 1)]
    stretches = [[value for value in values[a:b] if is_number(value)] for a, b in itertools.pairwise(edges)]
    return [sum(stretch) / len(stretch) if stretch else float("nan") for stretch in stretches]


def column_chart(
    values: Sequence[float], *, width: int, name: str, height: int = 4, line: tuple[float, str] | None = None, style: str = "cyan"
) -> Text:
    """Upright bars from zero, one a value where they fit. line: a height to mark, and its label. Empty if there is nothing to draw.

    name: what the values are counted by, written under the axis.
    """
    finite = [value for value in values if is_number(value)]
    top = max(finite, default=0.0)
    # A line far above the bars would flatten them to nothing.
    if line and not (is_number(line[0]) and 0 < line[0] <= 3 * top):
        line = None
    top = max(top, line[0] if line else 0.0)
    tick = max(len(figure(top)), 4)
    room = width - tick - 3 - (len(line[1]) + 1 if line else 0)
    if top <= 0 or room < max(8, len(name) + 5):
        return Text()
    each = min(max(room // len(values), 1), 4)
    cells = pooled(values, room)
    chart = Text(no_wrap=True)
    marked = max(0, height - 1 - int(line[0] / top * height)) if line else -1
    for row in range(height):
        label = figure(top) if row == 0 else "0" if row == height - 1 else ""
        chart.append(f"{label:>{tick}} {'┤' if label else '│'}", style="dim")
        body = "".join(_cell(value, top, height - 1 - row, height, each, row == marked) for value in cells)
        chart.append(body, style=style)
        chart.append(f" {line[1]}" if line and row == marked else "", style="green")
        chart.append("\n")
    return chart.append_text(_axis(len(values), len(cells) * each, tick, name))


def _cell(value: float, top: float, row: int, height: int, each: int, marked: bool) -> str:
    """The part of one column that lies in one row (counted from below)."""
    blank = "┈" if marked else " "
    eighths = round((value / top * height - row) * 8) if is_number(value) else 0
    mark = BARS[min(eighths, 8) - 1] if eighths > 0 else blank
    return mark * max(each - 1, 1) + (blank if each > 1 else "")


def _axis(number: int, columns: int, indent: int, name: str) -> Text:
    axis = Text(" " * (indent + 1) + "└" + "─" * columns + "\n", style="dim", no_wrap=True)
    first, last = f"{name} 0", str(number - 1)
    between = columns - len(first) - len(last)
    return axis.append(" " * (indent + 2) + (first + " " * between + last if between > 0 else first), style="dim")


def shade_rows(shares: Sequence[Sequence[float]], *, width: int, most: int, top: float) -> list[tuple[int, str]]:
    """Rows of a heat map in shading characters with their numbers: at most `most`, evenly taken, each at most `width` characters."""
    step = max(len(shares) / most, 1.0)
    taken = [int(i * step) for i in range(min(len(shares), most))]
    return [(row, "".join(_shade(value, top) for value in pooled(shares[row], width))) for row in taken]


def _shade(value: float, top: float) -> str:
    return SHADES[min(max(round(value / top * 4), 0), 4)] if is_number(value) and top > 0 else " "
