"""Draws bits of each factor against κ: `python scripts/sweep.py SWEEP.json PICTURE.svg`.

SWEEP.json is what `freetf probe-latent RUN… --sweep --json` prints, or a part of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from freetf_cli.records.likelihood import Estimate
from freetf_cli.report.axes import standalone
from freetf_cli.report.figures import Curve, information_by_kappa


def picture(sweep: dict[str, list[dict[str, object]]]) -> str:
    """Position and noise of all runs."""
    curves = []
    for name in ("position", "noise"):
        found = [(run["kappa"], factor) for run in sweep["runs"] for factor in run["intervention"]["factors"] if factor["factor"] == name]
        curves.append(
            Curve(name, [(kappa, Estimate(**one["information"])) for kappa, one in found], max(one["entropy"] for _, one in found))
        )
    return standalone(information_by_kappa(curves, title="I(Z; factor) by κ, bits, generated from the prior", width=760, height=340))


def main(source: str, target: str) -> None:
    Path(target).write_text(picture(json.loads(Path(source).read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
