"""Train every arm of the open-ended recipes with several seeds, several at a time on one device, and measure every checkpoint.

    python scripts/open_ended.py OUT.json --runs DIR                       # all arms, seeds 0 … 4
    python scripts/open_ended.py OUT.json --runs DIR siblings circles/free --seeds 0..1 --at-once 4
    python scripts/open_ended.py OUT.json --runs DIR siblings --smoke      # tiny models on a CPU: a test of this script

A call ends after --minutes (8.5): runs that are not finished save a checkpoint, and the same command goes on with them. Runs that
OUT.json has already are not trained again, on another machine neither. Each run has a process of its own (open_ended_worker.py), which
trains and then measures: `creativity` of every checkpoint of an open-ended task, at the temperatures 0, 1/2 and 1; `attempts`, pass@k, of
the last checkpoint of pathstar and countdown, at the same. Measured checkpoints are deleted, but for the last and the one with the lowest
held-out cost.

OUT.json has a table for each run, {"recipe", "columns", "rows"}: a row for each checkpoint and temperature, with the held-out CE and KL at
that step in nats per token, and, for an open-ended task, what a perfect sampler would get ("perfect").

What is printed: creativity, or pass@1 and pass@64, of each arm at each temperature, as the mean over seeds with Student's 95 % interval, at
the checkpoint with the lowest held-out cost (CE + KL), at the step at which the mean over seeds is highest, and at the last.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resumable import Job, gather, options_parser, planned

from freetf_cli.durable import write_durably
from freetf_cli.evaluation.statistics import repeated

WORKER = Path(__file__).resolve().with_name("open_ended_worker.py")
RECIPES = ["siblings", "circles", "triangles", "lines", "path-star", "countdown"]
SHARES = ("creativity", "coherence", "memorised", "distinct")


def plan(options: argparse.Namespace) -> list[Job]:
    """The jobs, ordered by seed: all arms with the first seed, then all with the next."""
    return planned(options, WORKER, RECIPES, ["--rows", str(options.rows)])


def compact(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a worker measured of a run, as a table."""
    if "passed" in rows[0]:
        names = [f"pass@{one['k']}" for one in rows[0]["passed"]]
        values = [[one["share"]["value"] for one in row["passed"]] for row in rows]
        perfect = {}
    else:
        names = list(SHARES)
        values = [[row[name]["measured"]["value"] for name in SHARES] for row in rows]
        perfect = {"perfect": {name: round(rows[0][name]["perfect"], 4) for name in SHARES}}
    costs = [[(row["held_out"] or {}).get(name) for name in ("ce", "kl")] for row in rows]
    table = [
        [row["step"], row["temperature"], *(value if value is None else round(value, 4) for value in [*cost, *found])]
        for row, cost, found in zip(rows, costs, values, strict=True)
    ]
    return {"recipe": rows[0]["recipe"], **perfect, "columns": ["step", "temperature", "ce", "kl", *names], "rows": table}


def table(runs: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """A line for each arm and temperature, its seeds averaged."""
    arms: dict[tuple[str, float], list[list[dict[str, Any]]]] = {}
    for name, run in runs.items():
        rows = rows_of(run)
        for temperature in sorted({row["temperature"] for row in rows}):
            found = [row for row in rows if row["temperature"] == temperature]
            arms.setdefault((re.sub(r"-s\d+$", "", name), temperature), []).append(found)
    for (arm, temperature), each in arms.items():
        best, peak, last = lowest_cost(each), highest_mean(each), [max(rows, key=lambda row: row["step"]) for rows in each]
        steps = "/".join(str(row["step"]) for row in best)
        parts = [f"lowest cost (step {steps}) {_mean(best)}", f"highest (step {peak[0]['step']}) {_mean(peak)}", f"last {_mean(last)}"]
        yield f"{arm}, T = {temperature:g}, {len(each)} seeds: {'; '.join(parts)}"


def rows_of(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a run's table in OUT.json, each by column."""
    return [dict(zip(run["columns"], row, strict=True)) for row in run["rows"]]


def lowest_cost(each: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of each run, the row with the lowest CE + KL. Rows of an interruption's checkpoint have no cost."""
    costed = [[row for row in rows if row["ce"] is not None] for rows in each]
    return [min(rows, key=lambda row: row["ce"] + (row["kl"] or 0)) for rows in costed]


def highest_mean(each: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of the step, among those that all runs have, at which the mean of the main measure is highest."""
    by_step = [{row["step"]: row for row in rows} for rows in each]
    name = list(each[0][0])[4]
    common = sorted(set.intersection(*(set(rows) for rows in by_step)))
    step = max(common, key=lambda step: sum(rows[step][name] for rows in by_step))
    return [rows[step] for rows in by_step]


def _mean(rows: Sequence[dict[str, Any]]) -> str:
    """The main measures of one checkpoint of each run, averaged."""
    names = list(rows[0])[4:]
    names = names[:3] if names[0] == SHARES[0] else [names[0], names[-1]]
    found = {name: [row[name] for row in rows] for name in names}
    means = {name: repeated(values).text(3) if len(values) > 1 else f"{values[0]:.3f}" for name, values in found.items()}
    return ", ".join(f"{name} {value}" for name, value in means.items())


def parsed() -> argparse.Namespace:
    parser = options_parser(__doc__, RECIPES, at_once=6)  # a Free run has 6 GB of checkpoints before it is measured
    parser.add_argument("--rows", type=int, default=0, help="rows or questions of a measurement; default: the metric's")
    return parser.parse_intermixed_args()  # recipes may stand between options


def main() -> None:
    started, options = time.monotonic(), parsed()
    runs, unfinished = gather(options, plan(options), compact, started)
    write_durably(options.out, written(runs))
    for line in table(runs):
        print(line)
    print(f"{len(runs)} runs in {options.out}; not finished: {len(unfinished)}")


def written(runs: Mapping[str, dict[str, Any]]) -> str:
    """JSON with a line for each row."""
    heads = []
    for name, run in runs.items():
        rows = ",\n".join(json.dumps(row) for row in run["rows"])
        facts = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in run.items() if key != "rows")
        heads.append(f'{json.dumps(name)}: {{{facts}, "rows": [\n{rows}]}}')
    return '{"runs": {\n' + ",\n".join(heads) + "}}\n"


if __name__ == "__main__":
    main()
