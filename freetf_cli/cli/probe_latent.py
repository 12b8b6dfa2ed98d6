"""`freetf probe-latent`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from freetf_cli.cli import options
from freetf_cli.cli.failures import as_failure
from freetf_cli.cli.output import show, writable, write_file, write_page
from freetf_cli.errors import FreetfError, InputError, Interrupted, Stopped

if TYPE_CHECKING:
    from freetf_cli.evaluation.probe.measure import ProbeSpec
    from freetf_cli.records.probe import ProbeResult
    from freetf_cli.runs.checkpoint import Checkpoint

T = TypeVar("T")


def probe_latent(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Folders of runs or checkpoints.", autocompletion=options.complete_run)
    ],
    data: options.DataOption = None,
    report: options.ReportOption = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Draw the samples like the paper's Figure 4, one panel per run.", callback=writable),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Compare several runs by κ, in one rate–distortion table and figure.")] = False,
    split: options.SplitOption = None,
    sequences: options.SequencesOption = 2048,
    groups: Annotated[
        int | None,
        typer.Option("--groups", "-g", min=1, help="Number of Zs that are drawn from the prior; default: 128, or 1,024 on a GPU."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=2, help="Sequences generated for each Z; default: 64, or 128 on a GPU.")
    ] = None,
    prompt: options.PromptOption = None,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens of each generated sequence, prompt included; classifiers of labels read longer texts better.")
    ] = 256,
    device: options.DeviceOption = "auto",
    seed: options.SeedOption = 0,
    json: options.JsonOption = False,
) -> None:
    """Measure what Z encodes: its rate, its use by the decoder, and the factors of the data that it contains.

    Every estimate has a 95 % interval, a control, or both; docs/probing.md explains them.

    $ freetf probe-latent runs/letters-free
    $ freetf probe-latent runs/letters-free --report probe.html
    $ freetf probe-latent runs/kappa-* --sweep --report sweep.html --figure figure4.svg
    """
    from freetf_cli.evaluation.probe.measure import ProbeSpec
    from freetf_cli.records.probe_sweep import Sweep, panels_note, sweep_panels
    from freetf_cli.report import boxes

    failed: dict[Path, FreetfError] = {}
    checkpoints = _each(runs, _open, failed)
    if sweep:
        _check_same_data(checkpoints)
    if figure is not None:
        _check_figure(figure, report, checkpoints, data)
    spec = ProbeSpec(split or "", sequences, groups, count, prompt, seed, max_tokens)

    def probe(run: Path) -> ProbeResult:
        result = _probe(run, checkpoints[run], data, spec, device)
        if not sweep:
            show(result, json=json)
        return result

    results = sorted(_each(checkpoints, probe, failed).values(), key=lambda one: one.kappa)
    if sweep:
        show(Sweep(results), json=json)
    if figure is not None:
        write_file(figure, boxes.figure(sweep_panels(results), panels_note(results)), "figure")
    if report is not None:
        write_page(report, results[0] if len(results) == 1 else Sweep(results))
    if failed:
        raise FreetfError(f"{len(failed)} of {len(results) + len(failed)} runs were not measured: {', '.join(map(str, failed))}")


def _each(runs: Iterable[Path], work: Callable[[Path], T], failed: dict[Path, FreetfError]) -> dict[Path, T]:
    """The result of each run. A run that fails is named in a warning and in `failed`; its error is raised if no run is left."""
    from freetf_cli.report.console import warn

    done: dict[Path, T] = {}
    errors: dict[Path, FreetfError] = {}
    for run in runs:
        try:
            done[run] = work(run)
        except (Interrupted, Stopped, BrokenPipeError):
            raise
        except Exception as error:
            errors[run] = as_failure(error, ())
            errors[run].where = errors[run].where or str(run)
    if not done:
        raise next(iter(errors.values()))
    for run, failure in errors.items():
        warn(f"{run} is left out: {failure}")
    failed.update(errors)
    return done


def _open(run: Path) -> Checkpoint:
    """The checkpoint of a run; InputError for a baseline."""
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(run, warn)
    if checkpoint.recipe.latent is None:
        raise InputError("the run is a baseline: it has no Z to probe", str(run), "use `freetf evaluate` or `freetf compare`")
    return checkpoint


def _check_same_data(checkpoints: Mapping[Path, Checkpoint]) -> None:
    """Refuse a sweep over runs of different data: it compares bits about the same factors."""
    data = {run: checkpoint.state["data"] for run, checkpoint in checkpoints.items()}
    identities = {run: (facts["task"], facts["params"]) if facts.get("task") else facts["sha256"] for run, facts in data.items()}
    first, *others = identities
    other = next((run for run in others if identities[run] != identities[first]), None)
    if other is not None:
        raise InputError(f"--sweep needs runs with the same data, and this run's data differs from {first}'s", str(other), "omit --sweep")


def _check_figure(figure: Path, report: Path | None, checkpoints: Mapping[Path, Checkpoint], data: Path | None) -> None:
    """Refuse a figure that is no SVG or is the report, and one for data without known factors, for which no samples are generated."""
    from freetf_cli.evaluation.probe.factors import has_factors
    from freetf_cli.evaluation.run_data import open_run_data

    if figure.suffix.lower() != ".svg":
        raise InputError(f"--figure writes an SVG, not {figure.suffix or 'a file without an ending'}", str(figure), "name it FILE.svg")
    if report is not None and os.path.realpath(figure) == os.path.realpath(report):
        raise InputError("the figure and the report are the same file", str(figure), "name two files: --figure FILE.svg --report FILE.html")
    for run, checkpoint in checkpoints.items():
        if not has_factors(open_run_data(checkpoint, data)):
            raise InputError("the run's data has no known factors, so there are no samples to draw", str(run), "omit --figure")


def _probe(run: Path, checkpoint: Checkpoint, data: Path | None, spec: ProbeSpec, device: str) -> ProbeResult:
    from freetf_cli.device import resolve_device, set_threads
    from freetf_cli.evaluation.probe.measure import probe_latent
    from freetf_cli.evaluation.run_data import open_split
    from freetf_cli.report.progress import counter

    set_threads(checkpoint.recipe.parallel.threads)
    source, split = open_split(checkpoint, data, spec.split)
    model = checkpoint.model(resolve_device(device))
    return probe_latent(checkpoint, model, source, replace(spec, split=split), run=str(run), stage=counter)
