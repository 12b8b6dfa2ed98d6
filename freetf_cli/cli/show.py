"""`freetf show`."""

from __future__ import annotations

import typer

from freetf_cli.cli.options import JsonOption, RunArgument


def show(run: RunArgument, json: JsonOption = False) -> None:
    """A run at a glance: recipe, sizes, curves, checkpoints, last samples.

    $ freetf show runs/letters-free
    """
    from freetf_cli.evaluation.summary import summarise
    from freetf_cli.records import to_json
    from freetf_cli.report.console import warn
    from freetf_cli.report.show import run_summary
    from freetf_cli.runs.checkpoint import open_checkpoint

    place = run.resolve()
    named = place.parent.name == "checkpoints"
    folder = place.parent.parent if named else run  # a checkpoint's run
    summary = summarise(folder)
    if named or summary.checkpoints:
        open_checkpoint(run, warn)  # a damaged one that was named is an error; among those of a run it is a warning
    if json:
        typer.echo(to_json(summary))
    else:
        run_summary(summary)
