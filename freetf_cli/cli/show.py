"""`freetf show`."""

from __future__ import annotations

from freetf_cli.cli.options import RunArgument
from freetf_cli.cli.output import Described


def show(run: RunArgument) -> Described:
    """Show a run at a glance: recipe, sizes, curves, checkpoints, last samples.

    Its status is running, done, stopped (by a signal, with all steps saved), failed (with an error), or interrupted: its process ended
    without a word, as after a kill or a power cut. `freetf train … --resume auto` continues all but the first two.

    $ freetf show runs/letters-free
    """
    from freetf_cli.evaluation.summary import summarise
    from freetf_cli.report.console import warn
    from freetf_cli.runs.checkpoint import open_checkpoint

    place = run.resolve()
    named = place.parent.name == "checkpoints"
    folder = place.parent.parent if named else run
    summary = summarise(folder)
    if named or summary.checkpoints:
        open_checkpoint(run, warn)  # a damaged checkpoint is an error if the user named it, else a warning
    return summary
