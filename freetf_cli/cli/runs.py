"""`freetf runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freetf_cli.cli.output import Described


def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Search here and below. Default: runs/ if it exists, else the current folder."),
    ] = None,
) -> Described:
    """List the runs below a folder, the newest first: recipe, state, step, held-out costs, time.

    The state is that of `freetf show`; a run that cannot be read is listed as damaged, with the reason below the table. Costs are those of
    the last evaluation: CE of a baseline, CE + KL of a Free model, in bits.

    $ freetf runs
    $ freetf runs runs/sweep --json
    """
    from freetf_cli.evaluation.run_list import list_runs

    return list_runs(folder or (Path("runs") if Path("runs").is_dir() else Path()))
