"""Draws the bits of each factor against κ: `python scripts/sweep.py SWEEP.json PICTURE.svg`.

SWEEP.json is the output of `freetf probe-latent RUN… --sweep --json`, or a part of it.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from freetf_cli.records.probe_sweep import Sweep, information_chart
from freetf_cli.report import charts


def load(path: Path) -> Sweep:
    """A sweep from its JSON, which has null for the end of an interval that is not known."""

    def known(found: dict[str, Any]) -> dict[str, Any]:
        return {name: math.nan if value is None and name in ("low", "high") else value for name, value in found.items()}

    return TypeAdapter(Sweep).validate_python(json.loads(path.read_bytes(), object_hook=known))


def main(source: str, target: str) -> None:
    chart = information_chart(load(Path(source)).runs, "I(Z; factor) by κ, bits, generated from the prior", ["position", "noise"])
    Path(target).write_text(charts.standalone(charts.svg(chart, 760)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
