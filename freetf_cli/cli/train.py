"""`freetf train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freetf_cli.cli.options import DeviceOption, JsonOption, OptionalSeedOption, QuietOption, RecipeArgument, SetOption, SmokeOption
from freetf_cli.cli.output import show
from freetf_cli.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from freetf_cli.config.recipe import Recipe
    from freetf_cli.records import TrainResult
    from freetf_cli.runs.checkpoint import Checkpoint
    from freetf_cli.runs.folder import RunFolder
    from freetf_cli.training.distributed import World
    from freetf_cli.training.signals import StopRequest

RunOption = Annotated[Path | None, typer.Option("--out", "-o", metavar="RUN", help="The run's folder; needed unless --dry-run.")]
ResumeOption = Annotated[
    str,
    typer.Option("--resume", metavar="never|auto|PATH", help="auto: resume the run if it exists; PATH: from that checkpoint of it."),
]
InitOption = Annotated[
    Path | None,
    typer.Option("--init-from", metavar="CHECKPOINT", help="Start from these weights; of a baseline: a Free model, other attention."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Only print sizes, FLOPs, memory, steps and tokens; needs neither data nor GPU.")
]


def train(
    context: typer.Context,
    recipe: RecipeArgument,
    out: RunOption = None,
    set_: SetOption = None,
    smoke: SmokeOption = False,
    resume: ResumeOption = "never",
    init_from: InitOption = None,
    dry_run: DryRunOption = False,
    device: DeviceOption = "auto",
    seed: OptionalSeedOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a baseline or a Free Transformer from a recipe.

    The run's folder describes itself: recipe, manifest, metrics.jsonl, checkpoints, samples, report.html.

    $ freetf train letters-free -o runs/letters-free
    $ freetf train letters-free -o runs/quick --smoke
    $ freetf train letters-free -o runs/lr --set train.lr=3e-4 --set latent.kappa=0.25
    $ freetf train letters-free -o runs/two --set parallel.processes=2
    $ freetf train paper-1.5b-free --dry-run
    """
    from freetf_cli.config.files import load_recipe
    from freetf_cli.training.launch import launch, started_processes, stop_when_orphaned

    started = started_processes()
    overrides = [*([] if started == 1 else [f"parallel.processes={started}"]), *(set_ or [])]
    loaded = load_recipe(recipe, smoke=smoke, overrides=[*overrides, *([] if seed is None else [f"train.seed={seed}"])])
    if dry_run:
        _dry_run(loaded, recipe, device, json)
    elif out is None or str(out) == "-":
        raise InputError("no folder for the run" if out is None else "a run is a folder, it cannot go to stdout", hint="name one: -o RUN")
    elif loaded.parallel.processes > 1 and started == 1:
        raise typer.Exit(launch(context.find_root().obj, loaded.parallel.processes))
    elif loaded.parallel.processes != started:
        raise InputError(f"parallel.processes = {loaded.parallel.processes}, but {started} were started")
    else:
        from freetf_cli.training.signals import stop_on_signals

        with stop_on_signals() as stop:  # from here on, loading too
            stop_when_orphaned()
            _train(loaded, out, device, resume, init_from, stop, json=json, quiet=quiet or json)


def _dry_run(recipe: Recipe, name: str, device: str, json: bool) -> None:
    import torch

    from freetf_cli.device import resolve_device
    from freetf_cli.training.plan import plan_run
    from freetf_cli.training.start import resolve

    if recipe.model.vocab is None or recipe.model.context is None:
        recipe, _ = resolve(recipe)
    precision = recipe.train.precision
    target = torch.device("cuda") if device == "cuda" else resolve_device(device)  # a plan for a GPU needs none here
    bf16 = precision == "bf16" or (precision == "auto" and target.type == "cuda")
    known = None if device == "auto" and target.type == "cpu" else target.type  # a machine without a GPU may plan for one
    plan = plan_run(recipe, name, bf16, known)
    show(plan, json=json)


def _train(
    recipe: Recipe, out: Path, device: str, resume: str, init_from: Path | None, stop: StopRequest, *, json: bool, quiet: bool
) -> None:
    from freetf_cli.device import resolve_device
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import open_checkpoint
    from freetf_cli.training.distributed import joined

    with joined(resolve_device(device), stop) as world:
        start = _led(world, lambda: resume_from(out, resume))
        if start is not None and init_from is not None:
            raise InputError("--init-from starts a new run, --resume continues one", hint="give one of them")
        weights = None if init_from is None else _led(world, lambda: open_checkpoint(init_from, warn))
        result = run_training(
            recipe, out, device, resume=start, init_from=weights, again=resume == "auto", stop=stop, world=world, quiet=quiet
        )
    if world.leads:
        show(result, json=json)


def _led(world: World, choose: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """The checkpoint that process 0 chooses, which may repair a folder for it; then the other processes open it."""
    from freetf_cli.runs.checkpoint import Checkpoint

    chosen = choose() if world.leads else None
    folder = world.told(str(chosen.folder) if chosen else "")
    return chosen or (Checkpoint.open(Path(folder)) if folder else None)


def resume_from(out: Path, resume: str) -> Checkpoint | None:
    """The checkpoint to resume from: none (never, or auto without one), the run's newest intact one, or the named one."""
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, open_checkpoint

    if resume == "never" or (resume == "auto" and not checkpoint_folders(out)):
        return None
    if resume == "auto":
        return open_checkpoint(out, warn)
    path = Path(resume)
    if path.resolve() == out.resolve():
        return open_checkpoint(path, warn)
    if path.resolve().parent != (out / "checkpoints").resolve():
        raise InputError(
            "--resume takes a checkpoint of the run that -o names", resume, "--init-from starts a new run from another's weights"
        )
    return Checkpoint.open(path)


def run_training(
    recipe: Recipe,
    out: Path,
    device: str,
    *,
    resume: Checkpoint | None = None,
    init_from: Checkpoint | None = None,
    again: bool = False,
    stop: StopRequest,
    world: World | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train with a live display, stop cleanly when asked, and keep the run's report.html current."""
    from freetf_cli.device import resolve_device, set_threads
    from freetf_cli.report.console import warn
    from freetf_cli.report.progress import TrainingProgress
    from freetf_cli.runs.folder import current_argv
    from freetf_cli.training.distributed import own_device
    from freetf_cli.training.loop import Hooks
    from freetf_cli.training.run import train as train_recipe

    set_threads(recipe.parallel.threads)
    target = own_device(resolve_device(device))
    with TrainingProgress(quiet=quiet or not (world is None or world.leads)) as display:
        hooks = Hooks(progress=lambda progress: display.update(progress.status()), saved=write_report, warn=warn)
        return train_recipe(
            recipe,
            out,
            device=target,
            resume=resume,
            init_from=init_from,
            again=again,
            hooks=hooks,
            stop=stop,
            argv=current_argv(),
            world=world,
        )


def write_report(run: RunFolder) -> None:
    """RUN/report.html as the run stands."""
    from freetf_cli.durable import write_durably
    from freetf_cli.evaluation.summary import summarise
    from freetf_cli.report import page

    write_durably(run.report, page.html(summarise(run.path).report()))
