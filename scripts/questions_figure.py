"""pass@k against k, one column for each task with a question: a picture of the results of scripts/open_ended.py.

    python scripts/questions_figure.py RESULTS.json FIGURE.svg

At the checkpoint with the lowest held-out cost, CE + KL; k is on a logarithmic scale. Path-star graphs have a line for each seed, because
seeds disagree, and a dashed curve, 1 − (1 − 1/d)^k for degree d: that of a model that follows edges and guesses the arm anew each time.
Countdown has the mean over seeds, and a band from the least to the largest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from open_ended import lowest_cost, rows_of

from freetf_cli.report.charts import COLOURS, drawing, standalone

TASKS = {  # recipe's stem: title, degree of a path-star graph
    "path-star/2x5": ("path-star, 2 arms", 2),
    "path-star/5x5": ("path-star, 5 arms", 5),
    "countdown/3": ("countdown, 3 numbers", None),
    "countdown/4": ("countdown, 4 numbers", None),
}
CURVES = {  # kind and temperature: name, role of its colour
    ("baseline", 0.0): ("baseline, T = 0", "soft"),
    ("baseline", 0.5): ("baseline, T = 1/2", "green"),
    ("baseline", 1.0): ("baseline, T = 1", "target"),
    ("free", 0.0): ("Free, T = 0", "kl"),
    ("free", 1.0): ("Free, T = 1", "nelbo"),
}
GUESS = "1 − (1 − 1/d)^k"


def main(source: str, target: str) -> None:
    runs = json.loads(Path(source).read_text(encoding="utf-8"))["runs"]
    Path(target).write_text(draw(runs), encoding="utf-8")


def draw(runs: dict[str, dict[str, Any]]) -> str:
    with drawing("Questions with a right answer among k (pass@k)", 960) as made:
        made.resize(240)
        handles: dict[str, Any] = {}
        for column, (stem, (title, degree)) in enumerate(TASKS.items()):
            left = 34 + 236 * column
            plot = made.axes(left, 84, made.width - left - 200, 40)
            plot.set_title(title, loc="left", fontsize=9, color=COLOURS["ink"])
            handles |= chart(plot, runs, stem, degree)
            plot.set_xscale("log", base=2)
            plot.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
            plot.set(ylim=(0 if degree else 0.5, 1.02), xlabel="k")
        names = [name for name in [*(name for name, _ in CURVES.values()), GUESS] if name in handles]
        made.legend([handles[name] for name in names], names)
    return standalone(made.svg)


def chart(plot: Any, runs: dict[str, dict[str, Any]], stem: str, degree: int | None) -> dict[str, Any]:
    """The curves of a task, by name."""
    handles = {}
    for (kind, heat), (name, role) in CURVES.items():
        each = [curve(run, heat) for run in runs.values() if run["recipe"] == f"{stem}-{kind}"]
        if not each:
            continue
        sizes, values = list(each[0]), np.array([list(one.values()) for one in each])
        if degree is None:
            plot.fill_between(sizes, values.min(0), values.max(0), color=COLOURS[role], alpha=0.15, linewidth=0)
        for shown in [values.mean(0)] if degree is None else values:
            handles[name] = plot.plot(sizes, shown, color=COLOURS[role], linewidth=1.2)[0]
    if degree is not None and handles:
        guessed = [1 - (1 - 1 / degree) ** k for k in sizes]
        handles[GUESS] = plot.plot(sizes, guessed, "--", color=COLOURS["ink"], linewidth=1)[0]
    return handles


def curve(run: dict[str, Any], temperature: float) -> dict[int, float]:
    """The run's pass@k for each k, at its checkpoint with the lowest held-out cost."""
    (chosen,) = lowest_cost([[row for row in rows_of(run) if row["temperature"] == temperature]])
    return {int(name.removeprefix("pass@")): chosen[name] for name in chosen if name.startswith("pass@")}


if __name__ == "__main__":
    main(*sys.argv[1:])
