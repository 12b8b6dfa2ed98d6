"""Train the recipes on real text with several seeds, several runs at a time on one device, and measure what their pages in docs/ promise.

    python scripts/text_models.py OUT.json --runs DIR --benchmarks DIR                 # text-50m, film-reviews, text-attention; seeds 0 … 2
    python scripts/text_models.py OUT.json --runs DIR text-50m/kappa-1 --seeds 0..1 --at-once 2
    python scripts/text_models.py OUT.json --runs DIR text-50m --markdown              # the table in Markdown; nothing is trained
    python scripts/text_models.py OUT.json --runs DIR text-50m --smoke                 # tiny models on a CPU: a test of this script

A call ends after --minutes (8.5), and the same command goes on. Each run has a process of its own (text_models_worker.py), which trains it
and then measures one thing after the other on the split `test` (film reviews: `val`), the most important first. Options set the sizes;
what is measured already is not measured again with others. Without --benchmarks DIR, or without lm-eval, the benchmarks are left out, and
so are those without their files in DIR (docs/benchmarks.md).

OUT.json has a line for each run, from its first measurement on; "missing" names what is not measured yet. The same command, or one with
--benchmarks, measures it, if the run's folder is still there. If it is not, the run is skipped with a line, not trained again: delete its
line in OUT.json for that. The folder of a run that misses nothing may be deleted, unless text-attention-long or text-attention-retrofit are
to start from it. They wait until its likelihood is measured.

Costs in OUT.json are in nats per token, and a list of three is an estimate with its 95 % interval. What is printed is the mean over seeds ±
half of Student's 95 % interval. A number in parentheses says how many runs it is of, if not of all.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resumable import Job, known, options_parser, planned, positive, print_markdown, runs_folder, work, write_lines
from text_models_table import MISSING, Run, record, table
from text_models_worker import MEASURES, METRICS, SIZES, family, measurable, measured, task

from freetf_cli.config.files import expand
from freetf_cli.config.sweep import PlannedRun, plan_sweep
from freetf_cli.errors import InputError
from freetf_cli.evaluation.benchmarks.documents import read
from freetf_cli.runs.checkpoint import checkpoint_folders

WORKER = Path(__file__).resolve().with_name("text_models_worker.py")
RECIPES = ["text-50m", "film-reviews", "text-attention"]
AGAIN = "to train it again, delete its line in OUT.json"
STARTS = {"text-attention-long": None, "text-attention-retrofit": "softmax"}  # the run of text-attention; None: of the same attention


def plan(options: argparse.Namespace, tasks: Sequence[str]) -> list[Job]:
    """The jobs, ordered by seed: all arms with the first seed, then all with the next."""
    sizes = [str(word) for name, (full, smoke, _) in SIZES.items() for word in (f"--{name}", _size(options, name, full, smoke))]
    data = ["--benchmarks", str(options.benchmarks), "--tasks", ",".join(tasks)] if tasks else []
    return planned(options, WORKER, RECIPES, [*sizes, *data], of_run=start)


def _size(options: argparse.Namespace, name: str, full: int, smoke: int) -> int:
    given = getattr(options, name.replace("-", "_"))
    return (smoke if options.smoke else full) if given is None else given


def start(one: PlannedRun, runs: Path) -> Sequence[str]:
    """Returns `--init-from RUN` for a recipe that starts from another run, the one with the same settings and seed."""
    name = family(one.recipe)
    if name not in STARTS:
        return ()
    *settings, seed = one.settings
    (from_,) = plan_sweep(f"text-attention/{STARTS[name] or one.recipe.rpartition('/')[2]}", settings, [int(seed.rpartition("=")[2])])
    return "--init-from", str(runs / from_.name)


def available(options: argparse.Namespace) -> list[str]:
    """Returns the recipes' benchmarks that can be measured, and prints a line for each that cannot."""
    asked = [family(name) for name in options.recipes or RECIPES]
    tasks = dict.fromkeys(task(name) for one in asked for name in METRICS.get(one, ()) if name not in MEASURES)
    if not options.benchmarks or not importlib.util.find_spec("lm_eval"):
        why = "lm-eval is not installed" if options.benchmarks else "there is no --benchmarks DIR"
        print(f"benchmarks are left out: {why}")
        return []
    found = []
    for name in tasks:
        try:
            read(name, options.benchmarks)
            found.append(name)
        except InputError as error:
            print(f"{name} is left out: {'; '.join(error.lines())}")
    return found


def gather(options: argparse.Namespace, started: float) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Train and measure what is missing until the deadline, and write OUT.json. Returns its runs, and the names of the unfinished ones."""
    runs, tasks = known(options.out, options.smoke), [] if options.markdown else available(options)
    jobs = plan(options, tasks)
    collect(runs, jobs, smoke=options.smoke)
    runs_folder(options).mkdir(parents=True, exist_ok=True)
    try:
        if not options.markdown:
            work([job for job in jobs if _can_run(job, runs, tasks)], options.at_once, started + 60 * options.minutes)
    finally:  # after an interrupt too
        collect(runs, jobs, smoke=options.smoke)
        write_lines(options.out, runs)
    return runs, [folder.name for folder, _ in jobs if folder.name not in runs or lacking(runs[folder.name], tasks)]


def collect(runs: dict[str, dict[str, Any]], jobs: Sequence[Job], *, smoke: bool) -> None:
    """Add the measurements in the runs' folders to `runs`. Those that a folder no longer has are kept."""
    for folder, _ in jobs:
        if len(found := measured(folder)) > 1:  # facts come first
            new, old = record(found), runs.get(folder.name, {})
            missing = [name for name in new["missing"] if name not in old]
            runs[folder.name] = ({"smoke": True} if smoke else {}) | old | new | {"missing": missing}


def lacking(run: Run, tasks: Sequence[str]) -> list[str]:
    """The measurements that a run lacks and that can be made."""
    return measurable(run["missing"], tasks)


def _can_run(job: Job, runs: Mapping[str, Run], tasks: Sequence[str]) -> bool:
    """Whether a worker has something to do for a run. Prints why not if measurements are missing all the same."""
    (folder, command), run = job, runs.get(job[0].name)
    if run is not None:
        missing = lacking(run, tasks)
        if missing and not checkpoint_folders(folder):
            print(f"skipped: {folder.name} misses {', '.join(missing)}, and its checkpoints are gone; {AGAIN}")
            return False
        return bool(missing)
    if "--init-from" in command and "likelihood" not in measured(base := Path(command[command.index("--init-from") + 1])):
        gone = f"whose folder is gone; {AGAIN}" if base.name in runs else "which is not there yet"
        print(f"skipped: {folder.name} starts from {base.name}, {gone}")
        return False
    return True


def parsed() -> argparse.Namespace:
    parser = options_parser(__doc__, RECIPES, at_once=4, seeds="0..2")
    parser.add_argument("--benchmarks", type=Path, help="folder of the benchmarks' data sets (docs/benchmarks.md)")
    for name, (full, smoke, what) in SIZES.items():
        parser.add_argument(f"--{name}", type=positive, help=f"{what}; default: {full}, or {smoke} with --smoke")
    parser.add_argument("--markdown", action="store_true", help="print the tables of OUT.json in Markdown, and train nothing")
    options = parser.parse_intermixed_args()  # recipes may stand between options
    if unknown := [name for name in options.recipes if not family(name)]:
        parser.error(f"{unknown[0]}: this script measures {', '.join(METRICS)} and their variants")
    return options


def main() -> None:
    started, options = time.monotonic(), parsed()
    runs, unfinished = gather(options, started)
    by_file: dict[str, list[str]] = {}
    for recipe in (one for name in options.recipes or RECIPES for one in expand(name)):
        by_file.setdefault(family(recipe), []).append(recipe)
    for recipes in by_file.values():
        heading, *rows = table(runs, recipes)
        if options.markdown:
            print_markdown([heading, *rows])
            print()
            continue
        for name, count, *cells in rows:
            known_cells = [f"{column} {cell}" for column, cell in zip(heading[2:], cells, strict=True) if cell not in ("", "–")]
            print(f"{heading[0]}/{name}: {'; '.join([count if count == MISSING else f'{count} runs', *known_cells])}")
    if not options.markdown:
        print(f"{len(runs)} runs in {options.out}; not finished: {len(unfinished)}")


if __name__ == "__main__":
    main()
