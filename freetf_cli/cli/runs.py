"""`freetf runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freetf_cli.cli.output import Described


def runs(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Folder to search, with its subfolders. Default: runs/ if it exists, else the current folder."),
    ] = None,
) -> Described:
    """List the runs below a folder, newest first, with recipe, state, step, held-out cost and time.

    The state is the one that `freetf show` gives. A run that cannot be read is listed as damaged, with the reason below the table. The
    held-out cost is from the last evaluation, in bits: CE for a baseline, CE + KL for a Free model.

    $ freetf runs
    $ freetf runs runs/sweep --json
    """
    from freetf_cli.evaluation.run_list import list_runs

    return list_runs(folder or (Path("runs") if Path("runs").is_dir() else Path()))
