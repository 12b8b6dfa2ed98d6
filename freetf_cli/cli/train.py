"""`freetf train`: train a recipe into a run folder, resume it, or plan it (`--dry-run`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freetf_cli.cli.options import DeviceOption, JsonOption, RecipeArgument, SetOption, SmokeOption
from freetf_cli.cli.output import Described, show
from freetf_cli.errors import InputError

if TYPE_CHECKING:
    from freetf_cli.config.recipe import Recipe
    from freetf_cli.records import TrainResult
    from freetf_cli.runs.checkpoint import Checkpoint
    from freetf_cli.training.signals import StopRequest


def train(
    context: typer.Context,
    recipe: RecipeArgument,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="RUN", help="The run's folder; required unless --dry-run.")] = None,
    set_: SetOption = None,
    smoke: SmokeOption = False,
    resume: Annotated[
        str,
        typer.Option(
            metavar="never|auto|PATH",
            help="Resume the run if it exists (auto), or from this checkpoint (PATH); later checkpoints are set aside. "
            "--set train.steps=N makes it longer.",
        ),
    ] = "never",
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Start a new run from these weights; a Free model can start from its baseline. Not read if a run is resumed.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show sizes, FLOPs, memory, steps and positions; needs no data and no GPU.")
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=1 << 20, help="With --dry-run: memory and communication on N GPUs, by mode.")
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="With --gpus: memory of a GPU, such as 80GB or 80GiB; default: 141GB, an H200's.")
    ] = None,
    device: DeviceOption = "auto",
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of every random draw; default: the recipe's.")] = None,
    json: JsonOption = False,
) -> Described | None:
    """Train a baseline or a Free Transformer from a recipe.

    Writes recipe, manifest, metrics, checkpoints, samples and a report into the run's folder.

    $ freetf train letters-free -o runs/letters-free
    $ freetf train letters-free -o runs/quick --smoke
    $ freetf train letters-free -o runs/lr --set train.lr=3e-4 --set latent.kappa=0.25
    $ freetf train letters-free -o runs/two --set parallel.processes=2
    $ freetf train paper-1.5b-free --dry-run
    $ freetf train paper-8b-free --dry-run --gpus 8 --gpu-memory 80GB
    """
    from freetf_cli.config.files import load_recipe
    from freetf_cli.training.elastic import is_main_process, launch, started_processes
    from freetf_cli.training.signals import stop_on_signals

    started = started_processes()
    overrides = [f"parallel.processes={started}"] if started > 1 else []
    overrides += [*(set_ or []), *([] if seed is None else [f"train.seed={seed}"])]
    loaded = load_recipe(recipe, smoke=smoke, overrides=overrides)
    if dry_run:
        planned = _dry_run(loaded, recipe, device, gpus, gpu_memory)
        return planned if is_main_process() else None
    if gpus is not None or gpu_memory is not None:
        raise InputError("--gpus and --gpu-memory are for --dry-run", hint="train on N GPUs with --set parallel.processes=N")
    if out is None:
        raise InputError("the run needs a folder", hint="name a folder: -o RUN")
    if str(out) == "-":
        raise InputError("a run is a folder and cannot go to stdout", hint="name a folder: -o RUN")
    if loaded.parallel.processes > 1 and started == 1:
        raise typer.Exit(launch(context.find_root().obj, loaded.parallel.processes))
    if loaded.parallel.processes != started:
        raise InputError(f"parallel.processes = {loaded.parallel.processes}, but {started} processes were started")
    with stop_on_signals(then_ignore=started > 1) as stop:  # loading takes seconds and must react to signals too
        longer = any(word.partition("=")[0].strip() == "train.steps" for word in set_ or [])  # not by an edited recipe, as in a sweep
        result = run_training(loaded, recipe, out, device, stop, resume=resume, init_from=init_from, longer=longer)
        if is_main_process():
            show(result, json=json)
    return None


def _dry_run(recipe: Recipe, name: str, device: str, gpus: int | None, gpu_memory: str | None) -> Described:
    """The planned cost; with `gpus`, also that of each way to parallelise the run over them."""
    from dataclasses import replace

    import torch

    from freetf_cli.device import resolve_device
    from freetf_cli.runs.plan import plan_run
    from freetf_cli.runs.spread import H200_MEMORY, memory_of, memory_size, spread
    from freetf_cli.training.start import resolve

    if gpus is None and gpu_memory is not None:
        raise InputError("--gpu-memory needs the number of GPUs", hint="add --gpus N")
    if gpus is not None and device not in ("auto", "cuda"):
        raise InputError(f"--gpus plans for CUDA, not for --device {device}")
    memory = H200_MEMORY if gpu_memory is None else memory_size(gpu_memory)
    if recipe.model.vocab is None or recipe.model.context is None or recipe.data.task is not None:  # a task needs no files
        recipe, _ = resolve(recipe)
    precision = recipe.train.precision
    target = torch.device("cuda") if device == "cuda" or gpus else resolve_device(device)  # planning for a GPU does not need one
    bf16 = precision == "bf16" or (precision == "auto" and target.type == "cuda")
    known = None if device == "auto" and target.type == "cpu" else target.type  # on a machine without a GPU, bf16 means CUDA
    plan = plan_run(recipe, name, bf16, known)
    if recipe.parallel.is_sharded:
        plan = replace(plan, memory=memory_of(recipe, plan))
    return plan if gpus is None else replace(plan, spread=spread(recipe, plan, gpus, memory))


def run_training(
    recipe: Recipe,
    name: str,
    out: Path,
    device: str,
    stop: StopRequest,
    *,
    resume: str = "never",
    init_from: Path | None = None,
    longer: bool = False,
    until: int | None = None,
) -> TrainResult:
    """Train with a live display, and update the run's report at every checkpoint. resume: as --resume. init_from: a run or a checkpoint.

    longer: the run to resume may have fewer steps. until: the step to stop at, before the recipe's last.
    """
    from freetf_cli.device import resolve_device, set_threads
    from freetf_cli.durable import write_durably
    from freetf_cli.evaluation.summary import summarise
    from freetf_cli.report import page
    from freetf_cli.report.console import warn
    from freetf_cli.report.progress import TrainingProgress
    from freetf_cli.training.elastic import stop_when_orphaned
    from freetf_cli.training.loop import Hooks
    from freetf_cli.training.run import train as train_recipe
    from freetf_cli.training.start import current_argv
    from freetf_cli.training.world import local_device, process_group

    stop_when_orphaned()
    target = resolve_device(device)
    with process_group(target, stop) as world:
        start, weights = world.broadcast(starting_points(out, resume, init_from) if world.is_main else None)
        set_threads(recipe.parallel.threads)
        with TrainingProgress(quiet=not world.is_main) as display:
            return train_recipe(
                recipe,
                out,
                device=local_device(target),
                resume=start,
                init_from=weights,
                again=resume == "auto",
                longer=longer,
                until=until,
                hooks=Hooks(
                    progress=lambda progress: display.update(progress.status()),
                    saved=lambda run: write_durably(run.report, page.html(summarise(run.path).report())),
                    warn=warn,
                ),
                stop=stop,
                name=name,
                argv=current_argv(),
                world=world,
            )


def starting_points(out: Path, resume: str, init_from: Path | None) -> tuple[Checkpoint | None, Checkpoint | None]:
    """The checkpoint to resume from, and, if that is None, the one whose weights the run starts with. Each is verified."""
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import open_checkpoint
    from freetf_cli.runs.folder import RunFolder
    from freetf_cli.training.start import OTHER_FOLDER, check_init_from

    if init_from is not None and resume not in ("never", "auto"):
        raise InputError("--init-from starts a new run, --resume PATH continues one", hint="give only one of them")
    start = resume_from(out, resume)
    if resume == "auto" and (out / "recipe.toml").is_file() and (start is None or init_from is not None):
        check_init_from(RunFolder.open(out), init_from, OTHER_FOLDER if start is None else "leave --init-from out to resume it")
    return start, None if init_from is None or start is not None else open_checkpoint(init_from, warn)


def resume_from(out: Path, resume: str) -> Checkpoint | None:
    """The checkpoint to resume from, by the value of --resume: the run's newest intact one, the named one, or None for a new run."""
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, open_checkpoint

    if resume == "never" or (resume == "auto" and not checkpoint_folders(out)):
        return None
    path = out if resume == "auto" else Path(resume)
    if path.resolve() == out.resolve():
        return open_checkpoint(path, warn)
    if path.resolve().parent != (out / "checkpoints").resolve():
        hint = "use --init-from to start a new run from another run's weights"
        raise InputError("--resume needs a checkpoint of the run in -o", resume, hint)
    return Checkpoint.open(path)
