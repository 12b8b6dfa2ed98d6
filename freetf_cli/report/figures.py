"""The figures of a probe as SVG, by hand like `svg.py`'s curves: bars, heat maps, dots with intervals, information by κ.

A page includes `CHART_CSS` and `FIGURES_CSS` once and then any number of them; `standalone` makes one a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from freetf_cli.records.likelihood import Estimate
from freetf_cli.records.probe import HeatMap
from freetf_cli.report.axes import FIGURES_CSS, Axes, label, limit, logarithm, nothing, picture, standalone, tick_text, y_room
from freetf_cli.report.estimates import interval, number
from freetf_cli.report.svg import ticks
from freetf_cli.report.units import is_number, share

__all__ = ["FIGURES_CSS", "Curve", "Dot", "bar_chart", "dot_interval_chart", "heat_map", "information_by_kappa", "standalone"]

LEVELS = 16  # of opacity in a heat map: one path each keeps a map of thousands of cells small
# In the order of a task's factors: the letters' position and noise have the colours that they have in its samples.
COLOURS = ("c-plain", "c-target", "c-noise", "c-kl", "c-length", "c-green")


@dataclass(frozen=True)
class Dot:
    """A measured value of one name, the most that it could be, and its control."""

    name: str
    estimate: Estimate
    ceiling: float
    control: Estimate | None = None


@dataclass(frozen=True)
class Curve:
    """One factor's information by κ, and its entropy."""

    name: str
    points: list[tuple[float, Estimate]]
    ceiling: float


def bar_chart(
    values: Sequence[float],
    *,
    title: str,
    x_label: str,
    y_label: str,
    line: tuple[float, str] | None = None,
    colour: str = "c-kl",
    width: int = 760,
    height: int = 240,
) -> str:
    """A bar a value, counted from 0 along the x axis. line: a height to mark, and its label."""
    finite = [value for value in values if is_number(value)]
    top = limit(finite, [line[0]] if line else [])
    if not finite or top <= 0:
        return nothing(title, width, height)
    axes = Axes(width, height, y_room(0, top, height), 30, 8, 40, (-0.5, len(values) - 0.5), (0.0, top))
    each = axes.across / len(values)
    gap = 0.18 * each if each > 3 else 0.0
    bars = []
    for index, value in enumerate(values):
        if is_number(value):
            y = axes.y(min(max(value, 0.0), top))
            place = f'x="{axes.x(index - 0.5) + gap / 2:.1f}" y="{y:.1f}" width="{each - gap:.2f}" height="{axes.floor - y:.1f}"'
            bars.append(f'<rect class="bar" {place}><title>{label(x_label)} {index}: {number(value, 3)} {label(y_label)}</title></rect>')
    marks = [(tick, tick_text(tick)) for tick in ticks(0, len(values) - 1, max(2, width // 90)) if tick == int(tick)]
    body = [axes.y_axis(y_label), f'<g class="{colour}">{"".join(bars)}</g>', axes.x_axis(x_label, marks)]
    if line and is_number(line[0]):
        body.append(_across(axes, *line))
    return picture(title, width, height, body)


def _across(axes: Axes, value: float, name: str) -> str:
    """A dashed line at a height, or its name alone at the top where it lies above the picture."""
    right, inside = axes.left + axes.across, value <= axes.ys[1]
    y = axes.y(value) if inside else float(axes.top)
    path = f'<path class="kappa" d="M{axes.left} {y:.1f}h{axes.across:g}"/>' if inside else ""
    text = label(name if inside else f"{name}, above the picture")
    return f'{path}<text class="kappa-label" x="{right:g}" y="{y - 5:.1f}" text-anchor="end">{text}</text>'


def heat_map(one: HeatMap, *, colour: str = "c-target", width: int = 480, height: int = 330) -> str:
    """Groups down, places across; the full colour is the largest share of all."""
    rows, columns = len(one.shares), max((len(row) for row in one.shares), default=0)
    top = max((value for row in one.shares for value in row if is_number(value)), default=0.0)
    if not columns or top <= 0:
        return nothing(one.title, width, height)
    axes = Axes(width, height, 44, 26, 8, 62, (0.0, float(columns)), (0.0, float(rows)))
    across, down = axes.across, axes.floor - axes.top
    inner = f'<svg x="{axes.left}" y="{axes.top}" width="{across:g}" height="{down:g}" viewBox="0 0 {columns} {rows}"'
    ground = f'<rect class="ground" x="{axes.left}" y="{axes.top}" width="{across:g}" height="{down:g}"/>'
    cells = f'{inner} preserveAspectRatio="none" class="{colour}">{_cells(one.shares, top)}</svg>'
    steps = [tick for tick in ticks(0, columns - 1, 5) if tick == int(tick)]
    middle = axes.top + down / 2
    names = [
        axes.x_axis("", [(tick + 0.5, tick_text(tick)) for tick in steps]),
        f'<text x="{axes.left + across / 2:g}" y="{axes.floor + 34:g}" text-anchor="middle">place</text>',
        *(f'<text x="{axes.left - 6}" y="{y:g}" text-anchor="end">{text}</text>' for y, text in ((axes.top + 11, 1), (axes.floor, rows))),
        f'<text x="11" y="{middle:g}" text-anchor="middle" transform="rotate(-90 11 {middle:g})">group, one Z each</text>',
    ]
    return picture(one.title, width, height, [ground, cells, *names, _scale(axes, top, colour)])


def _cells(shares: Sequence[Sequence[float]], top: float) -> str:
    """One path a level of opacity; neighbours of one level are one rectangle."""
    paths: dict[int, list[str]] = {}
    for row, values in enumerate(shares):
        levels = [round(max(value, 0.0) / top * LEVELS) if is_number(value) else 0 for value in values]
        start = 0
        while start < len(levels):
            end = next((i for i in range(start, len(levels)) if levels[i] != levels[start]), len(levels))
            if levels[start]:
                paths.setdefault(levels[start], []).append(f"M{start} {row}h{end - start}v1h-{end - start}z")
            start = end
    return "".join(f'<path class="heat" fill-opacity="{level / LEVELS:g}" d="{"".join(d)}"/>' for level, d in sorted(paths.items()))


def _scale(axes: Axes, top: float, colour: str) -> str:
    """From no colour to the full one, with what they stand for."""
    left, y = axes.left, axes.height - 12
    steps = "".join(
        f'<rect class="heat" x="{left + 30 + 12 * i}" y="{y - 9}" width="12" height="10" fill-opacity="{i / 8:g}"/>' for i in range(9)
    )
    words = f"{share(top, 0)} of a group's outputs"
    return f'<text x="{left}" y="{y}">0 %</text><g class="{colour}">{steps}</g><text x="{left + 146}" y="{y}">{words}</text>'


def dot_interval_chart(dots: Sequence[Dot], *, title: str, x_label: str, width: int = 760) -> str:
    """A line a name: its value with its interval, hollow its control, and a bar at the most that it could be."""
    shown = [dot for dot in dots if is_number(dot.estimate.value)]
    height = 60 + 50 * len(shown) + 26
    values = [value for dot in shown for one in (dot.estimate, dot.control) if one for value in (one.value, one.high)]
    end = limit(values, [dot.ceiling for dot in shown])
    if not shown or end <= 0:
        return nothing(title, width, 120)
    low = min([value for dot in shown for one in (dot.estimate, dot.control) if one for value in (one.low,) if is_number(value)] + [0.0])
    left = min(24 + 7 * max(len(dot.name) for dot in shown), width // 3)
    axes = Axes(width, height, left, 48, 12, 40, (min(low, 0.0) * 1.05, end), (0.0, 1.0))
    marks = ticks(0, end, max(2, width // 110))
    grid = "".join(f'<path class="grid" d="M{axes.x(tick):.1f} {axes.top}V{axes.floor}"/>' for tick in marks)
    lines = [_dot_line(axes, dot, axes.top + 50 * i + 30, COLOURS[i % len(COLOURS)]) for i, dot in enumerate(shown)]
    keys = '<text x="0" y="34">● estimate, 95 % interval   ○ shuffled   ┃ H, the most</text>'
    return picture(title, width, height, [keys, grid, *lines, axes.x_axis(x_label, [(tick, tick_text(tick)) for tick in marks])])


def _dot_line(axes: Axes, dot: Dot, y: float, colour: str) -> str:
    room = max(3, axes.left // 7 - 1)
    name = dot.name if len(dot.name) <= room else dot.name[: room - 2] + ".."
    parts = [f'<text class="key" x="0" y="{y + 4:g}">{label(name)}<title>{label(dot.name)}</title></text>']
    if is_number(dot.ceiling) and dot.ceiling <= axes.xs[1]:
        x = axes.x(dot.ceiling)
        side, anchored = (5, "start") if x < axes.left + 70 else (-5, "end")
        parts.append(f'<path class="limit" d="M{x:.1f} {y - 10:g}v20"/>')
        parts.append(f'<text class="limit-label" x="{x + side:.1f}" y="{y + 21:g}" text-anchor="{anchored}">H {number(dot.ceiling)}</text>')
    elif is_number(dot.ceiling):
        right = axes.left + axes.across
        parts.append(f'<text class="limit-label" x="{right:g}" y="{y + 4:g}" text-anchor="end">H {number(dot.ceiling)} →</text>')
    if dot.control and is_number(dot.control.value):
        parts.append(f'<g class="control">{_mark_across(axes, dot.control, y + 8, "shuffled")}</g>')
    parts.append(f'<g class="{colour}">{_mark_across(axes, dot.estimate, y, dot.name)}</g>')
    anchor = axes.x(dot.estimate.value)
    return "".join(parts) + f'<text class="key" x="{max(anchor - 14, axes.left):.1f}" y="{y - 10:g}">{number(dot.estimate.value)}</text>'


def _mark_across(axes: Axes, one: Estimate, y: float, name: str) -> str:
    bar = ""
    if is_number(one.low) and is_number(one.high):
        bar = f'<path class="whisker" d="M{axes.x(one.low):.1f} {y:g}H{axes.x(one.high):.1f}"/>'
    title = f"<title>{label(name)}: {interval(one)} bits</title>"
    return f'{bar}<circle class="mark" cx="{axes.x(one.value):.1f}" cy="{y:g}" r="4.5">{title}</circle>'


def information_by_kappa(curves: Sequence[Curve], *, title: str, width: int = 760, height: int = 340) -> str:
    """Bits of each factor against κ on a log axis, with intervals; dashed the entropies that the picture reaches."""
    drawn = [(curve, COLOURS[i % len(COLOURS)]) for i, curve in enumerate(curves)]
    points = [(kappa, one) for curve in curves for kappa, one in curve.points if is_number(kappa) and is_number(one.value)]
    top = limit([value for _, one in points for value in (one.value, one.high)], [curve.ceiling for curve in curves])
    if not points or top <= 0:
        return nothing(title, width, height)
    least = min((kappa for kappa, _ in points if kappa > 0), default=1.0)
    marks = sorted({(logarithm(kappa, least), f"{kappa:.3g}" if kappa > 0 else "0") for kappa, _ in points})
    low = min([one.low for _, one in points if is_number(one.low)] + [0.0])
    keys, bottom = _keys(drawn, top, width)
    xs = (marks[0][0] - 0.35, marks[-1][0] + 0.35)
    axes = Axes(width, height, y_room(low, top, height), bottom + 16, 8, 40, xs, (low, top))
    body = [keys, axes.y_axis("bits")]
    for curve, colour in drawn:
        if is_number(curve.ceiling) and 0 < curve.ceiling <= top:
            body.append(f'<g class="{colour}"><path class="ceiling" d="M{axes.left} {axes.y(curve.ceiling):.1f}h{axes.across:g}"/></g>')
        body.append(f'<g class="{colour}">{_kappa_curve(axes, curve, least)}</g>')
    room = max(1, math.ceil(len(marks) / max(2, width // 60)))
    return picture(title, width, height, [*body, axes.x_axis("κ, bits/token (log scale)", marks[::room])])


def _kappa_curve(axes: Axes, curve: Curve, least: float) -> str:
    points = sorted(((k, one) for k, one in curve.points if is_number(k) and is_number(one.value)), key=lambda point: point[0])
    places = [(axes.x(logarithm(kappa, least)), axes.y(one.value)) for kappa, one in points]
    parts = [f'<path class="line" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>'] if len(places) > 1 else []
    for (x, y), (kappa, one) in zip(places, points, strict=True):
        if is_number(one.low) and is_number(one.high):
            parts.append(f'<path class="whisker" d="M{x:.1f} {axes.y(one.low):.1f}V{axes.y(one.high):.1f}"/>')
        title = f"{label(curve.name)} at κ {kappa:.4g}: {interval(one)} bits"
        parts.append(f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3.6"><title>{title}</title></circle>')
    return "".join(parts)


def _keys(drawn: Sequence[tuple[Curve, str]], top: float, width: int) -> tuple[str, int]:
    """The legend in as many lines as it needs, and where it ends."""
    x, y, parts = 0, 34, []
    for curve, colour in drawn:
        above = ", above the picture" if is_number(curve.ceiling) and curve.ceiling > top else ""
        name = f"{curve.name}, H {number(curve.ceiling)}{above}"
        needed = 40 + 7 * len(name)
        if x and x + needed > width:
            x, y = 0, y + 18
        parts.append(f'<g class="{colour}"><path class="line" d="M{x} {y - 4}h18"/></g>')
        parts.append(f'<text class="key" x="{x + 24}" y="{y}">{label(name)}</text>')
        x += needed
    return "".join(parts), y
