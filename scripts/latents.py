"""Train each kind of latent on letters with several seeds, several at a time on one device, and measure what it does and costs.

    python scripts/latents.py OUT.json --runs DIR                                # all variants of `latents`, seeds 0 … 9
    python scripts/latents.py OUT.json --runs DIR latents/binary --seeds 0..1 --at-once 4
    python scripts/latents.py OUT.json --runs DIR --markdown                     # the table of docs/latents.md; nothing is trained
    python scripts/latents.py OUT.json --runs DIR --smoke                        # tiny models on a CPU: a test of this script

A call ends after --minutes (8.5): runs that are not finished save a checkpoint, and the same command goes on with them. Runs that
OUT.json has already are not trained again, on another machine neither. Each run has a process of its own (latents_worker.py), which
trains and then measures the last checkpoint.

OUT.json has a line for each run: parameters; milliseconds of a training step, which are comparable only between runs that were trained
alone; I(Z; factor) of every factor and the share of valid rows, by `probe-latent`; CE, KL and (CE + KL − floor) in bits per sequence;
what training warned of ("fault"), and when a lagging encoder was no longer behind ("lagged_until", steps). What is printed is the mean over
seeds with Student's 95 % interval.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resumable import Job, gather, mean_text, options_parser, planned, print_markdown, write_lines

from freetf_cli.config.files import expand

WORKER = Path(__file__).resolve().with_name("latents_worker.py")
RECIPES = ["latents"]
MISSING = "not measured yet"
Value = Callable[[Mapping[str, Any]], float | None]
COLUMNS: dict[str, tuple[Value, int]] = {  # of the table: its value of a run, and the decimals shown
    "parameters, millions": (lambda run: run["parameters"] / 1e6, 2),
    "ms a step": (lambda run: run["ms_per_step"], 1),
    "I(Z; position)": (lambda run: _estimate(run["information"].get("position")), 2),
    "I(Z; noise)": (lambda run: _estimate(run["information"].get("noise")), 2),
    "valid, %": (lambda run: None if (share := _estimate(run["valid"])) is None else 100 * share, 1),
    "CE": (lambda run: run["ce"], 2),
    "KL": (lambda run: run["kl"], 2),
    "CE + KL − floor": (lambda run: run["excess"], 2),
}


def plan(options: argparse.Namespace) -> list[Job]:
    """The jobs, ordered by seed: all variants with the first seed, then all with the next."""
    sizes = ("--sequences", options.sequences, "--groups", options.groups, "--count", options.count)
    return planned(options, WORKER, RECIPES, list(map(str, sizes)))


def table(runs: Mapping[str, Mapping[str, Any]], recipes: Sequence[str]) -> Iterator[list[str]]:
    """The heading, and a row for each recipe: means over its runs, and how many of them were warned of."""
    yield ["latent", *COLUMNS, "Z unused or copying, runs"]
    for recipe in recipes:
        own = [run for run in runs.values() if run["recipe"] == recipe]
        cells = (
            [mean_text([value(run) for run in own], digits) for value, digits in COLUMNS.values()]
            if own
            else [MISSING, *[""] * (len(COLUMNS) - 1)]
        )
        yield [recipe.rpartition("/")[2], *cells, f"{sum(bool(run['fault']) for run in own)} of {len(own)}" if own else ""]


def _estimate(found: Mapping[str, float] | None) -> float | None:
    return None if found is None else found["value"]


def parsed() -> argparse.Namespace:
    parser = options_parser(__doc__, RECIPES, at_once=6, seeds="0..9")
    parser.add_argument("--sequences", type=int, default=2048, help="held-out rows of probe-latent")
    parser.add_argument("--groups", type=int, default=256, help="Zs of its intervention")
    parser.add_argument("--count", type=int, default=64, help="rows under each Z")
    parser.add_argument("--markdown", action="store_true", help="print the table of OUT.json in Markdown, and train nothing")
    options = parser.parse_intermixed_args()  # recipes may stand between options
    if options.markdown:
        options.minutes = 0
    return options


def main() -> None:
    started, options = time.monotonic(), parsed()
    runs, unfinished = gather(options, plan(options), dict, started)
    write_lines(options.out, runs)
    recipes = [one for recipe in options.recipes or RECIPES for one in expand(recipe)]
    rows = table(runs, recipes)
    if options.markdown:
        print_markdown(rows)
        return
    for row in rows:
        print("; ".join(row))
    print(f"{len(runs)} runs in {options.out}; not finished: {len(unfinished)}")


if __name__ == "__main__":
    main()
