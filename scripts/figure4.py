"""Draws the paper's Figure 4 as one SVG picture: `python scripts/figure4.py BOXES.jsonl PICTURE.svg`.

    {"z": "shared", "texts": ["K>__________!__!_____!_!________KKKKKKKK______________________!__!", …]}

Each line of BOXES.jsonl is a box: blue for independent Z, green for one Z that all of its rows share. A line
{"title": "κ = 1/8 bit per token", "measured": ["valid 99.7 % [99.6, 99.7]"]} begins a panel, {"note": "…"} is written below all panels.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from freetf_cli.records.samples import SampleGroups
from freetf_cli.report.blocks import Samples
from freetf_cli.report.boxes import figure
from freetf_cli.tasks import spans_by_text


def main(source: str, target: str) -> None:
    panels, note = [], ""
    for line in Path(source).read_text(encoding="utf-8").splitlines():
        part = json.loads(line)
        if "note" in part:
            note = part["note"]
        elif "title" in part:
            panels.append(Samples([], part["title"], part["measured"]))
        else:
            panels = panels or [Samples([])]
            boxes = SampleGroups("", part["z"] == "shared", [part["texts"]], spans=spans_by_text("letters", {}, part["texts"])).boxes()
            panels[-1] = replace(panels[-1], boxes=[*panels[-1].boxes, *boxes])
    Path(target).write_text(figure(panels, note), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
