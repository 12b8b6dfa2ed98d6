"""Curves in the terminal: a sparkline, and a line plot in braille dots with its labels beside the curves' ends."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from freetf_cli.report.console import visible
from freetf_cli.report.series import Series, y_limit
from freetf_cli.report.units import count, figure, is_number

BARS = "▁▂▃▄▅▆▇█"
STYLES = {"ce": "magenta", "kl": "cyan", "length": "yellow", "ce-train": "dim magenta", "kl-train": "dim cyan", "floor": "green"}

# Bit of each braille dot, by its row and column in the character's 4 × 2 grid.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The values as bars, at most `width` of them; a gap where a value is not finite."""
    shown = [values[int(i * len(values) / width)] for i in range(width - 1)] + [values[-1]] if len(values) > width > 1 else list(values)
    finite = [value for value in shown if is_number(value)]
    if not finite:
        return ""
    low, span = min(finite), max(finite) - min(finite)
    return "".join(BARS[round((value - low) / span * 7) if span else 3] if is_number(value) else " " for value in shown)


def line_plot(series: Sequence[Series], *, width: int, height: int = 12, floor: float | None = None) -> Text:
    """A plot from 0 to `y_limit`, at most `width` columns wide. Empty if there is nothing to draw."""
    top = y_limit(series, floor)
    if top is None or top <= 0:
        return Text()
    labels = _labels(series, floor, top, height)
    tick_width = max(len(figure(top, 1)), 4)
    columns = width - tick_width - 3 - max((len(name) for name, _ in labels.values()), default=0)
    if columns < 10:
        return Text()
    canvas = _Canvas(columns, height, top, _x_range(series))
    if floor is not None:
        canvas.dashes(floor)
    for one in series:
        canvas.curve(one)
    return _assemble(canvas, labels, tick_width)


class _Canvas:
    """Braille dots, and for each character the style of what was drawn there last."""

    def __init__(self, columns: int, rows: int, top: float, x_range: tuple[float, float]) -> None:
        self.columns, self.rows, self.top, self.x_range = columns, rows, top, x_range
        self.dots = [[0] * columns for _ in range(rows)]
        self.styles = [[""] * columns for _ in range(rows)]

    def curve(self, one: Series) -> None:
        style = STYLES.get(one.colour_class, "")
        previous: tuple[int, int] | None = None
        for x, y in zip(one.xs, one.ys, strict=True):
            if not (is_number(x) and is_number(y)):
                previous = None
                continue
            place = self._place(x, y)
            for dot in _between(previous or place, place):
                self._dot(*dot, style)
            previous = place

    def dashes(self, y: float) -> None:
        _, row = self._place(self.x_range[0], y)
        for column in range(0, 2 * self.columns, 3):
            self._dot(column, row, STYLES["floor"])

    def _place(self, x: float, y: float) -> tuple[int, int]:
        first, last = self.x_range
        across = (x - first) / (last - first) if last > first else 1.0
        return round(across * (2 * self.columns - 1)), round((1 - y / self.top) * (4 * self.rows - 1))

    def _dot(self, column: int, row: int, style: str) -> None:
        if 0 <= row < 4 * self.rows:
            self.dots[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
            self.styles[row // 4][column // 2] = style


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of a straight line."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (round(start[0] + (end[0] - start[0]) * i / steps), round(start[1] + (end[1] - start[1]) * i / steps)) for i in range(steps + 1)
    ]


def _x_range(series: Sequence[Series]) -> tuple[float, float]:
    xs = [x for one in series for x, _ in one.points()]
    return min(xs), max(xs)


def _labels(series: Sequence[Series], floor: float | None, top: float, height: int) -> dict[int, tuple[str, str]]:
    """Text and style by row: each at the height where its curve ends, or on the nearest free row."""
    wanted = [(one.points()[-1][1], one.name, STYLES.get(one.colour_class, "")) for one in series if one.points()]
    wanted = [(y, f"{visible(name)} {figure(y)}", style) for y, name, style in wanted]
    if floor is not None:
        wanted.append((floor, f"floor {figure(floor)}", STYLES["floor"]))
    labels: dict[int, tuple[str, str]] = {}
    for y, text, style in sorted(wanted, reverse=True):
        row = min(max(round((1 - y / top) * height - 0.5), 0), height - 1)
        free = [place for place in range(height) if place not in labels]
        if free:
            labels[min(free, key=lambda place: (abs(place - row), -place))] = (text, style)
    return labels


def _assemble(canvas: _Canvas, labels: dict[int, tuple[str, str]], tick_width: int) -> Text:
    plot = Text(no_wrap=True)
    for row in range(canvas.rows):
        tick = {0: figure(canvas.top, 1), canvas.rows - 1: "0"}.get(row, "")
        plot.append(f"{tick:>{tick_width}} {'┤' if tick else '│'}", style="dim")
        for dots, style in zip(canvas.dots[row], canvas.styles[row], strict=True):
            plot.append(chr(0x2800 + dots), style=style)
        plot.append(" ")
        plot.append(*labels.get(row, ("", "")))
        plot.append("\n")
    first, last = (count(x) for x in canvas.x_range)
    plot.append(" " * (tick_width + 1) + "└" + "─" * canvas.columns + "\n", style="dim")
    plot.append(" " * (tick_width + 2) + first + f"step {last}".rjust(canvas.columns - len(first)), style="dim")
    return plot
