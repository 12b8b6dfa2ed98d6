"""`freetf compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freetf_cli.cli import options
from freetf_cli.cli.output import show
from freetf_cli.errors import InputError


def compare(
    a: Annotated[
        Path,
        typer.Argument(metavar="A", help="The reference: a run's folder, or one checkpoint's folder.", autocompletion=options.complete_run),
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="The run or checkpoint to compare with A.", autocompletion=options.complete_run)],
    data: options.DataOption = None,
    split: options.SplitOption = None,
    sequences: options.SequencesOption = 256,
    samples: options.SamplesOption = 16,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="Samples to show from each model.")] = 4,
    prompt: options.PromptOption = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Exit with code 3 if B − A meets this condition, for example nll>+0.5%. It consists of a metric (nll, elbo, ce_posterior, "
            "ce_prior, kl), one of >, >=, <, <=, and a limit in bits per token, or in per cent of A with %. May be repeated.",
        ),
    ] = None,
    report: options.ReportOption = None,
    device: options.DeviceOption = "auto",
    seed: options.SeedOption = 0,
    json: options.JsonOption = False,
) -> None:
    """Compare two models: recipes, weights, held-out metrics, curves, use of Z, samples, size and speed.

    Either can be a baseline or a Free model. Both are measured on the same held-out sequences, with paired intervals of B − A. Equal
    checkpoints are not measured.

    $ freetf compare runs/a runs/b
    $ freetf compare runs/a runs/b --fail-if 'nll>+0.5%'
    $ freetf compare runs/baseline runs/free --report comparison.html
    """
    from freetf_cli.device import resolve_device, set_threads
    from freetf_cli.evaluation.checks import parse_checks, raise_if_failed
    from freetf_cli.evaluation.compare import Candidate, Settings, compare
    from freetf_cli.report.console import warn
    from freetf_cli.report.progress import counter
    from freetf_cli.runs.checkpoint import open_checkpoint

    checks = parse_checks(fail_if or [])
    if data is not None and not data.is_dir():
        raise InputError("no such data folder", str(data), "create one with `freetf prepare` or `freetf gen-synthetic`")
    where = resolve_device(device)
    one = Candidate(str(a), open_checkpoint(a, warn))
    other = Candidate(str(b), one.checkpoint if a.resolve() == b.resolve() else open_checkpoint(b, warn))
    set_threads(one.checkpoint.recipe.parallel.threads)
    settings = Settings(data, split or one.checkpoint.recipe.eval.split, sequences, samples, count, prompt, seed, checks)
    result = compare(one, other, settings, device=where, stage=counter)
    show(result, json=json, report=report)
    raise_if_failed(result.checks)
