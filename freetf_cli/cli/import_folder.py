"""`freetf import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freetf_cli.cli.output import Described


def import_folder(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder saved by transformers or exported by freetf.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="A new run folder.")],
    separator_token: Annotated[
        str | None,
        typer.Option(metavar="TOKEN", help="The special token that separates documents; default: the folder's bos_token or eos_token."),
    ] = None,
) -> Described:
    """Make a run from a Llama-style Hugging Face folder, to sample from, evaluate, train further, or graft a latent onto.

    RoPE scaling, biases, sliding windows and other architectures are refused. The run has a recipe; set the data and the number of steps
    to train it. A Free model that starts from it with latent.table_std=0 has the same logits at first, whatever Z is.

    $ freetf import llama/ -o runs/llama
    $ freetf train runs/llama/recipe.toml -o runs/more --init-from runs/llama --set data.dir=data/books --set train.steps=500
    """
    from freetf_cli.exchange.importing import import_folder as read
    from freetf_cli.training.start import current_argv

    return read(folder, out, separator_token=separator_token, argv=current_argv())
