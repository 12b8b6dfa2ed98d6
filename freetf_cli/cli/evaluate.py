"""`freetf evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from freetf_cli.cli.options import DataOption, DeviceOption, RunArgument, SamplesOption, SeedOption, SequencesOption, SplitOption, completer
from freetf_cli.cli.output import Described
from freetf_cli.evaluation.metrics import describe, metric_names


def evaluate(
    run: RunArgument,
    task: Annotated[
        str,
        typer.Option(metavar="|".join(metric_names()), help="The metric to compute.", autocompletion=completer(metric_names())),
    ] = "likelihood",
    data: DataOption = None,
    split: SplitOption = None,
    sequences: SequencesOption = 256,
    samples: SamplesOption = 512,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
) -> Described:
    """Measure a run on held-out data.

    {metrics}

    $ freetf evaluate runs/letters-free --task likelihood
    $ freetf evaluate runs/letters-free --task likelihood --sequences 1024 --json
    $ freetf evaluate runs/blocks-softmax --task answers --sequences 1000
    """
    from freetf_cli.device import resolve_device, set_threads
    from freetf_cli.evaluation.metrics import Request, load
    from freetf_cli.evaluation.run_data import open_split
    from freetf_cli.report.console import warn
    from freetf_cli.report.progress import counter
    from freetf_cli.runs.checkpoint import open_model

    measure = load(task)
    checkpoint, model = open_model(run, resolve_device(device), warn)
    set_threads(checkpoint.recipe.parallel.threads)
    source, chosen = open_split(checkpoint, data, split)
    total = min(sequences, source.rows.size(chosen) or sequences)
    with counter("sequences", total=total) as advance:
        return measure(checkpoint, model, source, Request(str(run), chosen, sequences, samples, seed, advance))


evaluate.__doc__ = str(evaluate.__doc__).replace("{metrics}", "\n\n    ".join(map(describe, metric_names())))
