"""What the figures have in common: the plot's place in the picture, ticks, labels, and an SVG file that stands alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from freetf_cli.report.console import visible
from freetf_cli.report.style import PAGE_CSS
from freetf_cli.report.svg import CHART_CSS, ticks
from freetf_cli.report.units import is_number

FIGURES_CSS = """
.chart .bar { fill: currentColor; fill-opacity: .82 }
.chart .bar:hover, .chart .mark:hover { fill-opacity: 1 }
.chart .kappa { stroke: var(--length); stroke-width: 1.5; stroke-dasharray: 5 4 }
.chart .kappa-label { fill: var(--length) }
.chart .whisker { fill: none; stroke: currentColor; stroke-width: 2; stroke-linecap: round }
.chart .mark { fill: currentColor }
.chart .control { color: var(--soft) }
.chart .control .mark { fill: var(--page); stroke: currentColor; stroke-width: 1.5 }
.chart .ceiling { fill: none; stroke: currentColor; stroke-width: 1.5; stroke-dasharray: 4 3 }
.chart .limit { stroke: var(--floor); stroke-width: 3 }
.chart .limit-label { fill: var(--floor) }
.chart .ground { fill: var(--panel); stroke: var(--rule) }
.chart .heat { fill: currentColor; shape-rendering: crispEdges }
.chart .c-target { color: var(--target) } .chart .c-noise { color: var(--noise) } .chart .c-blue { color: var(--blue) }
.chart .c-green { color: var(--green) }
"""
# Only the colours: the page's other rules would reach into a picture that stands alone.
_COLOURS = PAGE_CSS[: PAGE_CSS.index("* {")]


MARGIN = 12  # around a figure that stands alone


def standalone(svg: str) -> str:
    """A figure as a file of its own, with its colours for light and dark. Its margin is in the viewBox: padding would cut off as much of an
    SVG that a page shows as an image."""
    head, body = svg.split(">", 1)
    x, y, width, height = (float(number) for number in head.split('viewBox="')[1].split('"')[0].split())
    box = f"{x - MARGIN:g} {y - MARGIN:g} {width + 2 * MARGIN:g} {height + 2 * MARGIN:g}"
    head = re.sub(r'viewBox="[^"]*"', f'viewBox="{box}"', head)
    style = f"{_COLOURS}{CHART_CSS}{FIGURES_CSS}svg.chart {{ background: var(--page) }}"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}><style>{style}</style>{body}\n'


def label(value: str) -> str:
    """Text from outside, as text in a picture."""
    return escape(visible(value))


def picture(title: str, width: int, height: int, body: Sequence[str]) -> str:
    """An SVG element with its title."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label(title)}">'
    return f'{head}<text class="title" x="0" y="13">{label(title)}</text>{"".join(body)}</svg>'


def nothing(title: str, width: int, height: int) -> str:
    return picture(title, width, height, [f'<text x="{width / 2:g}" y="{height / 2:g}" text-anchor="middle">no values</text>'])


def limit(values: Sequence[float], ceilings: Sequence[float]) -> float:
    """The end of an axis from zero: all values, and the ceilings that do not squeeze them into half of it. 0: no values."""
    finite = [value for value in values if is_number(value)]
    top = max(finite, default=0.0)
    if not finite:
        return 0.0
    near = [value for value in ceilings if is_number(value) and value <= 2 * top]
    return 1.06 * max(top, *near, 1e-9) if near else 1.06 * max(top, 1e-9)


def tick_text(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-") if value and abs(value) < 0.001 else f"{value:,.10g}"


@dataclass(frozen=True)
class Axes:
    """A plot with both axes from a low to a high value; `x` and `y` give places in the picture."""

    width: int
    height: int
    left: int
    top: int
    right: int
    bottom: int
    xs: tuple[float, float]
    ys: tuple[float, float]

    @property
    def across(self) -> float:
        return self.width - self.left - self.right

    @property
    def floor(self) -> float:
        return self.height - self.bottom

    def x(self, value: float) -> float:
        return self.left + (value - self.xs[0]) / (self.xs[1] - self.xs[0]) * self.across

    def y(self, value: float) -> float:
        return self.floor - (value - self.ys[0]) / (self.ys[1] - self.ys[0]) * (self.floor - self.top)

    def y_axis(self, name: str) -> str:
        parts = []
        for tick in ticks(*self.ys, max(2, self.height // 60)):
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{self.left} {y:.1f}h{self.across:g}"/>')
            parts.append(f'<text x="{self.left - 7}" y="{y + 4:.1f}" text-anchor="end">{tick_text(tick)}</text>')
        middle = (self.top + self.floor) / 2
        parts.append(f'<text x="11" y="{middle:g}" text-anchor="middle" transform="rotate(-90 11 {middle:g})">{label(name)}</text>')
        return "".join(parts)

    def x_axis(self, name: str, marks: Sequence[tuple[float, str]]) -> str:
        """The line along the bottom, with a label at each mark."""
        parts = [f'<path class="axis" d="M{self.left} {self.floor:g}h{self.across:g}"/>']
        for value, text in marks:
            x = self.x(value)
            parts.append(f'<path class="axis" d="M{x:.1f} {self.floor:g}v4"/>')
            parts.append(f'<text x="{x:.1f}" y="{self.floor + 18:g}" text-anchor="middle">{label(text)}</text>')
        middle = self.left + self.across / 2
        return "".join(parts) + f'<text x="{middle:g}" y="{self.height - 4}" text-anchor="middle">{label(name)}</text>'


def y_room(low: float, high: float, height: int) -> int:
    """The left margin that the y axis' numbers need."""
    return 26 + 7 * max((len(tick_text(tick)) for tick in ticks(low, high, max(2, height // 60))), default=1)


def logarithm(kappa: float, least: float) -> float:
    """log2 of κ; zero, which has none, one doubling left of the least."""
    return math.log2(kappa) if kappa > 0 else math.log2(least) - 1
