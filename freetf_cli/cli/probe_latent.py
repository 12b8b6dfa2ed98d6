"""`freetf probe-latent`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
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
    from freetf_cli.evaluation.probe.measure import ProbeSpec
    from freetf_cli.records.probe import ProbeResult
    from freetf_cli.runs.checkpoint import Checkpoint

SequencesOption = Annotated[int, typer.Option("--sequences", min=1, max=1_000_000, help="Held-out sequences to encode.")]
GroupsOption = Annotated[int | None, typer.Option("--groups", "-g", min=1, help="Zs of the intervention; default: 128, or 1,024 on a GPU.")]
CountOption = Annotated[
    int | None, typer.Option("--count", "-n", min=2, help="Sequences generated for each Z; default: 64, or 128 on a GPU.")
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", metavar="TEXT", help="Prompt of the intervention; default: the task's prompt.")
]
SweepOption = Annotated[bool, typer.Option("--sweep", help="Compare several runs by κ, in one rate–distortion table and figure.")]


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
    """Measure what Z encodes: its rate, its use by the decoder, and the factors of the data that it contains.

    All numbers have 95 % intervals and controls; docs/probing.md explains them.

    $ freetf probe-latent runs/letters-free
    $ freetf probe-latent runs/letters-free --report probe.html
    $ freetf probe-latent runs/kappa-* --sweep --report sweep.html --figure figure4.svg
    """
    from freetf_cli.evaluation.probe.measure import ProbeSpec
    from freetf_cli.records.probe_sweep import Sweep

    check_report(report)
    check_figure(figure, report)
    checkpoints = _open(runs)
    if sweep:
        _check_same_data(checkpoints)
    if figure is not None:
        _check_factors(checkpoints, data)
    spec = ProbeSpec(split or "", sequences, groups, count, prompt, seed)
    results = []
    for run, checkpoint in checkpoints.items():
        results.append(_probe(run, checkpoint, data, spec, device, quiet=quiet or json))
        if not sweep:
            show(results[-1], json=json)
    results.sort(key=lambda one: one.kappa)
    if sweep:
        show(Sweep(results), json=json)
    if figure is not None:
        _draw(results, figure)
    if report is not None:
        write_page(report, results[0] if len(results) == 1 else Sweep(results))


def _draw(results: Sequence[ProbeResult], figure: Path) -> None:
    """Draw the samples of all runs like the paper's Figure 4."""
    from freetf_cli.records.probe_sweep import panels_note, sweep_panels
    from freetf_cli.report import boxes

    write_file(figure, boxes.figure(sweep_panels(results), panels_note(results)), "figure")


def _open(runs: Sequence[Path]) -> dict[Path, Checkpoint]:
    """Open the checkpoint of every run; InputError for a baseline."""
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import open_checkpoint

    checkpoints = {run: open_checkpoint(run, warn) for run in runs}
    for run, checkpoint in checkpoints.items():
        if checkpoint.recipe.latent is None:
            hint = "use `freetf evaluate` or `freetf compare`"
            raise InputError("the run is a baseline: it has no Z to probe", str(run), hint)
    return checkpoints


def _check_same_data(checkpoints: Mapping[Path, Checkpoint]) -> None:
    """Refuse a sweep over runs of different data: it compares bits about the same factors."""
    data = {run: checkpoint.state["data"] for run, checkpoint in checkpoints.items()}
    identities = {run: (facts["task"], facts["params"]) if facts.get("task") else facts["sha256"] for run, facts in data.items()}
    first = next(iter(identities))
    other = next((run for run, identity in identities.items() if identity != identities[first]), None)
    if other is not None:
        raise InputError(f"--sweep needs runs with the same data, and this run's data differs from {first}'s", str(other), "omit --sweep")


def _check_factors(checkpoints: Mapping[Path, Checkpoint], data: Path | None) -> None:
    """Refuse a figure for data without known factors, for which no samples are generated."""
    from freetf_cli.evaluation.probe.factors import has_factors
    from freetf_cli.evaluation.run_data import open_run_data

    for run, checkpoint in checkpoints.items():
        if not has_factors(open_run_data(checkpoint, data)):
            raise InputError("the run's data has no known factors, so there are no samples to draw", str(run), "omit --figure")


def _probe(run: Path, checkpoint: Checkpoint, data: Path | None, spec: ProbeSpec, device: str, *, quiet: bool) -> ProbeResult:
    from freetf_cli.device import resolve_device, set_threads
    from freetf_cli.evaluation.probe.measure import probe_latent
    from freetf_cli.evaluation.run_data import open_split
    from freetf_cli.report.progress import counter

    set_threads(checkpoint.recipe.parallel.threads)
    source, split = open_split(checkpoint, data, spec.split)
    model = checkpoint.model(resolve_device(device))
    stage = partial(counter, quiet=quiet)
    return probe_latent(checkpoint, model, source, replace(spec, split=split), run=str(run), stage=stage)
