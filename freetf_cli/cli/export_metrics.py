"""`freetf export-metrics`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from freetf_cli.cli import options
from freetf_cli.cli.output import Described


def export_metrics(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", autocompletion=options.complete_run)],
    to: Annotated[Literal["tensorboard", "trackio", "wandb"], typer.Option(metavar="tensorboard|trackio|wandb", help="The tracker.")],
    follow: Annotated[bool, typer.Option("--follow", help="Keep writing new records until training ends.")] = False,
) -> Described:
    """Export a run's metrics to an experiment tracker: TensorBoard, Trackio, or Weights & Biases.

    metrics.jsonl is not changed. An export replaces an earlier one of the same run. By default everything stays on this machine:
    TensorBoard's files are in RUN/tensorboard, those of Weights & Biases in RUN/wandb (offline, for `wandb sync`; WANDB_MODE=online
    uploads them), and Trackio's in its local project freetf. WANDB_PROJECT and TRACKIO_PROJECT name other projects.

    $ freetf export-metrics runs/letters-free --to tensorboard
    $ freetf export-metrics runs/letters-free --to trackio --follow
    """
    from freetf_cli.exchange import trackers

    return trackers.export_metrics(run, to, follow=follow)
