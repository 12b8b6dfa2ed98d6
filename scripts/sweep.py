"""Draws the bits of each factor against κ: `python scripts/sweep.py SWEEP.json PICTURE.svg`.

SWEEP.json is the output of `freetf probe-latent RUN… --sweep --json`, or a part of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import TypeAdapter

from freetf_cli.records.probe_sweep import Sweep, information_chart
from freetf_cli.report import charts


def main(source: str, target: str) -> None:
    sweep = TypeAdapter(Sweep).validate_json(Path(source).read_bytes())
    chart = information_chart(sweep.runs, "I(Z; factor) by κ, bits, generated from the prior", ["position", "noise"])
    Path(target).write_text(charts.standalone(charts.svg(chart, 760)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
