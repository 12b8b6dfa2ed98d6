"""`freetf probe-latent`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from freetf_cli.cli.options import (
    DataOption,
    DeviceOption,
    FigureOption,
    JsonOption,
    QuietOption,
    ReportOption,
    RunsArgument,
    SeedOption,
    SplitOption,
)
from freetf_cli.cli.output import check_figure, check_report, show, write_file, write_page
from freetf_cli.errors import InputError

if TYPE_CHECKING:
    from freetf_cli.records.probing import ProbeResult
    from freetf_cli.runs.checkpoint import Checkpoint

SequencesOption = Annotated[int, typer.Option("--sequences", min=1, max=1_000_000, help="Held-out sequences that the encoder reads.")]
GroupsOption = Annotated[
    int | None, typer.Option("--groups", "-g", min=1, help="Fixed Zs in the intervention; default: 128, on a GPU 1,024.")
]
CountOption = Annotated[int | None, typer.Option("--count", "-n", min=2, help="Sequences under each Z; default: 64, on a GPU 128.")]
PromptOption = Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Prompt of the intervention; default: the task's own.")]
SweepOption = Annotated[bool, typer.Option("--sweep", help="Several runs side by side, by κ: the rate–distortion table and figure.")]


def probe_latent(
    runs: RunsArgument,
    data: DataOption = None,
    report: ReportOption = None,
    figure: FigureOption = None,
    sweep: SweepOption = False,
    split: SplitOption = None,
    sequences: SequencesOption = 2048,
    groups: GroupsOption = None,
    count: CountOption = None,
    prompt: PromptOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure what Z encodes: how many bits flow, what the decoder does with them, and which factors of the data they carry.

    Numbers come with 95 % intervals and controls; docs/probing.md explains each.

    $ freetf probe-latent runs/letters-free
    $ freetf probe-latent runs/letters-free --report probe.html
    $ freetf probe-latent runs/kappa-* --sweep --report sweep.html --figure figure4.svg
    """
    from freetf_cli.records.probing import Sweep

    check_report(report)
    check_figure(figure, report)
    checkpoints = _open(runs)
    if sweep:
        _check_same_data(runs, checkpoints)
    if figure is not None:
        _check_factors(runs, checkpoints, data)
    results = []
    for run, checkpoint in zip(runs, checkpoints, strict=True):
        result = _probe(run, checkpoint, data, split, (sequences, groups, count), prompt, device, seed, quiet=quiet or json)
        results.append(result)
        if not sweep:
            show(result, json=json)
    results.sort(key=lambda one: one.kappa)
    if sweep:
        show(Sweep(results), json=json)
    if figure is not None:
        _draw(results, figure)
    if report is not None:
        write_page(report, results[0] if len(results) == 1 else Sweep(results))


def _draw(results: Sequence[ProbeResult], figure: Path) -> None:
    """The samples of all runs as the paper's Figure 4."""
    from freetf_cli.records.probing import panels_note, sweep_panels
    from freetf_cli.report import boxes

    write_file(figure, boxes.figure(sweep_panels(results), panels_note(results)), "figure")


def _open(runs: Sequence[Path]) -> list[Checkpoint]:
    """All checkpoints before any work; a baseline is refused."""
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import open_checkpoint

    checkpoints = [open_checkpoint(run, warn) for run in runs]
    for run, checkpoint in zip(runs, checkpoints, strict=True):
        if checkpoint.recipe.latent is None:
            raise InputError("the run is a baseline: it has no Z to probe", str(run), "`freetf evaluate` and `freetf compare` take it")
    return checkpoints


def _check_same_data(runs: Sequence[Path], checkpoints: Sequence[Checkpoint]) -> None:
    """A sweep compares bits of the same factors."""
    identities = [
        (state["task"], state["params"]) if state.get("task") else state["sha256"] for state in (c.state["data"] for c in checkpoints)
    ]
    other = next((run for run, identity in zip(runs, identities, strict=True) if identity != identities[0]), None)
    if other is not None:
        raise InputError(f"--sweep is of runs on one data, and this run's is not that of {runs[0]}", str(other), "leave --sweep out")


def _check_factors(runs: Sequence[Path], checkpoints: Sequence[Checkpoint], data: Path | None) -> None:
    """A figure is of samples, and those are made only where they can be read."""
    from freetf_cli.evaluation.probe.factors import has_factors
    from freetf_cli.evaluation.run_data import open_run_data

    for run, checkpoint in zip(runs, checkpoints, strict=True):
        if not has_factors(open_run_data(checkpoint, data)):
            raise InputError("no factor of the run's data is known: there are no samples for a figure", str(run), "leave --figure out")


def _probe(
    run: Path,
    checkpoint: Checkpoint,
    data: Path | None,
    split: str | None,
    sizes: tuple[int, int | None, int | None],
    prompt: str | None,
    device: str,
    seed: int,
    *,
    quiet: bool,
) -> ProbeResult:
    from freetf_cli.device import resolve_device, set_threads
    from freetf_cli.evaluation.probe.measure import ProbeSpec, probe_latent
    from freetf_cli.evaluation.run_data import check_split, open_run_data
    from freetf_cli.report.progress import counter

    def stage(name: str, total: int) -> AbstractContextManager[Callable[..., None]]:
        return counter(name, total=total, quiet=quiet)

    set_threads(checkpoint.recipe.parallel.threads)
    source = open_run_data(checkpoint, data)
    model = checkpoint.model(resolve_device(device))
    sequences, groups, count = sizes
    chosen = split or checkpoint.recipe.eval.split
    check_split(source, chosen, checkpoint)
    spec = ProbeSpec(chosen, sequences, groups, count, prompt, seed)
    return probe_latent(checkpoint, model, source, spec, run=str(run), stage=stage)
