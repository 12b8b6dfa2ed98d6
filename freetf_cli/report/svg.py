"""Line charts as SVG, written by hand: they scale, print, follow light and dark, and need no script.

Colours come from CSS classes (`CHART_CSS`), so a page includes that once and then any number of charts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from freetf_cli.report.console import visible
from freetf_cli.report.series import Series, y_limit
from freetf_cli.report.units import count, figure

MAX_POINTS = 600  # of one curve as drawn: finer than a screen shows
MAX_HOVERS = 80  # of one curve, that tell their values

CHART_CSS = """
.chart { display: block; width: 100%; height: auto; font-size: 12px; overflow: visible }
.chart text { fill: var(--soft); font-family: var(--sans); font-variant-numeric: tabular-nums }
.chart .title { fill: var(--ink); font-weight: 600; font-size: 13px }
.chart .grid { stroke: var(--rule); stroke-width: 1 }
.chart .axis { stroke: var(--soft); stroke-width: 1 }
.chart .floor { stroke: var(--floor); stroke-width: 1.5; stroke-dasharray: 5 4 }
.chart .floor-label { fill: var(--floor) }
.chart .line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round }
.chart .dot { fill: currentColor }
.chart .hit { fill: currentColor; fill-opacity: 0 }
.chart .hit:hover { fill-opacity: 1 }
.chart .key { fill: var(--ink) }
.chart .c-ce { color: var(--ce) } .chart .c-kl { color: var(--kl) } .chart .c-length { color: var(--length) }
.chart .c-ce-train { color: var(--ce); opacity: .38 } .chart .c-kl-train { color: var(--kl); opacity: .38 }
.chart .c-plain { color: var(--plain) }
"""

Point = tuple[float, float]


@dataclass(frozen=True)
class _Frame:
    """Where the plot lies in the picture, and what it spans."""

    width: int
    height: int
    left: int
    top: int
    xs: Point
    ys: Point

    @property
    def inner(self) -> tuple[int, int]:
        return self.width - self.left - 20, self.height - self.top - 40

    def x(self, value: float) -> float:
        """In the coordinates of the plot, whose corner is (left, top)."""
        return (value - self.xs[0]) / (self.xs[1] - self.xs[0]) * self.inner[0]

    def y(self, value: float) -> float:
        return (self.ys[1] - value) / (self.ys[1] - self.ys[0]) * self.inner[1]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    floor: tuple[float, str] | None = None,
    width: int = 760,
    height: int = 320,
) -> str:
    """One SVG element. Curves leave the picture at the top where a run's first steps would flatten the rest.

    floor: a dashed line's height and its label. With no finite point the picture says so.
    """
    drawn = [one for one in series if one.points()]
    name = escape(visible(title))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">'
    caption = f'<text class="title" x="0" y="13">{name}</text>'
    if not drawn:
        return f'{head}{caption}<text x="{width / 2:g}" y="{height / 2:g}" text-anchor="middle">no values yet</text></svg>'
    keys, key_bottom = _keys(drawn, width)
    frame = _frame(drawn, floor, width, height, key_bottom + 14)
    body = [
        caption,
        keys,
        _grid(frame, x_label, y_label),
        f'<svg x="{frame.left}" y="{frame.top}" width="{frame.inner[0]}" height="{frame.inner[1]}">',
    ]
    if floor:
        body.append(_floor(frame, *floor))
    body += [_curve(frame, one, x_label) for one in drawn]
    return head + "".join(body) + "</svg></svg>"


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers between low and high, about `wanted` of them."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= wanted)
    return [round(number * step, 12) for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points, extremes kept: each stretch gives its lowest and its highest."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(len(points) / (most // 2))
    kept: list[Point] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        low, high = min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])
        kept += sorted({low, high})
    return kept


def _frame(series: Sequence[Series], floor: tuple[float, str] | None, width: int, height: int, top: int) -> _Frame:
    points = [point for one in series for point in one.points()]
    xs = (min(x for x, _ in points), max(x for x, _ in points))
    high = y_limit(series, floor[0] if floor else None) or 0.0
    low = min(0.0, 1.08 * min(y for _, y in points))
    if xs[0] == xs[1]:
        xs = (xs[0] - 1, xs[1] + 1)
    if high <= low:
        high = low + 1.0
    widest = max(len(_tick_text(tick)) for tick in ticks(low, high, _y_ticks(height)))
    return _Frame(width, height, 26 + 7 * widest, top, xs, (low, high))


def _y_ticks(height: int) -> int:
    return max(2, height // 55)


def _tick_text(value: float) -> str:
    if value and abs(value) < 0.01:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.10g}"


def _grid(frame: _Frame, x_label: str, y_label: str) -> str:
    across, down = frame.inner
    left, top, bottom = frame.left, frame.top, frame.top + down
    parts = []
    for tick in ticks(*frame.ys, _y_ticks(frame.height)):
        y = top + frame.y(tick)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}h{across}"/>')
        parts.append(f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{_tick_text(tick)}</text>')
    for tick in ticks(*frame.xs, max(2, frame.width // 110)):
        x = left + frame.x(tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_tick_text(tick)}</text>')
    parts.append(f'<path class="axis" d="M{left} {bottom}h{across}"/>')
    parts.append(f'<text x="{left + across / 2:g}" y="{frame.height - 4}" text-anchor="middle">{escape(x_label)}</text>')
    middle = top + down / 2
    parts.append(f'<text x="11" y="{middle:g}" text-anchor="middle" transform="rotate(-90 11 {middle:g})">{escape(y_label)}</text>')
    return "".join(parts)


def _keys(series: Sequence[Series], width: int) -> tuple[str, int]:
    """The legend under the title, in as many lines as it needs, and where it ends. A single curve needs none."""
    if len(series) < 2:
        return "", 18
    x, y, parts = 0, 34, []
    for one in series:
        needed = 26 + 7 * len(one.name) + 14
        if x and x + needed > width:
            x, y = 0, y + 18
        parts.append(f'<g class="c-{escape(one.colour_class)}"><path class="line" d="M{x} {y - 4}h18"/></g>')
        parts.append(f'<text class="key" x="{x + 24}" y="{y}">{escape(visible(one.name))}</text>')
        x += needed
    return "".join(parts), y


def _floor(frame: _Frame, value: float, label: str) -> str:
    y, across = frame.y(value), frame.inner[0]
    text = f'<text class="floor-label" x="{across - 4}" y="{y - 5:.1f}" text-anchor="end">{escape(visible(label))}</text>'
    return f'<path class="floor" d="M0 {y:.1f}h{across}"/>{text}'


def _curve(frame: _Frame, one: Series, x_label: str) -> str:
    parts = []
    for piece in _pieces(one):
        places = [f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in thinned(piece, MAX_POINTS)]
        if len(places) > 1:
            parts.append(f'<path class="line" d="M{"L".join(places)}"/>')
        else:
            parts.append('<circle class="dot" cx="{}" cy="{}" r="3"/>'.format(*places[0].split()))
    points = one.points()
    step = math.ceil(len(points) / MAX_HOVERS)
    parts += [_hover(frame, one.name, point, x_label) for point in points[:: -step or 1][::-1]]
    return f'<g class="c-{escape(one.colour_class)}">{"".join(parts)}</g>'


def _pieces(one: Series) -> list[list[Point]]:
    """The curve between its gaps."""
    pieces: list[list[Point]] = [[]]
    for x, y in zip(one.xs, one.ys, strict=True):
        if math.isfinite(x) and math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _hover(frame: _Frame, name: str, point: Point, x_label: str) -> str:
    x, y = point
    if y > frame.ys[1]:
        return ""
    text = f"{escape(visible(name))}: {figure(y, 2 if abs(y) >= 0.1 else 6)} at {escape(x_label)} {count(x)}"
    return f'<circle class="hit" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="5"><title>{text}</title></circle>'
