"""Train every arm of the open-ended recipes with several seeds, several at a time on one device, and measure every checkpoint.

    python scripts/open_ended.py OUT.json --runs DIR                       # all arms, seeds 0 … 4
    python scripts/open_ended.py OUT.json --runs DIR siblings circles/free --seeds 0..1 --at-once 4
    python scripts/open_ended.py OUT.json --runs DIR siblings --smoke      # tiny models on a CPU: a test of this script

A call ends after --minutes (8.5): runs that are not finished save a checkpoint, and the same command goes on with them. Each run has a
process of its own (open_ended_worker.py), which trains and then measures: `creativity` of every checkpoint of an open-ended task, at the
temperatures 0, 1/2 and 1; `attempts`, pass@k, of the last checkpoint of pathstar and countdown, at the same. Measured checkpoints
are deleted, but for the last. OUT.json has one row for each run, checkpoint and temperature, with the held-out cost at that step.

What is printed: creativity, or pass@1 and pass@64, of each arm at each temperature, as the mean over seeds with Student's 95 % interval, at
the checkpoint with the lowest held-out cost (CE + KL), and at the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from freetf_cli.config.sweep import parse_seeds, plan_sweep
from freetf_cli.device import cores
from freetf_cli.durable import write_durably
from freetf_cli.evaluation.statistics import repeated

WORKER = Path(__file__).resolve().with_name("open_ended_worker.py")
RECIPES = ["siblings", "circles", "triangles", "lines", "path-star", "countdown"]
MEASURED = "measured.json"  # in a run's folder: what its worker writes when it is done
GRACE = 60  # seconds that runs have to save a checkpoint


def plan(options: argparse.Namespace) -> list[tuple[Path, list[str]]]:
    """The folder of each run, and the command of its worker, all arms of one seed after the other."""
    found = []
    for seed in parse_seeds(options.seeds):
        for recipe in options.recipes or RECIPES:
            for one in plan_sweep(recipe, options.set, [seed]):
                folder = options.runs / one.name
                settings = [word for setting in one.settings for word in ("--set", setting)]
                extra = [*(["--smoke"] if options.smoke else []), "--device", options.device]
                command = [sys.executable, str(WORKER), "--rows", str(options.rows), one.recipe, str(folder), *settings, *extra]
                found.append((folder, command))
    return found


def work(jobs: Sequence[tuple[Path, list[str]]], at_once: int, deadline: float) -> None:
    """Run workers until all are done or the deadline has come; then stop those that still run."""
    waiting, running = list(jobs), dict[str, subprocess.Popen[bytes]]()
    environment = {"OMP_NUM_THREADS": str(max(1, cores() // at_once)), **os.environ}
    try:
        while running or (waiting and time.monotonic() < deadline):
            while waiting and len(running) < at_once and time.monotonic() < deadline:
                folder, command = waiting.pop(0)
                with folder.with_name(f"{folder.name}.log").open("ab") as log:
                    running[log.name] = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            time.sleep(0.1)
            for log_name in [name for name, process in running.items() if process.poll() is not None]:
                if code := running.pop(log_name).returncode:
                    print(f"exit code {code}: {log_name}", file=sys.stderr)
            if time.monotonic() >= deadline:
                break
    finally:
        _stop(list(running.values()))


def _stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let workers save a checkpoint and end."""
    for process in running:
        process.send_signal(signal.SIGTERM)
    until = time.monotonic() + GRACE
    for process in running:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A line for each arm and temperature, its seeds averaged."""
    arms: dict[tuple[str, float], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        arm = re.sub(r"-s\d+$", "", row["name"])
        arms.setdefault((arm, row["temperature"]), {}).setdefault(row["name"], []).append(row)
    for (arm, temperature), runs in arms.items():
        costed = [[row for row in each if row["held_out"]] for each in runs.values()]  # not checkpoints of an interruption
        best = [min(each, key=lambda row: row["held_out"]["ce"] + row["held_out"].get("kl", 0)) for each in costed]
        last = [max(each, key=lambda row: row["step"]) for each in runs.values()]
        steps = "/".join(str(row["step"]) for row in best)
        yield f"{arm}, T = {temperature:g}: best (step {steps}) {_mean(best)}; last {_mean(last)}"


def _mean(rows: Sequence[dict[str, Any]]) -> str:
    """The main measures of one checkpoint of each run, averaged."""
    if "creativity" in rows[0]:
        found = {name: [row[name]["measured"]["value"] for row in rows] for name in ("creativity", "coherence", "memorised")}
    else:
        points = [{f"pass@{one['k']}": one["share"]["value"] for one in row["passed"]} for row in rows]
        found = {name: [point[name] for point in points] for name in (next(iter(points[0])), list(points[0])[-1])}
    means = {name: repeated(values).text(3) if len(values) > 1 else f"{values[0]:.3f}" for name, values in found.items()}
    return ", ".join(f"{name} {value}" for name, value in means.items())


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", nargs="*", help=f"default: {' '.join(RECIPES)}")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", default="0..4")
    parser.add_argument("--set", action="append", default=[], help="a setting of all runs, table.key=value")
    parser.add_argument("--at-once", type=int, default=6, help="runs at a time; a Free run has 6 GB of checkpoints before it is measured")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--rows", type=int, default=0, help="rows or questions of a measurement; default: the metric's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--smoke", action="store_true")
    return parser.parse_intermixed_args()  # recipes may stand between options


def main() -> None:
    options, started = parsed(), time.monotonic()
    options.runs.mkdir(parents=True, exist_ok=True)
    jobs = plan(options)
    work([job for job in jobs if not (job[0] / MEASURED).is_file()], options.at_once, started + 60 * options.minutes)
    rows: list[dict[str, Any]] = []
    for folder, _ in jobs:
        rows += json.loads((folder / MEASURED).read_bytes()) if (folder / MEASURED).is_file() else []
    unfinished = [folder.name for folder, _ in jobs if not (folder / MEASURED).is_file()]
    write_durably(options.out, json.dumps({"rows": rows, "unfinished": unfinished}, indent=1) + "\n")
    for line in table(rows):
        print(line)
    print(f"{len(jobs) - len(unfinished)} of {len(jobs)} runs are measured; {len(rows)} rows in {options.out}")


if __name__ == "__main__":
    main()
