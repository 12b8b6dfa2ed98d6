"""One run of scripts/text_models.py: `python text_models_worker.py [SIZES] RECIPE RUN OPTIONS-OF-TRAIN…`.

It trains the run, or resumes it, and then measures one thing after the other. Each is written to RUN/measured/NAME.json when it is done,
so that an interrupted worker goes on with the next; the answers to a benchmark are kept in RUN/benchmarks/NAME as they come. What cannot be
measured is named in the log, and the exit code is then 1. When nothing is missing, all checkpoints but the last and the best are deleted.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from resumable import facts, silent, train

from freetf_cli.config.recipe import Recipe
from freetf_cli.data.batches import DataSource
from freetf_cli.device import resolve_device
from freetf_cli.durable import write_durably
from freetf_cli.errors import FreetfError, InputError
from freetf_cli.evaluation.benchmarks.measure import Questions
from freetf_cli.evaluation.benchmarks.run import BenchmarkRequest, last_third, run_benchmarks
from freetf_cli.evaluation.metrics import Request, load
from freetf_cli.evaluation.probe.measure import ProbeSpec, probe_latent
from freetf_cli.evaluation.run_data import open_run_data, open_split
from freetf_cli.evaluation.steering import CodesSpec, find_codes
from freetf_cli.model.decoder import Decoder
from freetf_cli.records import to_json
from freetf_cli.runs.checkpoint import Checkpoint, folder_step, open_model
from freetf_cli.runs.folder import RunFolder

FACTS, FREE_ONLY = "facts", ("persistence", "probe", "codes")
MEASURES = ("likelihood", "by_label", *FREE_ONLY)  # the others are benchmarks; `-0.6` is a temperature
METRICS = {  # of the variants of each recipe file, in the order in which they are measured
    "text-50m": (
        *("likelihood", "by_label", "persistence", "lambada", "hellaswag", "piqa", "arc_easy"),
        *("word_problems-0", "python_lines-0", "word_problems-0.6", "python_lines-0.6"),
    ),
    "film-reviews": ("likelihood", "probe", "codes"),
    "text-attention": (
        *("likelihood", "by_label", "lambada", "lambada_standard", "needles", "babilong", "hellaswag", "piqa", "arc_easy"),
        *("arc_challenge", "boolq", "openbookqa", "winogrande"),
    ),
    "text-attention-long": ("likelihood", "by_label", "needles", "babilong"),
    "text-attention-retrofit": ("likelihood",),
    "attention-ablations": ("likelihood",),
}
AVERAGED = ("text-50m",)  # recipe files whose benchmarks are means over the last third of the checkpoints
SIZES = {  # option: its default, that of smoke runs, and what it is
    "sequences": (512, 24, "held-out windows of likelihood"),
    "samples": (512, 4, "draws of Z for each of them"),
    "label-sequences": (128, 24, "windows of each label"),
    "label-samples": (64, 4, "draws of Z for each of them"),
    "changed": (256, 24, "windows of persistence"),
    "groups": (512, 24, "Zs of probe-latent"),
    "count": (64, 4, "texts under each Z"),
    "texts": (512, 20, "texts of find-codes for each label"),
    "tokens": (512, 64, "tokens of a text of probe-latent and find-codes"),
    "limit": (500, 20, "items of a benchmark with choices or a last word"),
    "problems": (100, 4, "items of word_problems and python_lines"),
    "attempts": (16, 2, "answers to each of those"),
    "draws": (16, 2, "draws of Z for an answer of a benchmark"),
}


def family(recipe: str) -> str:
    """`text-50m` of `text-50m/kappa-1` and `recipes/text-50m.toml/kappa-1`."""
    *_, last = [part for part in Path(recipe).parts if part.removesuffix(".toml") in METRICS] or [""]
    return last.removesuffix(".toml")


def task(name: str) -> str:
    """The benchmark of a measurement: `word_problems` of `word_problems-0.6`."""
    return name.partition("-")[0]


def wanted(name: str, recipe: Recipe) -> list[str]:
    """What is to be measured of a run. A baseline has no Z, and the toy reviews of smoke runs are not labelled documents."""
    left_out = (*(() if recipe.kind == "free" else FREE_ONLY), *(() if recipe.data.dir else ("by_label",)))
    return [one for one in METRICS[family(name)] if one not in left_out]


def measurable(names: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """The names that can be measured: all but benchmarks whose task is not in `tasks`."""
    return [name for name in names if name in MEASURES or task(name) in tasks]


@dataclass(frozen=True)
class Trained:
    """A trained run, opened once for all measurements. at: sizes and the folder of the benchmarks' data."""

    recipe: str
    run: Path
    device: torch.device
    at: argparse.Namespace

    @cached_property
    def last(self) -> tuple[Checkpoint, Decoder]:
        return open_model(self.run, self.device, print)

    @cached_property
    def averaged(self) -> list[tuple[Checkpoint, Decoder]]:
        """The checkpoints of the last third, without those of interruptions, which would weigh some steps more than others.

        InputError if one of them is gone.
        """
        folders = {folder_step(folder): folder for folder in last_third(self.run)}
        evaluated = sorted(RunFolder.open(self.run).held_out_losses())
        steps = [step for step in evaluated if 3 * step >= 2 * evaluated[-1]]
        if gone := [str(step) for step in steps if step not in folders]:
            raise InputError(f"the checkpoint of step {', '.join(gone)} is gone", str(self.run), "raise train.keep_last")
        return [open_model(folders[step], self.device, print) for step in steps]

    @cached_property
    def data(self) -> tuple[DataSource, str]:
        """Film reviews have no split `test`."""
        return open_split(self.last[0], None, None if family(self.recipe) == "film-reviews" else "test")

    def measure(self, name: str) -> dict[str, Any]:
        """Measure one thing. Returns its record, as `freetf` prints it with --json."""
        return {"probe": self._probe, "codes": self._codes}.get(name, self._metric if name in MEASURES else self._benchmark)(name)

    def _metric(self, name: str) -> dict[str, Any]:
        checkpoint, model = self.last
        source, split = self.data
        sizes = {"likelihood": (self.at.sequences, self.at.samples), "by_label": (self.at.label_sequences, self.at.label_samples)}
        request = Request(self.run.name, split, *sizes.get(name, (self.at.changed,)))
        return {"draws": request.draws} | _plain(load(name)(checkpoint, model, source, request))

    def _probe(self, name: str) -> dict[str, Any]:
        checkpoint, model = self.last
        source, split = self.data
        spec = ProbeSpec(split, groups=self.at.groups, count=self.at.count, tokens=self.at.tokens)
        return _plain(probe_latent(checkpoint, model, source, spec, run=self.run.name, stage=silent))

    def _codes(self, name: str) -> dict[str, Any]:
        checkpoint, model = self.last
        source = open_run_data(checkpoint, documents=True)
        label = None if checkpoint.recipe.data.dir else "sentiment"  # the toy reviews have several
        spec = CodesSpec(label, held_out=self.data[1], count=self.at.texts, tokens=self.at.tokens)
        return _plain(find_codes(checkpoint, model, source, spec, self.run / name, run=self.run.name, stage=silent))

    def _benchmark(self, name: str) -> dict[str, Any]:
        """A baseline's answers at temperature 0 are all the same, so it gets one attempt there."""
        (benchmark, many, temperature), at = name.partition("-"), self.at
        opened = self.averaged if family(self.recipe) in AVERAGED and not many else [self.last]
        attempts = at.attempts if many and (float(temperature) or self.last[1].latent is not None) else 1
        questions = Questions(str(at.benchmarks), at.problems if many else at.limit, attempts=attempts)
        asked = BenchmarkRequest(
            *(self.run.name, (benchmark,), questions),
            draws=at.draws,
            temperature=float(temperature) if many else None,
            folder=self.run / "benchmarks" / name,
            resume=True,
            several=len(opened) > 1,
        )
        return _plain(run_benchmarks(opened, asked, silent))


def _plain(record: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(to_json(record))
    return found


def measured(run: Path) -> dict[str, dict[str, Any]]:
    """The records that a run's folder has, by name."""
    return {file.stem: json.loads(file.read_bytes()) for file in sorted((run / "measured").glob("*.json"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, (default, _, what) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    parser.add_argument("--benchmarks", type=Path, help="folder of the benchmarks' data sets")
    parser.add_argument("--tasks", default="", help="the benchmarks that can be measured, separated by commas")
    parser.add_argument("recipe")
    parser.add_argument("run", type=Path)
    parser.add_argument("options", nargs=argparse.REMAINDER)
    at = parser.parse_args()
    device = train(at.recipe, at.run, at.options)
    one, out = Trained(at.recipe, at.run, resolve_device(device), at), at.run / "measured"
    if one.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32: in float32, 512 draws take several times as long
    out.mkdir(exist_ok=True)
    checkpoint, model = one.last
    names, known = wanted(at.recipe, checkpoint.recipe), measured(at.run)
    asked = measurable(names, at.tasks.split(","))
    if FACTS not in known:
        settings = [value for option, value in pairwise(at.options) if option == "--set" and not value.startswith("train.seed=")]
        about = {"kind": checkpoint.recipe.kind, "seed": checkpoint.recipe.train.seed, "settings": settings, "wanted": names}
        about = facts(at.recipe, at.run, checkpoint, model) | about
        write_durably(out / f"{FACTS}.json", json.dumps(about))
    for name in (name for name in asked if name not in known):
        try:
            write_durably(out / f"{name}.json", json.dumps(one.measure(name)))
        except FreetfError as error:
            print(f"{name} was not measured: {'; '.join(error.lines())}", flush=True)
        except Exception:  # such as too little memory, which the next measurement may not need
            print(f"{name} was not measured: {traceback.format_exc()}", flush=True)
    missing = set(names) - set(measured(at.run))
    if not missing:
        RunFolder.open(at.run).prune(keep_last=1, keep_every=0)
    if missing & set(asked):
        sys.exit(1)


if __name__ == "__main__":
    main()
