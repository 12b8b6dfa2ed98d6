"""`freetf find-codes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freetf_cli.cli import options
from freetf_cli.cli.output import Described
from freetf_cli.errors import InputError


def find_codes(
    run: options.RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the codes, one file of Zs for each value.")],
    label: Annotated[str | None, typer.Option(metavar="NAME", help="The label or factor, if documents have several.")] = None,
    data: options.DataOption = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="The split to learn from.")] = "train",
    sequences: Annotated[int, typer.Option(min=1, max=1_000_000, help="Documents to learn from.")] = 2048,
    count: Annotated[int, typer.Option("--count", "-n", min=20, max=100_000, help="Zs for each value, and texts to test them.")] = 128,
    strength: Annotated[
        float, typer.Option(min=0, max=1000, help="Sharpness of the bits' distribution; 1: as in documents with the label, 0: the prior.")
    ] = 4.0,
    prompt: options.PromptOption = None,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens of each test text, prompt included; the classifier reads longer texts better.")
    ] = 256,
    device: options.DeviceOption = "auto",
    seed: options.SeedOption = 0,
) -> Described:
    """Find the codes of Z for the values of a label, and measure whether they steer what is written.

    Labels are those of the run's data, or of other documents that were prepared with the run's tokenizer (--data). DIR/VALUE.jsonl holds
    the Zs of a value, for `freetf sample --z`.

    $ freetf find-codes runs/reviews -o codes
    $ freetf sample runs/reviews --z codes/pos.jsonl --prompt 'This film' --count 4
    """
    from freetf_cli.device import resolve_device, set_threads
    from freetf_cli.evaluation.run_data import check_split, open_run_data
    from freetf_cli.evaluation.steering import CodesSpec
    from freetf_cli.evaluation.steering import find_codes as find
    from freetf_cli.report.console import warn
    from freetf_cli.report.progress import counter
    from freetf_cli.runs.checkpoint import open_model

    if out.exists() and not out.is_dir():
        raise InputError("the output is not a folder", str(out), "name a folder: -o DIR")
    checkpoint, model = open_model(run, resolve_device(device), warn)
    set_threads(checkpoint.recipe.parallel.threads)
    source = open_run_data(checkpoint, data, documents=True)
    check_split(source, split)
    held_out = checkpoint.recipe.eval.split
    spec = CodesSpec(label, split, held_out, sequences, count, strength, prompt, max_tokens, seed)
    return find(checkpoint, model, source, spec, out, run=str(run), stage=counter)
