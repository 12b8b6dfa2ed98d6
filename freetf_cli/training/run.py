"""A run from its start to its end: what must fit before anything is written, the lock on its folder, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from freetf_cli.config.recipe import Recipe
from freetf_cli.errors import Interrupted, Stopped, is_out_of_memory
from freetf_cli.records import TrainResult
from freetf_cli.runs.checkpoint import Checkpoint
from freetf_cli.runs.folder import RunFolder, WatchedRun, describe_process, now
from freetf_cli.runs.lock import hold
from freetf_cli.training.distributed import World
from freetf_cli.training.float8 import check_float8
from freetf_cli.training.loop import Hooks, Loop
from freetf_cli.training.memory import check_memory, out_of_memory
from freetf_cli.training.signals import StopRequest
from freetf_cli.training.start import check_same_run, describe_run, make_model, record_start, resolve, unlike_its_start
from freetf_cli.training.step import uses_graph


def train(
    recipe: Recipe,
    path: Path,
    *,
    device: torch.device,
    resume: Checkpoint | None = None,
    init_from: Checkpoint | None = None,
    again: bool = False,
    hooks: Hooks | None = None,
    stop: StopRequest | None = None,
    argv: Sequence[str] = (),
    world: World | None = None,
) -> TrainResult:
    """Train a recipe into a run folder.

    world: the processes that call this together, each with the same arguments; process 0 writes the run, and calls the hooks.
    resume: go on from this checkpoint of the same run. init_from: start from these weights; a Free model may start from its baseline.
    again: a run that ended before its first checkpoint may begin anew.
    Raises InputError before anything is written when recipe, data or checkpoint do not fit; Stopped or Interrupted, after saving, when
    `stop` asks; FreetfError when another process has the run, the memory is too small, or too many steps in a row were not finite.
    """
    world, hooks = world or World(), hooks or Hooks()
    uses_graph(recipe.train, device)  # InputError where it cannot
    if world.leads:
        RunFolder.refuse_foreign(path)
    with hold(path) if world.leads else nullcontext():
        recipe, source = resolve(recipe)
        if resume is not None:
            check_same_run(recipe, source, resume)
        check_float8(recipe, device)
        check_memory(recipe, device)
        try:
            model = make_model(recipe, device, init_from, resume)
            if world.leads and init_from is not None and (why := unlike_its_start(recipe, init_from.recipe)):
                hooks.warn(why)
            if not world.leads:
                run: RunFolder = WatchedRun(path)
            else:
                run = RunFolder.create(path, recipe, again=again) if resume is None else RunFolder.open(path)
            loop = Loop(recipe, source, model, run, device, hooks if world.leads else Hooks(), stop or StopRequest(), world)
            if resume is not None:
                loop.restore(resume)
                run.rewind(resume.step, recipe, evaluates=loop.owes_evaluation)
                if isinstance(resume.state.get("val_loss"), float):  # the run may have died before it noted this
                    loop._note_best(resume.state["val_loss"])
            about = {**describe_process(argv), **describe_run(recipe, source, device, init_from), "processes": world.size}
            record_start(run, about, resume)
            return _to_end(loop, run)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise out_of_memory(recipe, device) from error
            raise


def _to_end(loop: Loop, run: RunFolder) -> TrainResult:
    try:
        return loop.run_to_end()
    except BaseException as error:
        run.update_manifest(status="stopped" if isinstance(error, Stopped | Interrupted | KeyboardInterrupt) else "failed", finished=now())
        raise
    finally:
        loop.update.close()
