"""`freetf reproduce`: train a run again from its manifest, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from freetf_cli.cli import options
from freetf_cli.cli.output import show
from freetf_cli.errors import CheckFailed, InputError


def reproduce(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", autocompletion=options.complete_run)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder of the repetition. Default: RUN-again, beside the run.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Train and compare only the first N steps. Default: all steps.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Largest relative difference of held-out losses, such as 0.01; 0: everything must be bitwise equal."
        ),
    ] = None,
    resume: Annotated[
        Literal["never", "auto"],
        typer.Option(metavar="never|auto", help="auto: continue the repetition in DIR; if it is complete, only compare again."),
    ] = "never",
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"] | None,
        typer.Option(metavar="auto|cpu|cuda|mps", help="Device to train on. Default: the run's."),
    ] = None,
    json: options.JsonOption = False,
) -> None:
    """Train a run again, with its recipe, seed and data, and compare metrics.jsonl and the last weights with the original.

    The data must have the hash in the manifest. Everything must be bitwise equal on the same kind of CPU with the same torch version and
    number of processes (the number of threads is set to the run's), and on the same GPU with train.deterministic. Otherwise held-out
    losses must agree within 1 %. If they do not, the exit code is 3 and the first difference is printed.

    $ freetf reproduce runs/letters-free
    $ freetf reproduce runs/letters-free -o runs/check --steps 100
    """
    from freetf_cli.cli.train import run_training
    from freetf_cli.device import resolve_device
    from freetf_cli.evaluation.reproduction import compare_runs
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import checkpoint_folders, folder_step
    from freetf_cli.runs.folder import RunFolder
    from freetf_cli.training.elastic import is_main_process, launch, started_processes
    from freetf_cli.training.reproduce import plan_repetition
    from freetf_cli.training.signals import stop_on_signals

    original, started, again = RunFolder.open(run), started_processes(), _folder(run, out)
    processes, where = original.recipe().parallel.processes, resolve_device(device or _device_of(original.manifest()))
    if processes > 1 and started == 1:
        raise typer.Exit(launch(context.find_root().obj, processes))
    with stop_on_signals(then_ignore=started > 1) as stop:
        plan = plan_repetition(run, where, processes, steps=steps, tolerance=tolerance, warn=warn)
        done = max(map(folder_step, checkpoint_folders(again)), default=0) if resume == "auto" else 0
        start, how = None if done else plan.init_from, resume
        for recipe, until in plan.recipes(done):
            run_training(recipe, plan.name, again, where.type, stop, resume=how, init_from=start, longer=True, until=until)
            start, how = None, "auto"
    if is_main_process():
        result = compare_runs(run, again, plan.steps, plan.terms)
        show(result, json=json)
        if result.first is not None:
            raise CheckFailed(f"the run was not reproduced: the first difference is {result.first.text()}", str(again))


def _folder(run: Path, out: Path | None) -> Path:
    """The folder of the repetition."""
    named = run.resolve() if run.name in ("", "..") else run
    again = out or named.with_name(f"{named.name}-again")
    if again.resolve() == run.resolve():
        raise InputError("the repetition needs a folder of its own", str(again), "choose another -o")
    return again


def _device_of(manifest: dict[str, object]) -> str:
    found = manifest.get("device")
    return str(found.get("device") or "auto") if isinstance(found, dict) else "auto"
