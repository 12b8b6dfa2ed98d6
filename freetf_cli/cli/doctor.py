"""`freetf doctor`."""

from __future__ import annotations

import dataclasses

import typer

from freetf_cli.cli.options import JsonOption
from freetf_cli.records import to_json


def doctor(json: JsonOption = False) -> None:
    """Tell what this machine has for freetf, and for each lack the command that mends it.

    A lack is no error (there is a slower way around each), so the exit code is 0 either way.

    $ freetf doctor
    """
    from freetf_cli.device import findings

    found = findings()
    if json:
        typer.echo(to_json({"findings": [dataclasses.asdict(finding) for finding in found]}))
        return
    from freetf_cli.report import terminal

    terminal.findings(found)
