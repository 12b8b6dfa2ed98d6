"""What scripts that train and measure many runs share: a process for each run, several at a time, ended at a deadline and resumed.

A worker trains its run, or resumes it, measures it, and writes RUN/measured.json when it is done. (That of text_models.py writes a file for
each measurement.)
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from stored import stored

from freetf_cli.cli.app import main as freetf
from freetf_cli.config.sweep import PlannedRun, parse_seeds, plan_sweep
from freetf_cli.device import cores
from freetf_cli.durable import write_durably
from freetf_cli.errors import InputError
from freetf_cli.evaluation import Advance
from freetf_cli.evaluation.statistics import repeated
from freetf_cli.records.curves import split_metrics
from freetf_cli.runs.folder import RunFolder

if TYPE_CHECKING:
    from freetf_cli.model.decoder import Decoder
    from freetf_cli.runs.checkpoint import Checkpoint

Job = tuple[Path, list[str]]  # the folder of a run, and the command of its worker
MEASURED = "measured.json"  # in a run's folder: what its worker writes when it is done
GRACE = 60  # seconds that runs have to save a checkpoint


def options_parser(about: str | None, recipes: Sequence[str], at_once: int, seeds: str = "0..4") -> argparse.ArgumentParser:
    """The options that these scripts have in common."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", nargs="*", help=f"default: {' '.join(recipes)}")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--set", action="append", default=[], help="a setting of all runs, table.key=value")
    parser.add_argument("--at-once", type=positive, default=at_once, help="runs at a time")
    parser.add_argument("--minutes", type=float, default=8.5, help="after so long, runs save a checkpoint and end")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--smoke", action="store_true")
    return parser


def positive(word: str) -> int:
    """A whole number from 1 on, for argparse."""
    if (number := int(word)) < 1:
        raise ValueError(word)
    return number


def runs_folder(options: argparse.Namespace) -> Path:
    """The folder of the runs. Smoke runs have one of their own."""
    folder: Path = options.runs / "smoke" if options.smoke else options.runs
    return folder


def planned(
    options: argparse.Namespace,
    worker: Path,
    recipes: Sequence[str],
    of_worker: Sequence[str] = (),
    of_run: Callable[[PlannedRun, Path], Sequence[str]] = lambda one, runs: (),
) -> list[Job]:
    """A job for each variant and seed, ordered by seed. of_run: returns further options of `train` for a run."""
    runs = runs_folder(options)
    extra = [*(["--smoke"] if options.smoke else []), "--device", options.device]
    try:
        ones = [
            one
            for seed in parse_seeds(options.seeds)
            for name in options.recipes or recipes
            for one in plan_sweep(name, options.set, [seed])
        ]
    except InputError as error:
        sys.exit(f"error: {error}")
    found = []
    for one in ones:
        settings = [word for setting in one.settings for word in ("--set", setting)]
        command = [sys.executable, str(worker), *of_worker, one.recipe, str(runs / one.name), *settings, *extra, *of_run(one, runs)]
        found.append((runs / one.name, command))
    return found


def known(out: Path, smoke: bool) -> dict[str, dict[str, Any]]:
    """What OUT.json has of each run. Ends the program for a damaged file, and for one whose runs are smoke runs where these are not."""

    def of_other_size(found: Any) -> list[str]:
        return [name for name, run in found["runs"].items() if run.get("smoke", False) != smoke]

    found = stored(out, of_other_size, "move it away, and the folder of the runs still has what they measured") or {"runs": {}}
    runs: dict[str, dict[str, Any]] = found["runs"]
    if others := of_other_size(found):
        sys.exit(f"error: {out} has {'runs at full size' if smoke else 'smoke runs'}, such as {others[0]}; name another file")
    return runs


def gather(
    options: argparse.Namespace, jobs: Sequence[Job], read: Callable[[Any], dict[str, Any]], started: float
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Run what is missing until the deadline. Returns what is known of each run, by name, and the names of those that are not finished.

    Runs that OUT.json has already are not run again. read: makes of a worker's result what OUT.json has of the run.
    """
    runs = known(options.out, options.smoke)
    runs_folder(options).mkdir(parents=True, exist_ok=True)
    jobs = [job for job in jobs if job[0].name not in runs]
    work([job for job in jobs if not (job[0] / MEASURED).is_file()], options.at_once, started + 60 * options.minutes)
    done = [folder for folder, _ in jobs if (folder / MEASURED).is_file()]
    mark = {"smoke": True} if options.smoke else {}
    runs |= {folder.name: mark | read(json.loads((folder / MEASURED).read_bytes())) for folder in done}
    return runs, [folder.name for folder, _ in jobs if folder not in done]


def work(jobs: Sequence[Job], at_once: int, deadline: float) -> None:
    """Run workers until all are done or the deadline has come; then stop those that still run, after an interrupt too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))
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


def train(recipe: str, run: Path, options: Sequence[str]) -> str:
    """Train a run in this process, or resume it, and end the process if it is not finished. Returns the device that was asked for."""
    code = freetf(["train", recipe, "-o", str(run), "--resume", "auto", "--quiet", *options])
    if code:
        sys.exit(code)
    return dict(pairwise(options)).get("--device", "auto")


def facts(recipe: str, run: Path, checkpoint: Checkpoint, model: Decoder) -> dict[str, Any]:
    """What a record says of a finished run: its recipe, machine, size and speed, and what training warned of."""
    folder = RunFolder.open(run)
    return {
        "recipe": recipe,
        "step": checkpoint.step,
        "device": folder.manifest()["device"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "ms_per_step": milliseconds(folder),
        "fault": split_metrics(folder.metrics())[1][-1].fault(),
    }


def milliseconds(folder: RunFolder) -> float | None:
    """The median time of a step over the lines of timing.jsonl but the first, in which libraries initialise."""
    lines = [json.loads(line) for line in folder.timing_file.read_text(encoding="utf-8").splitlines()]
    return 1000 * median(line["seconds"] for line in lines[1:]) if len(lines) > 1 else None


@contextmanager
def silent(what: str, total: int | None) -> Iterator[Advance]:
    """A stage of a measurement without a progress bar."""
    yield lambda count: None


def mean_text(values: Sequence[float | None], digits: int, *, half: bool = False) -> str:
    """The mean over runs with Student's 95 % interval, or half of it: `3.41 ± 0.02`. A dash where no run was measured."""
    measured = [value for value in values if value is not None]
    if not measured:
        return "–"
    if len(measured) == 1 or len(measured) > 10 or max(measured) == min(measured):
        return f"{sum(measured) / len(measured):.{digits}f}"
    found = repeated(measured)
    return f"{found.value:.{digits}f} ± {found.high - found.value:.{digits}f}" if half else found.text(digits)


def write_lines(out: Path, runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Write OUT.json, a line for each run."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(run)}" for name, run in runs.items())
    write_durably(out, '{"runs": {\n' + lines + "}}\n")


def print_markdown(rows: Iterable[Sequence[str]]) -> None:
    """Print a table whose first row is its heading."""
    for number, row in enumerate(rows):
        print(f"| {' | '.join(row)} |")
        if number == 0:
            print(f"|{'---|' * len(row)}")
