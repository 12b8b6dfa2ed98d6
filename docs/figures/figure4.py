"""Draws the paper's Figure 4 as one SVG picture: `python docs/figures/figure4.py GROUPS.jsonl PICTURE.svg`.

    {"z": "shared", "texts": ["K>__________!__!_____!_!________KKKKKKKK______________________!__!", …]}

A line of GROUPS.jsonl is a box: blue for independent Z, green for one Z shared by all of its rows. The picture names no font
that has to be fetched, holds no link and no script, and follows the reader's light or dark setting.
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path

from freetf_cli.render.rows import box_title, parts

LINE, CHARACTER, PAD, GAP = 17, 7.23, 12, 14
STYLE = """
text { font: 12px ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; white-space: pre; fill: #1d2024 }
.title { font-weight: 600 } .independent { fill: #f5f8fe; stroke: #2b62b8 } .shared { fill: #f4faf5; stroke: #2b7a3d }
.t-independent { fill: #2b62b8 } .t-shared { fill: #2b7a3d }
.s-prompt { fill: #5d636b } .s-blank { fill: #b9bdc3 } .s-noise { fill: #c22f2f; font-weight: 700 }
.s-target, .s-wrong { fill: #8b2f7f; font-weight: 700 } .s-wrong { text-decoration: underline }
@media (prefers-color-scheme: dark) {
  .independent { fill: #181d27; stroke: #7aa7f0 } .shared { fill: #172019; stroke: #6fc282 }
  .t-independent { fill: #7aa7f0 } .t-shared { fill: #6fc282 } text { fill: #e4e5e7 }
  .s-prompt { fill: #9aa1aa } .s-blank { fill: #4d545d } .s-noise { fill: #f07b74 } .s-target, .s-wrong { fill: #e79adf }
}
"""


def picture(groups: list[dict[str, object]]) -> str:
    """All boxes, one below the other."""
    boxes, top, width = [], 1.0, 0.0
    for group in groups:
        rows = [str(text) for text in group["texts"]]
        box_width = 2 * PAD + CHARACTER * max(map(len, rows))
        height = 2 * PAD + LINE * len(rows) + 5
        boxes.append(box(str(group["z"]), rows, top, box_width, height))
        top, width = top + height + GAP, max(width, box_width)
    size = f"0 0 {width + 2:.0f} {top - GAP + 1:.0f}"
    name = "Samples of a Free Transformer: one group with independent Z, the others with one Z a group"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img" aria-label="{name}">'
    return f"{head}\n<style>{STYLE}</style>\n{''.join(boxes)}</svg>\n"


def box(z: str, rows: list[str], top: float, width: float, height: float) -> str:
    """One group in its frame."""
    frame = f'<rect class="{z}" x="1" y="{top:g}" width="{width:.1f}" height="{height:g}" rx="6" stroke-width="1.5"/>\n'
    lines = [f'<text class="title t-{z}" x="{PAD}" y="{top + PAD + 8:g}">{box_title(shared=z == "shared", latent=True)}</text>\n']
    for number, row in enumerate(rows, start=1):
        pieces = "".join(f'<tspan class="s-{kind}">{escape(piece)}</tspan>' for piece, kind in parts(row))
        length = CHARACTER * len(row)
        place = f'x="{PAD}" y="{top + PAD + 8 + LINE * number:g}" textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs"'
        lines.append(f'<text {place} xml:space="preserve">{pieces}</text>\n')
    return frame + "".join(lines)


def main(source: str, target: str) -> None:
    lines = Path(source).read_text(encoding="utf-8").splitlines()
    Path(target).write_text(picture([json.loads(line) for line in lines]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
