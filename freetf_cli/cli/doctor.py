"""`freetf doctor`."""

from __future__ import annotations

from freetf_cli.cli.output import Described


def doctor() -> Described:
    """Check what this machine offers to freetf, and print the command that installs what is missing.

    The exit code is always 0: the extras are needed only for what stands beside them, and everything else has a slower way.

    $ freetf doctor
    """
    from freetf_cli.device import findings
    from freetf_cli.records import Findings

    return Findings(findings())
