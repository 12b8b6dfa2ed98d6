"""Draws chart blocks as SVG with matplotlib. The same block always gives the same bytes.

Colours are CSS variables of page.css, so that a picture follows the reader's light or dark setting. Text stays text; nothing is fetched.
Sizes are in CSS pixels.
"""

from __future__ import annotations

import html
import io
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from freetf_cli.report.blocks import Chart, HeatMap, Interval, Intervals, Reference, Series
from freetf_cli.report.console import visible
from freetf_cli.report.style import sheet
from freetf_cli.report.units import is_number, number, share, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.path import Path

WIDE, NARROW, SMALL, MAP = 960, 380, 340, 480  # widths: of a page, of a phone, of one chart of a row, of a heat map
PIXEL = 0.75  # points
ROLES = ("plain", "ce", "kl", "nelbo", "floor", "target", "noise", "blue", "green", "a", "b", "ink", "soft", "rule", "panel", "page")
COLOURS = {name: f"#0102{order:02x}" for order, name in enumerate(ROLES)}  # placeholders: matplotlib knows no CSS variables
HOVERS = 40  # points of a curve that have a tooltip
LEVELS = 16  # of opacity in a heat map
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "figure.dpi": 72,
    "axes.facecolor": "none",
    "axes.grid.axis": "y",
    "grid.color": COLOURS["rule"],
    "text.color": COLOURS["ink"],
    "lines.linewidth": 1.4,
    "legend.handlelength": 1.5,
    "xtick.major.size": 3,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), COLOURS["soft"]),
    **dict.fromkeys(("axes.spines.left", "axes.spines.top", "axes.spines.right", "legend.frameon", "text.parse_math"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("legend.borderpad", "legend.borderaxespad", "ytick.major.size"), 0),
    **dict.fromkeys(("font.size", "axes.labelsize"), 9),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.75),
}


def svg(block: Chart | Intervals | HeatMap, width: int = WIDE) -> str:
    """A chart as one SVG element, drawn for a place `width` wide."""
    draw: Any = _chart if isinstance(block, Chart) else _intervals if isinstance(block, Intervals) else _heat_map
    with drawing(block.title, width) as made:
        draw(made, block)
    return made.svg


def standalone(picture: str) -> str:
    """A picture as a file of its own: with its colours for light and dark, and a margin."""
    width, height = (float(part) for part in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture)[0])
    picture = re.sub(r'viewBox="[^"]+"', f'viewBox="-12 -12 {width + 24:g} {height + 24:g}"', picture, count=1)
    return picture.replace(">", f"><style>{sheet('colours')}svg.chart {{ background: var(--page) }}</style>", 1) + "\n"


class Drawing:
    """A matplotlib figure, its size and its tooltips. `svg` is set when `drawing` ends."""

    def __init__(self, title: str, width: int) -> None:
        from matplotlib.figure import Figure

        self.title, self.width, self.height = visible(title), width, 120
        self.figure, self.svg, self.tips = Figure(), "", list[str]()

    def resize(self, height: int) -> None:
        self.height = height
        self.figure.set_size_inches(self.width * PIXEL / 72, height * PIXEL / 72)
        self.figure.text(0, 1, self.title, fontsize=9.75, fontweight="bold", va="top")

    def axes(self, left: float, top: float, right: float, bottom: float) -> Axes:
        """Axes at distances from the edges of the figure."""
        across, down = self.width - left - right, self.height - top - bottom
        return self.figure.add_axes((left / self.width, bottom / self.height, across / self.width, down / self.height))

    def tip(self, text: str) -> str | None:
        """The id for an artist with this tooltip; None on a phone, which has no pointer."""
        if self.width == NARROW:
            return None
        self.tips.append(html.escape(text))
        return f"tip{len(self.tips) - 1}"

    def note(self, text: str, y: float, x: float = 0) -> None:
        self.figure.text(x, 1 - y / self.height, text, va="top", color=COLOURS["soft"])

    def legend(self, handles: Sequence[Any], names: Sequence[str]) -> None:
        """Name the curves below the title."""
        self.figure.legend(
            handles, names, ncols=legend_columns(names, self.width), loc="upper left", bbox_to_anchor=(0, 1 - 22 / self.height)
        )


def legend_columns(names: Sequence[str], width: int) -> int:
    """How many entries of a legend fit side by side."""
    return max(1, min(len(names), width // (48 + 7 * max(map(len, names)))))


@contextmanager
def drawing(title: str, width: int) -> Iterator[Drawing]:
    """A figure to draw on; its `svg` is set afterwards."""
    import matplotlib as mpl

    with mpl.rc_context({**STYLE, "svg.hashsalt": f"{visible(title)} {width}"}):  # type: ignore[dict-item]
        made = Drawing(title, width)
        yield made
        stream = io.StringIO()
        no_date = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        made.figure.savefig(stream, format="svg", facecolor="none", metadata=no_date)
    made.svg = _cleaned(stream.getvalue(), made)


def _cleaned(text: str, made: Drawing) -> str:
    """The SVG element alone, with CSS variables for colours and fonts, with tooltips, without unused ids."""
    body = text[text.index(">", text.index("<svg ")) + 1 :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body.replace("'DejaVu Sans'", "var(--sans)").replace("xlink:href", "href"))
    body = re.sub("|".join(COLOURS.values()), lambda match: f"var(--{ROLES[int(match[0][-2:], 16)]})", body)
    body = re.sub(r'<g id="tip(\d+)">', lambda match: f'<g class="tip"><title>{made.tips[int(match[1])]}</title>', body)
    used = set(re.findall(r"#(\w+)", body))
    body = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", body)
    body = re.sub(r"<[^>]*>", lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), re.sub(r"\s*\n\s*", "\n", body)).strip()
    size = f'viewBox="0 0 {made.width * PIXEL:g} {made.height * PIXEL:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {size} role="img" aria-label="{html.escape(made.title)}">{body}'


def _nothing(made: Drawing) -> None:
    made.resize(120)
    made.note("no values", 60, 0.45)


def _chart(made: Drawing, chart: Chart) -> None:
    series = [one for one in chart.series if _points(one)]
    if not series:
        _nothing(made)
        return
    top, low = _top(chart, series), min(0.0, *(1.08 * y for one in series for y in (*one.y, *one.low) if is_number(y)))
    names = [_legend_name(one, top) for one in series]
    has_legend = len(series) > 1 or series[0].limit is not None
    above = 30 + (20 * math.ceil(len(names) / legend_columns(names, made.width)) if has_legend else 0)
    made.resize(above + 46 + (120 if chart.small else 170 if chart.kind == "bars" else 290 if made.width > NARROW else 220))
    axes = made.axes(50, above, 22, 46)
    axes.set(ylim=(low, top if top > low else low + 1), xlabel=visible(chart.x_label), ylabel=visible(chart.y_label))
    xs = sorted({x for one in series for x, _ in _points(one)})
    least = next((x for x in xs if x > 0), 1.0)
    handles = [_draw(made, axes, chart, one, least) for one in series]
    locate(axes.yaxis, 3 if chart.small else 5)
    _x_axis(axes, chart, xs, least, made.width)
    for line in chart.references:
        _reference(axes, line)
    if has_legend:
        made.legend(handles, names)


def _points(series: Series) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(series.x, series.y, strict=True) if is_number(x) and is_number(y)]


def _top(chart: Chart, series: Sequence[Series]) -> float:
    """The upper end of the y axis. References and limits count if they leave the curves at least half of the height.

    The first steps of a run cost ten times what the last ones do: a curve may leave the picture at the top during its first tenth.
    """
    points = [point for one in series for point in _points(one)]
    highest = max([y for _, y in points] + [high for one in series for high in one.high if is_number(high)])
    begin = 0.9 * min(x for x, _ in points) + 0.1 * max(x for x, _ in points)
    later = max(y for x, y in points if x >= begin)
    top = later if chart.kind == "lines" and not chart.log and highest > 1.3 * later > 0 else highest
    limits = [*(line.value for line in chart.references), *(one.limit for one in series if one.limit is not None)]
    return 1.08 * max(top, *(limit for limit in limits if limit <= 2 * top), 1e-9)


def _legend_name(series: Series, top: float) -> str:
    if series.limit is None or not is_number(series.limit):
        return visible(series.name)
    return f"{visible(series.name)}, H {number(series.limit)}{', above the picture' if series.limit > top else ''}"


def _draw(made: Drawing, axes: Axes, chart: Chart, series: Series, least: float) -> Any:
    """Draw one series; returns the artist that its legend entry shows."""
    colour, points, hovers = COLOURS[series.role], _points(series), HOVERS // 2 if chart.small or series.faint else HOVERS
    if chart.kind == "bars":
        if series.low:
            axes.vlines(series.x, series.low, series.high, color=COLOURS["ink"], lw=1, zorder=3)
        if len(points) > 200:  # bars without gaps, as one shape
            return axes.stairs(series.y, [*series.x, len(series.x)], fill=True, color=colour)
        for x, y in points:
            tip = made.tip(f"{visible(chart.x_label)} {x:g}: {number(y, 3)} {visible(chart.y_label)}")
            axes.bar(x, y, width=0.82, color=colour, gid=tip, linewidth=0)
        return None
    at = [logarithm(x, least) if chart.log and is_number(x) else x for x in series.x]
    dots = {"marker": "o", "ms": 5, "mec": "none"} if chart.log or len(points) == 1 else {}
    (line,) = axes.plot(at, series.y, color=colour, alpha=0.4 if series.faint else 1, **dots)  # type: ignore[arg-type]
    for x, low, high in zip(at, series.low, series.high, strict=False):
        axes.plot([x, x], [low, high], color=colour, lw=1.6)
    if series.limit is not None and 0 < series.limit <= axes.get_ylim()[1]:
        axes.axhline(series.limit, color=colour, lw=1.2, ls=(0, (4, 3)))
    for x, y in points[:: -math.ceil(len(points) / hovers)] if made.width != NARROW else ():
        tip = made.tip(f"{visible(series.name)}: {number(y, 2 if abs(y) >= 0.1 else 6)} at {visible(chart.x_label)} {x:,.10g}")
        place = logarithm(x, least) if chart.log else x
        axes.plot(place, y, "o", ms=6, gid=tip, alpha=0.01, color=COLOURS["ink"], mec="none", zorder=5)  # shown under the pointer
    return line


def logarithm(x: float, least: float) -> float:
    """log2 of x; zero is placed one doubling left of the least positive x."""
    return math.log2(x) if x > 0 else math.log2(least) - 1


def locate(axis: Any, most: int, **options: Any) -> None:
    """Put at most `most` ticks on an axis, at round numbers: `4,000`, `0.05`, `1e-4`."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def text(value: float, _: object) -> str:
        return f"{value:.0e}".replace("e-0", "e-") if value and abs(value) < 0.01 else f"{round(value, 12):,.10g}"

    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10], **options))
    axis.set_major_formatter(FuncFormatter(text))


def _x_axis(axes: Axes, chart: Chart, xs: Sequence[float], least: float, width: int) -> None:
    if chart.log:
        shown = xs[:: max(1, math.ceil(len(xs) / max(2, width // 60)))]
        axes.set_xticks([logarithm(x, least) for x in shown], [f"{x:.3g}" for x in shown])
        axes.set_xlim(logarithm(xs[0], least) - 0.35, logarithm(xs[-1], least) + 0.35)
        return
    beside = 0.6 if chart.kind == "bars" else 0.0 if len(xs) > 1 else 1.0
    axes.set_xlim(xs[0] - beside, xs[-1] + beside)
    locate(axes.xaxis, max(2, width // 120), integer=True)


def _reference(axes: Axes, line: Reference) -> None:
    """A dashed line with its label, or the label alone at the top where the line lies above the picture."""
    if not is_number(line.value):
        return
    top, label, colour = axes.get_ylim()[1], visible(line.label), COLOURS[line.role]
    if line.value <= top:
        axes.axhline(line.value, color=colour, lw=1.2, ls=(0, (5, 4)))
    else:
        label += ", above the picture"
    place = (0.995, min(line.value, top))
    axes.annotate(label, place, (0, 2), axes.get_yaxis_transform(), "offset points", color=colour, ha="right", va="bottom")


def _intervals(made: Drawing, block: Intervals) -> None:
    rows = [row for row in block.rows if is_number(row.value)]
    ends = [0.0, *(end for row in rows for end in (row.value, row.low, row.high, *(row.control or ())) if is_number(end))]
    low, high = min(ends), max(ends)
    high = max([high, *(row.limit for row in rows if row.limit is not None and row.limit <= 2 * high)])
    if high <= low:
        _nothing(made)
        return
    room = min(24 + 7 * max(len(row.name) for row in rows), made.width // 3)
    above, each = 52 if block.key else 30, 46 if any(row.control for row in rows) else 30
    made.resize(above + each * len(rows) + 28)
    axes = made.axes(room, above, 20, 28)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.set(xlim=(low - 0.04 * (high - low), high + 0.06 * (high - low)), ylim=(len(rows) - 0.35, -0.65))
    most = max(3, room // 7 - 1)
    names = [name if len(name) <= most else f"{name[: most - 2]}.." for name in (visible(row.name) for row in rows)]
    axes.set_yticks(range(len(rows)), names, ha="left", color=COLOURS["ink"])
    axes.tick_params("y", pad=room * PIXEL)
    locate(axes.xaxis, max(2, made.width // 130))
    axes.axvline(0, color=COLOURS["soft"], lw=0.75)
    made.note(visible(block.key), 22)
    for y, row in enumerate(rows):
        _interval(made, axes, row, y)


def _interval(made: Drawing, axes: Axes, row: Interval, y: int) -> None:
    name, estimate = visible(row.name), (row.value, row.low, row.high)
    colour, soft, page, green = (COLOURS[role] for role in (row.role, "soft", "page", "floor"))
    for place, one, title, edge, face in ((y + 0.24, row.control, f"{name}, control", soft, page), (y, estimate, name, colour, colour)):
        if one is not None and is_number(one[0]):
            axes.plot(one[1:], [place] * 2, color=edge, lw=1.8)
            axes.plot(one[0], place, "o", ms=6, mec=edge, mfc=face, gid=made.tip(f"{title}: {number(one[0])} {span(*one[1:])}".rstrip()))
    if row.control is not None:
        axes.text(row.value, y - 0.2, number(row.value), ha="center", va="bottom")
    if is_number(row.limit):
        left, right = axes.get_xlim()
        near, far = row.limit < left + 0.2 * (right - left), row.limit > right
        if not far:
            axes.plot([row.limit] * 2, [y - 0.2, y + 0.2], color=green, lw=2.2)
        text, end = f"H {number(row.limit)}{' →' if far else ''}", (min(row.limit, right), y)
        axes.annotate(text, end, (4 if near else -4, -5), "data", "offset points", color=green, ha="left" if near else "right", va="top")


def _heat_map(made: Drawing, block: HeatMap) -> None:
    from matplotlib.patches import PathPatch

    rows, columns = len(block.shares), max(map(len, block.shares), default=0)
    top = block.top or max((value for row in block.shares for value in row if is_number(value)), default=0.0)
    if top <= 0:
        _nothing(made)
        return
    made.resize(328)
    axes = made.axes(64 if block.rows else 48, 24, 22, 64)
    axes.grid(visible=False)
    axes.spines[:].set(visible=True, color=COLOURS["rule"])
    axes.set(facecolor=COLOURS["panel"], xlim=(0, columns), ylim=(rows, 0), xlabel=visible(block.x_label), ylabel=visible(block.y_label))
    if block.columns:
        axes.set_xticks([place + 0.5 for place in range(columns)], [visible(name) for name in block.columns])
        axes.set_yticks([place + 0.5 for place in range(rows)], [visible(name) for name in block.rows])
        for row, column in itertools.product(range(rows), range(columns)):
            axes.text(column + 0.5, row + 0.5, share(block.shares[row][column], 0), ha="center", va="center")
    else:
        locate(axes.xaxis, 6)
        axes.set_yticks([0.5, rows - 0.5], ["1", str(rows)])
    for level, path in sorted(_cells(block.shares, top).items()):
        axes.add_patch(PathPatch(path, facecolor=COLOURS[block.role], alpha=level / LEVELS, linewidth=0))
    scale = made.axes(88, 312, MAP - 184, 6)
    scale.set_axis_off()
    scale.set(xlim=(0, 8))
    for step in range(8):
        scale.axvspan(step, step + 1, color=COLOURS[block.role], alpha=(step + 1) / 8, linewidth=0)
    made.note("0 %", 312, 48 / MAP)
    made.note(f"{share(top, 0)} {visible(block.unit)}", 312, 196 / MAP)


def _cells(shares: Sequence[Sequence[float]], top: float) -> dict[int, Path]:
    """One path for each level of opacity, neighbours of one level as one rectangle: a map of thousands of cells stays small."""
    from matplotlib.path import Path

    found = defaultdict[int, list[Path]](list)
    for row, values in enumerate(shares):
        levels = [round(max(value, 0.0) / top * LEVELS) if is_number(value) else 0 for value in values]
        for level, run in itertools.groupby(range(len(levels)), levels.__getitem__):
            start, *others = run
            end = start + 1 + len(others)
            found[level].append(Path([(start, row), (end, row), (end, row + 1), (start, row + 1), (start, row)], closed=True))
    return {level: Path.make_compound_path(*paths) for level, paths in found.items() if level}
