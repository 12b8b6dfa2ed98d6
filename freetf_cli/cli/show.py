"""`freetf show`."""

from __future__ import annotations

import typer

from freetf_cli.cli.options import JsonOption, RunArgument


def show(run: RunArgument, json: JsonOption = False) -> None:
    """A run at a glance: recipe, sizes, curves, checkpoints, last samples.

    $ freetf show runs/letters-free
    """
    from freetf_cli.analysis.summary import summarise
    from freetf_cli.render.show import run_summary
    from freetf_cli.results import to_json

    place = run.resolve()
    folder = place.parent.parent if place.parent.name == "checkpoints" else run  # a checkpoint's run
    summary = summarise(folder)
    if json:
        typer.echo(to_json(summary))
    else:
        run_summary(summary)
