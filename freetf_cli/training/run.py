"""A training run from start to end: the checks before anything is written, the lock on the folder, and the recorded status."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import torch

from freetf_cli.config.recipe import Recipe
from freetf_cli.data.batches import DataSource
from freetf_cli.errors import Interrupted, Stopped
from freetf_cli.evaluation.statistics import LEAST
from freetf_cli.records import TrainResult
from freetf_cli.records.curves import split_metrics
from freetf_cli.runs.checkpoint import Checkpoint
from freetf_cli.runs.folder import ReadOnlyRun, RunFolder
from freetf_cli.runs.lock import lock_run
from freetf_cli.training.float8 import check_float8
from freetf_cli.training.loop import Hooks, Loop
from freetf_cli.training.memory import check_memory, memory_errors
from freetf_cli.training.parallel import check_engine
from freetf_cli.training.signals import StopRequest
from freetf_cli.training.start import check_same_run, extension, make_engine, record_start, resolve, start_over, unlike_its_start
from freetf_cli.training.step import uses_graph
from freetf_cli.training.world import ALONE, PeerLost, World


def train(
    recipe: Recipe,
    path: Path,
    *,
    device: torch.device,
    resume: Checkpoint | None = None,  # of the same run, to continue
    init_from: Checkpoint | None = None,  # the weights to start with; a Free model may start from its baseline
    again: bool = False,  # a run that ended before its first checkpoint may start over, with a warning
    longer: bool = False,  # `resume` may be from a run with fewer steps
    until: int | None = None,  # the step to stop at; None: the recipe's last
    hooks: Hooks | None = None,
    stop: StopRequest | None = None,
    name: str = "",  # of the recipe, for the manifest
    argv: Sequence[str] = (),  # the command line, for the manifest
    world: World = ALONE,  # the processes that call this with the same arguments; only process 0 writes the run and calls the hooks
) -> TrainResult:
    """Train a recipe into a run folder.

    Raises InputError before anything is written if recipe, data or checkpoint do not fit; Stopped or Interrupted, after saving, when `stop`
    asks; FreetfError if another process trains the run, memory is too small, or too many consecutive steps were not finite.
    """
    hooks = hooks if hooks and world.is_main else Hooks()
    uses_graph(recipe.train, device)  # InputError if it cannot
    check_engine(recipe, device)
    if world.is_main:
        RunFolder.check_path(path)
    with lock_run(path) if world.is_main else nullcontext():
        recipe, source = _resolved(recipe, device, resume, hooks, longer=longer)
        with memory_errors(recipe, device):
            engine = make_engine(recipe, device, world, init_from, resume)
            if init_from is not None and (why := unlike_its_start(recipe, init_from.recipe)):
                hooks.warn(why)
            if init_from is not None and init_from.tokenizer().sha256 != source.tokenizer.sha256:
                hooks.warn("the tokenizer is not that of --init-from: the same token id stands for different text")
            if not world.is_main:
                folder: RunFolder = ReadOnlyRun(path)
            elif resume is None:
                if again:
                    start_over(path, recipe, source, hooks.warn)
                folder = RunFolder.create(path, recipe, again=again)
            else:
                folder = RunFolder.open(path)
            loop = Loop(recipe, source, engine, folder, device, hooks, stop or StopRequest(), world)
            if resume is not None:
                loop.restore(resume)
                folder.rewind(resume.step, recipe, hooks.warn)
                if world.is_main and folder.lacks_records(resume.step, resume.recipe.train.log_every):
                    hooks.warn(
                        f"{folder.metrics_file} lacks steps before {resume.step}: so do the curves and the choice of the best checkpoint"
                    )
            record_start(loop, name, argv, init_from, resume)
            try:
                loop.run(until)
                return _result(loop)
            except BaseException as error:
                stopped = isinstance(error, Stopped | Interrupted | KeyboardInterrupt) or (isinstance(error, PeerLost) and loop.stop.signal)
                with suppress(OSError):  # on a full disk, the first error is the one to report
                    folder.finish("stopped" if stopped else "failed")
                raise
            finally:
                loop.update.close()


def _resolved(recipe: Recipe, device: torch.device, resume: Checkpoint | None, hooks: Hooks, *, longer: bool) -> tuple[Recipe, DataSource]:
    """The recipe completed from its data, and the data; InputError or FreetfError if the run cannot be trained."""
    asked, (recipe, source) = recipe.model.vocab, resolve(recipe, resume)
    if asked is not None and asked != recipe.model.vocab and resume is None:
        hooks.warn(f"model.vocab = {asked} is less than the tokenizer's {recipe.model.vocab:,} tokens, which the model gets")
    if source.unused >= 0.005:  # less is shown as 0 %
        hint = "raise model.context, or set data.rows = 'packed'"
        hooks.warn(f"rows of {source.context + 1:,} tokens leave out {100 * source.unused:.0f} % of the documents' tokens; {hint}")
    if resume is None:
        _warn_of_settings(recipe, source, hooks)
    else:
        check_same_run(recipe, source, resume, longer=longer)
        if change := extension(recipe, resume):
            hooks.warn(change)
    check_float8(recipe, device)
    check_memory(recipe, device)
    return recipe, source


def _warn_of_settings(recipe: Recipe, source: DataSource, hooks: Hooks) -> None:
    """Warn of settings of a new run that are allowed but hardly meant."""
    steps, warmup, split = recipe.train.steps, recipe.train.warmup, recipe.eval.split
    if warmup >= steps:
        hooks.warn(f"train.warmup = {warmup} is not less than train.steps = {steps}: the learning rate rises to the end and never decays")
    if recipe.model.document_mask and recipe.model.separator is None:
        hooks.warn("model.document_mask = true has no effect: only data.rows = 'packed' puts several documents into one row")
    if (rows := source.rows.size(split)) is not None and rows < LEAST:
        few = f"only {rows} rows" if rows > 1 else "only one row"
        hooks.warn(f"the held-out split '{split}' has {few}, too few for its loss to mean much; `freetf evaluate` needs {LEAST}")


def _result(loop: Loop) -> TrainResult:
    folder = loop.folder
    return TrainResult(
        run=str(folder.path),
        kind=loop.recipe.kind,
        start=loop.pace.start,
        steps=loop.step,
        tokens=loop.tokens,
        seconds=loop.pace.seconds(),
        val=next(reversed(split_metrics(folder.metrics())[1]), None),
        checkpoint=str(folder.checkpoint(loop.step)),
        page=str(folder.report),
        facts=loop.source.facts,
        skipped=len(loop.skipped),
    )
