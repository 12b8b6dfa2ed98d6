"""`freetf export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from freetf_cli.cli.options import DeviceOption, RunArgument
from freetf_cli.cli.output import Described
from freetf_cli.errors import InputError


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="A new folder.")],
    to: Annotated[Literal["hf"], typer.Option("--to", metavar="hf", help="hf: a folder that Hugging Face transformers loads.")] = "hf",
    device: DeviceOption = "cpu",
) -> Described:
    """Export a run as a Hugging Face folder, and check its logits against the run's.

    A baseline becomes a Llama. A Free Transformer comes with its own code: load it with trust_remote_code=True, and pass z or z_seed to
    generate. Weights are float32, in files of at most 5 GB. If transformers is installed, it computes the folder's logits for the check.

    $ freetf export runs/letters-free --to hf -o hf/letters-free
    """
    if str(out) == "-":
        raise InputError("a Hugging Face model is a folder and cannot go to stdout", hint="name a folder: -o DIR")
    from freetf_cli.device import resolve_device
    from freetf_cli.exchange.huggingface import export as write
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import open_model
    from freetf_cli.runs.folder import run_of

    checkpoint, model = open_model(run, resolve_device(device), warn)
    source = run_of(checkpoint.folder)
    if source is None:
        return write(checkpoint, model, out)
    return write(checkpoint, model, out, manifest=source.manifest(), held_out=source.held_out_metrics(checkpoint.step))
