"""`freetf show`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from freetf_cli.cli.options import JsonOption, RunArgument
from freetf_cli.cli.output import Described
from freetf_cli.errors import ExitCode, InputError

if TYPE_CHECKING:
    from pathlib import Path


def show(
    run: RunArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="Redraw whenever the run changes, until it ends; with --json, print an object each time.")
    ] = False,
    json: JsonOption = False,
) -> Described | None:
    """Show a run at a glance: recipe, sizes, curves, checkpoints, last samples.

    Its status is running, done, stopped (by a signal, with all steps saved), failed (with an error), or interrupted (its process
    ended without recording why, as after a kill or a power cut). `freetf train … --resume auto` continues all but the first two.

    $ freetf show runs/letters-free
    $ freetf show runs/letters-free --watch
    """
    from freetf_cli.evaluation.summary import summarise
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import open_checkpoint

    place = run.resolve()
    named = place.parent.name == "checkpoints"
    folder = place.parent.parent if named else run
    if watch:
        _watch(folder, json)
        return None
    summary = summarise(folder)
    if named or summary.checkpoints:
        open_checkpoint(run, warn)  # a damaged checkpoint is an error if the user named it, else a warning
    return summary


def _watch(run: Path, json: bool) -> None:
    """Show a run while it is training. Ctrl-C ends the display without a message."""
    from freetf_cli.evaluation.summary import watch
    from freetf_cli.records import to_json
    from freetf_cli.report import terminal

    if not json and not sys.stdout.isatty():
        raise InputError("--watch needs a terminal, and stdout is not one", hint="omit it, or add --json to print an object at each change")
    try:
        if json:
            for summary in watch(run):
                typer.echo(to_json(summary))
        else:
            terminal.watch(summary.report() for summary in watch(run))
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
