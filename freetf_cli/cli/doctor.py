"""`freetf doctor`."""

from __future__ import annotations

from freetf_cli.cli.options import JsonOption
from freetf_cli.cli.output import show


def doctor(json: JsonOption = False) -> None:
    """Check what this machine has for freetf, and print the command that fixes each lack.

    A lack is not an error, because there is a slower way around each: the exit code is 0 either way.

    $ freetf doctor
    """
    from freetf_cli.device import findings
    from freetf_cli.records import Findings

    show(Findings(findings()), json=json)
