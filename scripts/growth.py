"""Draws how the time of a training step grows with T, batch, D and H: `python scripts/growth.py RESULTS.json FIGURE.svg`.

RESULTS.json has `axes`: for each of the four, rows of `at` and the milliseconds of `baseline` and `free`, or of one of them. The scales are
logarithmic, and that of the time is the same in all four charts, so that heights compare. H is a logarithm already: of the latent's codes.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from freetf_cli.report.axes import Axes, label, picture, standalone
from freetf_cli.report.units import count

Rows = list[dict[str, float]]

TITLE = "Milliseconds of a training step, log scales"
TITLES = {
    "T": "context T, 16,384 tokens a step",
    "batch": "batch, of 1,024 tokens",
    "D": "width D, 16 × 1,024 tokens",
    "H": "latent bits H, log₂ of the codes",
}
CURVES = {"baseline": ("baseline", "c-plain", 18), "free": ("Free Transformer", "c-length", -9)}  # name, colour, where its labels are
WIDTH, HEIGHT, GAP, TOP = 368, 236, 24, 50  # of a chart; between charts; above them
ON_LINES = "fill: currentColor; stroke: var(--page); stroke-width: 3px; paint-order: stroke"  # text that no line strikes through


def drawing(axes: dict[str, Rows]) -> str:
    """The picture as a file."""
    times = [math.log2(row[kind]) for rows in axes.values() for row in rows for kind in CURVES if kind in row]
    span = max(times) - min(times)
    ys = (min(times) - 0.18 * span, max(times) + 0.14 * span)  # room for the labels
    parts = [keys()]
    for number, name in enumerate(TITLES):
        x, y = number % 2 * (WIDTH + GAP), TOP + number // 2 * (HEIGHT + GAP)
        parts.append(f'<g transform="translate({x} {y})">{chart(name, axes[name], ys)}</g>')
    return standalone(picture(TITLE, 2 * WIDTH + GAP, TOP + 2 * HEIGHT + GAP, parts))


def keys() -> str:
    parts = []
    for number, (name, colour, _) in enumerate(CURVES.values()):
        x = 98 * number
        parts.append(f'<g class="{colour}"><path class="line" d="M{x} 30h18"/></g><text class="key" x="{x + 24}" y="34">{name}</text>')
    return "".join(parts)


def chart(name: str, rows: Rows, ys: tuple[float, float]) -> str:
    places = [place(name, row) for row in rows]
    beside = 0.08 * (max(places) - min(places)) or 1.0
    axes = Axes(WIDTH, HEIGHT, 30, 24, 0, 24, (min(places) - beside, max(places) + beside), ys)
    marks = [(x, count(row["at"])) for x, row in zip(places, rows, strict=True)]
    title = f'<text class="key" x="0" y="12" font-weight="600">{label(TITLES[name])}</text>'
    return "".join([title, doublings(axes), axes.x_axis("", marks), *(curve(axes, name, rows, kind) for kind in CURVES)])


def place(name: str, row: dict[str, float]) -> float:
    return row["at"] if name == "H" else math.log2(row["at"])


def doublings(axes: Axes) -> str:
    """The lines across, each at twice the time of the one below."""
    parts = []
    for power in range(math.ceil(axes.ys[0]), math.floor(axes.ys[1]) + 1):
        y = axes.y(power)
        parts.append(f'<path class="grid" d="M{axes.left} {y:.1f}h{axes.across:g}"/>')
        parts.append(f'<text x="{axes.left - 7}" y="{y + 4:.1f}" text-anchor="end">{2.0**power:g}</text>')
    return "".join(parts)


def curve(axes: Axes, name: str, rows: Rows, kind: str) -> str:
    """A line with each point's milliseconds: above a Free Transformer's, below a baseline's."""
    _, colour, away = CURVES[kind]
    texts, marks, places = [], [], []
    for row in rows:
        if kind in row:
            x, y, ms = axes.x(place(name, row)), axes.y(math.log2(row[kind])), f"{row[kind]:#.3g}".rstrip(".")
            texts.append(f'<text x="{x:.1f}" y="{y + away:.1f}" text-anchor="middle" style="{ON_LINES}">{ms}</text>')
            marks.append(f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>')
            places.append(f"{x:.1f} {y:.1f}")
    line = [f'<path class="line" d="M{"L".join(places)}"/>'] if places else []
    return f'<g class="{colour}">{"".join([*texts, *line, *marks])}</g>'


def main(source: str, target: str) -> None:
    Path(target).write_text(drawing(json.loads(Path(source).read_text(encoding="utf-8"))["axes"]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
