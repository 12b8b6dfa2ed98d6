"""`freetf compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freetf_cli.cli.options import (
    DataOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    ReportOption,
    SeedOption,
    SplitOption,
    complete_run,
)
from freetf_cli.cli.output import check_report, show
from freetf_cli.errors import InputError

AArgument = Annotated[
    Path, typer.Argument(metavar="A", help="The reference: a run's folder, or one checkpoint's folder.", autocompletion=complete_run)
]
BArgument = Annotated[Path, typer.Argument(metavar="B", help="The run or checkpoint to compare with A.", autocompletion=complete_run)]
SequencesOption = Annotated[int, typer.Option("--sequences", min=1, max=1_000_000, help="Held-out sequences; the same for both models.")]
SamplesOption = Annotated[
    int, typer.Option("--samples", min=1, help="Draws of Z per sequence for a Free model's importance-weighted bound.")
]
CountOption = Annotated[int, typer.Option("--count", "-n", min=0, help="Samples to show from each model.")]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", metavar="TEXT", help="Text that the samples continue; default: the task's prompt.")
]
FailIfOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="CONDITION",
        help="Exit with code 3 if B − A meets the condition, such as nll>+0.5%: a metric (nll, elbo, ce_posterior, ce_prior, kl), "
        ">, >=, < or <=, and a number of bits per token, or with % relative to A. May be repeated.",
    ),
]


def compare(
    a: AArgument,
    b: BArgument,
    data: DataOption = None,
    split: SplitOption = None,
    sequences: SequencesOption = 256,
    samples: SamplesOption = 16,
    count: CountOption = 4,
    prompt: PromptOption = None,
    fail_if: FailIfOption = None,
    report: ReportOption = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare two models: recipes, weights, held-out metrics, curves, use of Z, samples, size and speed.

    Either can be a baseline or a Free model. Both are measured on the same held-out sequences, with paired intervals of B − A. Equal
    checkpoints are not measured.

    $ freetf compare runs/a runs/b
    $ freetf compare runs/a runs/b --fail-if 'nll>+0.5%'
    $ freetf compare runs/baseline runs/free --report comparison.html
    """
    from freetf_cli.evaluation.checks import parse_checks

    checks = parse_checks(fail_if or [])
    check_report(report)
    if data is not None and not data.is_dir():
        raise InputError("no such data folder", str(data), "create one with `freetf prepare` or `freetf gen-synthetic`")

    from freetf_cli.device import resolve_device, set_threads
    from freetf_cli.evaluation.checks import raise_if_failed
    from freetf_cli.evaluation.compare import Candidate, Settings, compare
    from freetf_cli.report.console import warn
    from freetf_cli.report.progress import counter
    from freetf_cli.runs.checkpoint import open_checkpoint

    where = resolve_device(device)
    one = Candidate(str(a), open_checkpoint(a, warn))
    other = Candidate(str(b), one.checkpoint if a.resolve() == b.resolve() else open_checkpoint(b, warn))
    set_threads(one.checkpoint.recipe.parallel.threads)
    settings = Settings(data, split or one.checkpoint.recipe.eval.split, sequences, samples, count, prompt, seed, checks)
    result = compare(one, other, settings, device=where, stage=lambda what, total: counter(what, total, quiet or json))
    show(result, json=json, report=report)
    raise_if_failed(result.checks)
