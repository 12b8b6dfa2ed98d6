"""Draws the paper's Figure 4 as one SVG picture: `python scripts/figure4.py GROUPS.jsonl PICTURE.svg`.

    {"z": "shared", "texts": ["K>__________!__!_____!_!________KKKKKKKK______________________!__!", …]}

A line of GROUPS.jsonl is a box: blue for independent Z, green for one Z shared by all of its rows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from freetf_cli.records import SampleGroups
from freetf_cli.report.figure4_svg import figure4_svg
from freetf_cli.report.panels import Panel


def main(source: str, target: str) -> None:
    boxes = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    groups = [SampleGroups("", box["z"] == "shared", [box["texts"]]) for box in boxes]
    Path(target).write_text(figure4_svg([Panel("", groups)]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
