"""What a repetition of a run needs: its recipe with its data, which must be the same, and the machine's settings as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from freetf_cli import durable
from freetf_cli.config.recipe import Recipe
from freetf_cli.data.manifest import MANIFEST as DATA_MANIFEST
from freetf_cli.device import describe, set_threads
from freetf_cli.errors import InputError
from freetf_cli.evaluation.reproduction import terms
from freetf_cli.evaluation.summary import run_status
from freetf_cli.records.reproduction import Terms
from freetf_cli.runs.checkpoint import Checkpoint, open_checkpoint
from freetf_cli.runs.folder import RunFolder
from freetf_cli.training.start import resolve


@dataclass(frozen=True)
class Repetition:
    """A run to train again: its recipe, with its data where it lies now; the weights it began with; the step to compare up to.

    parts: (step, steps) for each time that the run was made longer: up to `step`, it was trained as a run of so many steps.
    """

    recipe: Recipe
    name: str  # of the recipe
    init_from: Path | None
    steps: int
    terms: Terms
    parts: Sequence[tuple[int, int]]

    def recipes(self, done: int = 0) -> Iterator[tuple[Recipe, int]]:
        """One recipe after the other, each with the step to train it up to. done: the step that a repetition has reached before."""
        whole = self.recipe.train
        for until, steps in [*self.parts, (whole.steps, whole.steps)]:
            if until > done or until == whole.steps:
                yield self.recipe.model_copy(update={"train": whole.model_copy(update={"steps": steps})}), min(until, self.steps)
            if until >= self.steps:
                return


def plan_repetition(
    run: Path, device: torch.device, processes: int, *, steps: int | None, tolerance: float | None, warn: Callable[[str], None]
) -> Repetition:
    """Check a run and set this process's threads to the run's. InputError if it cannot be trained again, or its data has changed.

    steps: compare only up to this one; a run that ended early is compared up to its newest checkpoint.
    """
    folder = RunFolder.open(run)
    manifest = folder.manifest()
    if run_status(manifest, run) == "running":
        raise InputError("the run is still being trained", str(run), "wait until it ends")
    if manifest.get("status") == "imported":
        raise InputError("an imported run was not trained by freetf: there is nothing to repeat", str(run))
    checkpoint = open_checkpoint(run, warn)
    recipe = _with_same_data(folder.recipe(), manifest, checkpoint)
    was = manifest.get("device") if isinstance(manifest.get("device"), Mapping) else {}
    threads = was.get("threads") if isinstance(was, Mapping) else None
    if not recipe.parallel.threads and type(threads) is int and 0 < threads <= 1024:
        set_threads(threads)
    now = {"device": describe(device), "processes": processes}
    init_from, parts = manifest.get("init_from"), _parts(manifest)
    if parts and processes > 1:
        raise InputError("a run of several processes that was made longer cannot be reproduced", str(run))
    return Repetition(
        recipe,
        str(manifest.get("recipe") or ""),
        Path(init_from) if isinstance(init_from, str) else None,
        min(steps or checkpoint.step, checkpoint.step),
        terms(manifest, now, deterministic=recipe.train.deterministic, tolerance=tolerance),
        parts,
    )


def _parts(manifest: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Where a run was made longer, without what was trained again from an earlier step."""
    parts: list[tuple[int, int]] = []
    resumed = manifest.get("resumed")
    for entry in resumed if isinstance(resumed, list) else []:
        step, before = (entry.get("step"), entry.get("steps_before")) if isinstance(entry, Mapping) else (None, None)
        if type(step) is int:
            parts = [part for part in parts if part[0] < step] + ([(step, before)] if type(before) is int and before > 0 else [])
    return parts


def _with_same_data(recipe: Recipe, manifest: Mapping[str, Any], checkpoint: Checkpoint) -> Recipe:
    """The recipe with the folder where its data is now; InputError unless the data has the hash in the manifest."""
    known = manifest.get("data")
    wanted = known.get("sha256") if isinstance(known, Mapping) else None
    if recipe.data.dir is None:
        found, where = resolve(recipe)[1].facts.sha256, str(checkpoint.folder)
    else:
        try:
            where = checkpoint.data_folder(recipe.data.dir)
        except InputError as error:
            error.hint = "put it back there"  # `reproduce` has no --data
            raise
        found = durable.sha256_of(Path(where) / DATA_MANIFEST)
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"dir": where})})
    if found != wanted:
        raise InputError("the data is not what the run was trained on (its hash differs)", where)
    return recipe
