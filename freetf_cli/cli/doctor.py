"""`freetf doctor`."""

from __future__ import annotations

from freetf_cli.cli.output import Described


def doctor() -> Described:
    """Check what this machine offers to freetf, and print the command that installs what is missing.

    Everything that is missing has a slower fallback, so the exit code is always 0.

    $ freetf doctor
    """
    from freetf_cli.device import findings
    from freetf_cli.records import Findings

    return Findings(findings())
