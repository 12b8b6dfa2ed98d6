"""Draws how the time of a training step grows with T, batch, D and H: `python scripts/growth.py RESULTS.json FIGURE.svg`.

RESULTS.json has `axes`: for each of the four, rows of `at` and the milliseconds of `baseline` and `free`, or of one of them. The scales are
logarithmic, and all four charts share the scale of the time, so that heights compare. H is a logarithm already: of the latent's codes.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from freetf_cli.report.charts import COLOURS, Drawing, drawing, standalone

TITLES = {
    "T": "context T, 16,384 tokens a step",
    "batch": "batch, of 1,024 tokens",
    "D": "width D, 16 × 1,024 tokens",
    "H": "latent bits H, log₂ of the codes",
}
CURVES = {"baseline": ("baseline", "plain", -12), "free": ("Free Transformer", "nelbo", 9)}  # name, colour, where its labels are
WIDTH, HEIGHT, GAP, TOP = 368, 236, 24, 50  # of a chart; between charts; above them


def main(source: str, target: str) -> None:
    axes = json.loads(Path(source).read_text(encoding="utf-8"))["axes"]
    times = [math.log2(row[kind]) for rows in axes.values() for row in rows for kind in CURVES if kind in row]
    room = 0.16 * (max(times) - min(times))  # for the labels
    with drawing("Milliseconds of a training step, log scales", 2 * WIDTH + GAP) as made:
        made.resize(TOP + 2 * HEIGHT + GAP)
        handles: dict[str, Any] = {}
        for number, name in enumerate(TITLES):
            left, top = number % 2 * (WIDTH + GAP), TOP + number // 2 * (HEIGHT + GAP)
            handles |= chart(made, left, top, name, axes[name], (min(times) - room, max(times) + room))
        made.legend([handles[kind] for kind in CURVES], [name for name, _, _ in CURVES.values()])
    Path(target).write_text(standalone(made.svg), encoding="utf-8")


def chart(made: Drawing, left: int, top: int, name: str, rows: list[dict[str, float]], limits: tuple[float, float]) -> dict[str, Any]:
    """One chart, with a grid line at each doubling of the time; returns its curves by kind."""
    plot = made.axes(left + 30, top + 24, made.width - left - WIDTH, made.height - top - HEIGHT + 24)
    places = [row["at"] if name == "H" else math.log2(row["at"]) for row in rows]
    beside = 0.08 * (max(places) - min(places)) or 1.0
    doublings = range(math.ceil(limits[0]), math.floor(limits[1]) + 1)
    plot.set(xlim=(min(places) - beside, max(places) + beside), ylim=limits)
    plot.set_title(TITLES[name], loc="left", x=-30 / (WIDTH - 30), fontsize=9, fontweight="bold", color=COLOURS["ink"])
    plot.set_xticks(places, [f"{row['at']:,.0f}" for row in rows])
    plot.set_yticks(list(doublings), [f"{2.0**power:g}" for power in doublings])
    found = {}
    for kind, (_, role, away) in CURVES.items():
        points = [(place, row[kind]) for place, row in zip(places, rows, strict=True) if kind in row]
        (found[kind],) = plot.plot([x for x, _ in points], [math.log2(ms) for _, ms in points], "o-", ms=5, color=COLOURS[role])
        for x, ms in points:
            label = plot.annotate(f"{ms:#.3g}".rstrip("."), (x, math.log2(ms)), (0, away), "data", "offset points", ha="center")
            label.set(color=COLOURS[role], bbox={"facecolor": COLOURS["page"], "edgecolor": "none", "pad": 0.5})
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
