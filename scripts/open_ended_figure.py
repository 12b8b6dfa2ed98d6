"""Creativity against training steps, one column for each open-ended task: a picture of the results of scripts/open_ended.py.

    python scripts/open_ended_figure.py RESULTS.json FIGURE.svg

Above at temperature 0, below at temperature 1/2. Lines are means over seeds, bands reach from the least to the largest seed; a dot marks
the step with the lowest held-out cost, CE + KL, averaged over seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from open_ended import rows_of

from freetf_cli.report.charts import COLOURS, drawing, standalone

TASKS = ("siblings", "circles", "lines", "triangles")
TEMPERATURES = {0.0: "temperature 0", 0.5: "temperature 1/2"}
ARMS = {  # variant: name, role of its colour
    "baseline": ("baseline", "plain"),
    "seeded": ("baseline, random prefix", "target"),
    "teacherless": ("baseline, several tokens", "green"),
    "free-noise": ("Free, Z is noise", "noise"),
    "free": ("Free, κ = 1", "kl"),
    "free-row": ("Free, one Z a row", "nelbo"),
}


def main(source: str, target: str) -> None:
    runs = json.loads(Path(source).read_text(encoding="utf-8"))["runs"]
    Path(target).write_text(draw(runs), encoding="utf-8")


def draw(runs: dict[str, dict[str, Any]]) -> str:
    with drawing("Creativity by training step", 960) as made:
        made.resize(440)
        handles: dict[str, Any] = {}
        for row, temperature in enumerate(TEMPERATURES):
            for column, task in enumerate(TASKS):
                left = 34 + 236 * column
                plot = made.axes(left, 84 + 180 * row, made.width - left - 200, 440 - 84 - 180 * row - 130)
                handles |= chart(plot, runs, task, temperature)
                plot.set_title(f"{task}, {TEMPERATURES[temperature]}", loc="left", fontsize=9, color=COLOURS["ink"])
                if row:
                    plot.set_xlabel("step")
        made.legend([handles[name] for name in ARMS if name in handles], [ARMS[name][0] for name in ARMS if name in handles])
    return standalone(made.svg)


def chart(plot: Any, runs: dict[str, dict[str, Any]], task: str, temperature: float) -> dict[str, Any]:
    """The curves of a task's arms, by variant."""
    handles = {}
    for variant, (_, role) in ARMS.items():
        each = [curve(run, temperature) for run in runs.values() if run["recipe"] == f"{task}/{variant}"]
        if not each:
            continue
        steps = sorted(set.intersection(*(set(one) for one in each)))
        values, costs = (np.array([[one[step][place] for step in steps] for one in each]) for place in range(2))
        mean = values.mean(0)
        plot.fill_between(steps, values.min(0), values.max(0), color=COLOURS[role], alpha=0.15, linewidth=0)
        handles[variant] = plot.plot(steps, mean, color=COLOURS[role])[0]
        best = int(costs.mean(0).argmin())
        plot.plot(steps[best], mean[best], "o", ms=4.5, color=COLOURS[role])
    plot.set(xlim=(0, None), ylim=(0, None))
    plot.yaxis.set_major_formatter("{x:g}")
    return handles


def curve(run: dict[str, Any], temperature: float) -> dict[int, tuple[float, float]]:
    """Creativity and held-out cost by step."""
    found = [row for row in rows_of(run) if row["temperature"] == temperature and row["ce"] is not None]
    return {row["step"]: (row["creativity"], row["ce"] + (row["kl"] or 0)) for row in found}


if __name__ == "__main__":
    main(*sys.argv[1:])
