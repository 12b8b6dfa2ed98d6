"""`freetf evaluate`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import typer

from freetf_cli.cli.options import DataOption, DeviceOption, JsonOption, QuietOption, RunArgument, SeedOption, SplitOption
from freetf_cli.cli.output import show

TaskOption = Annotated[Literal["likelihood", "answers"], typer.Option("--task", metavar="likelihood|answers", help="What to evaluate.")]
SequencesOption = Annotated[int, typer.Option("--sequences", min=1, max=1_000_000, help="Held-out sequences, the same every time.")]
SamplesOption = Annotated[
    int,
    typer.Option(
        "--samples", min=1, max=1 << 16, help="Largest number K of posterior draws for each sequence's importance-weighted bound."
    ),
]


def evaluate(
    run: RunArgument,
    task: TaskOption = "likelihood",
    data: DataOption = None,
    split: SplitOption = None,
    sequences: SequencesOption = 256,
    samples: SamplesOption = 512,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure a run on held-out data.

    likelihood: a baseline's CE; of a Free model CE with Z from the posterior and from the prior, KL, their sum (the ELBO), and the
    importance-weighted bound, which with more draws falls to the code length that is comparable with a baseline's CE.
    answers: where only a part of each row counts, as in the task blocks, the share of rows with a wrong token there.

    $ freetf evaluate runs/letters-free --task likelihood
    $ freetf evaluate runs/letters-free --task likelihood --sequences 1024 --json
    $ freetf evaluate runs/blocks-softmax --task answers --sequences 1000
    """
    from freetf_cli.device import resolve_device, set_threads
    from freetf_cli.evaluation.answers import evaluate_answers
    from freetf_cli.evaluation.likelihood import SAMPLES, evaluate_likelihood
    from freetf_cli.evaluation.run_data import check_split, open_run_data
    from freetf_cli.report.console import warn
    from freetf_cli.report.progress import counter
    from freetf_cli.runs.checkpoint import open_model

    checkpoint, model = open_model(run, resolve_device(device), warn)
    set_threads(checkpoint.recipe.parallel.threads)
    source = open_run_data(checkpoint, data)
    chosen = split or checkpoint.recipe.eval.split
    check_split(source, chosen, checkpoint)
    total = min(sequences, source.rows.size(chosen) or sequences)
    draws = [count for count in SAMPLES if count < samples] + [samples]
    measure = evaluate_answers if task == "answers" else partial(evaluate_likelihood, samples=draws)
    with counter("sequences", total=total, quiet=quiet or json) as advance:
        result = measure(checkpoint, model, source, run=str(run), split=chosen, sequences=sequences, seed=seed, advance=advance)
    show(result, json=json)
