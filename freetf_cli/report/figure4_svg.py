"""The paper's Figure 4 as one SVG picture: panels two by two, in each a blue box (independent Z) and green ones (one Z a box).

The picture names no font that has to be fetched, holds no link and no script, and follows the reader's light or dark setting.
Lengths are in pixels, widths of text in columns of the monospaced font.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from freetf_cli.records import SampleGroups
from freetf_cli.report.axes import MARGIN, label
from freetf_cli.report.panels import Panel
from freetf_cli.report.rows import Part, box_title, is_letters, parts

LINE, CHARACTER, PAD, GAP = 17, 7.23, 12, 14  # CHARACTER: a column's width in 12 px
HEADING, HEADING_CHARACTER = 20, 9.4
TOLD, TOLD_CHARACTER = 15, 6.63
PANEL_GAP = 28
ROW_GAP = 6  # between rows of running text, which take several lines
RUNNING = 66  # columns of running text
LEAST = 340  # width of a panel with a title or numbers, where its rows are short

# The colours are those of render/style.py, in full: not every program that draws SVG knows CSS variables.
FIGURE4_CSS = """
.figure4 text { font: 12px ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; white-space: pre; fill: #1d2024 }
.figure4 .title { font-weight: 600 } .figure4.alone { background: #fdfdfb } .figure4 .page { fill: #fdfdfb }
.figure4 .heading { font: 600 15px system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif }
.figure4 .told { font-size: 11px; fill: #5d636b }
.figure4 .independent { fill: #f5f8fe; stroke: #2b62b8 } .figure4 .shared { fill: #f4faf5; stroke: #2b7a3d }
.figure4 .t-independent { fill: #2b62b8 } .figure4 .t-shared { fill: #2b7a3d }
.figure4 .s-prompt { fill: #5d636b } .figure4 .s-blank { fill: #b9bdc3 } .figure4 .s-noise { fill: #c22f2f; font-weight: 700 }
.figure4 .s-target, .figure4 .s-wrong { fill: #8b2f7f; font-weight: 700 } .figure4 .s-wrong { text-decoration: underline }
@media (prefers-color-scheme: dark) {
  .figure4 text { fill: #e4e5e7 } .figure4.alone { background: #15171a } .figure4 .page { fill: #15171a }
  .figure4 .told { fill: #9aa1aa }
  .figure4 .independent { fill: #181d27; stroke: #7aa7f0 } .figure4 .shared { fill: #172019; stroke: #6fc282 }
  .figure4 .t-independent { fill: #7aa7f0 } .figure4 .t-shared { fill: #6fc282 }
  .figure4 .s-prompt { fill: #9aa1aa } .figure4 .s-blank { fill: #4d545d } .figure4 .s-noise { fill: #f07b74 }
  .figure4 .s-target, .figure4 .s-wrong { fill: #e79adf }
}
"""

Line = list[tuple[str, Part]]  # pieces of one line and what each is


@dataclass(frozen=True)
class _Box:
    """One group: its rows, each in one line or more."""

    kind: str
    title: str
    rows: list[list[Line]]
    gap: int  # between rows

    @property
    def width(self) -> float:
        return 2 * PAD + CHARACTER * max(_columns(line) for row in self.rows for line in row)

    @property
    def height(self) -> float:
        return 2 * PAD + LINE * sum(map(len, self.rows)) + self.gap * (len(self.rows) - 1) + 5


def figure4_svg(panels: Sequence[Panel], *, note: str = "", columns: int = 2, latent: bool = True) -> str:
    """The picture as a file of its own. note: small type below all panels. latent: False for a baseline."""
    body, width, height = _all(panels, note, columns, latent)
    place = f'x="{-MARGIN}" y="{-MARGIN}" width="{width + 2 * MARGIN:.0f}" height="{height + 2 * MARGIN:.0f}"'
    size = f"{-MARGIN} {-MARGIN} {width + 2 * MARGIN:.0f} {height + 2 * MARGIN:.0f}"
    # The ground as CSS fills a window of any shape; as a rectangle it is there where an SVG element can have no background.
    ground = f'\n<style>{FIGURE4_CSS}</style>\n<rect class="page" {place}/>\n'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="figure4 alone" viewBox="{size}" {_name(panels)}>{ground}{body}</svg>\n'


def figure4_inline(panels: Sequence[Panel], *, note: str = "", columns: int = 2, latent: bool = True) -> str:
    """The picture within a page that has FIGURE4_CSS; no larger than life there."""
    body, width, height = _all(panels, note, columns, latent)
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="figure4" {size} {_name(panels)}>{body}</svg>'


def _all(panels: Sequence[Panel], note: str, columns: int, latent: bool) -> tuple[str, float, float]:
    """What is drawn, its width and its height. Panels are as wide as the widest box, those of one line as high as the highest."""
    drawn = [(panel, [_box(rows, one, latent) for one in panel.groups for rows in one.groups if rows]) for panel in panels]
    least = LEAST if note or any(panel.title or panel.told for panel in panels) else 0
    inner = max([least, *(box.width for _, boxes in drawn for box in boxes)])
    width = inner + (inner + PANEL_GAP) * (max(1, min(columns, len(drawn))) - 1)
    parts, top, bottom = [], 1.0, 1.0
    for start in range(0, len(drawn), columns):
        line = [
            _panel(panel, boxes, 1 + number * (inner + PANEL_GAP), top, inner)
            for number, (panel, boxes) in enumerate(drawn[start : start + columns])
        ]
        parts += [svg for svg, _ in line]
        bottom = max(end for _, end in line)
        top = bottom + PANEL_GAP
    foot, bottom = _lines(_packed([note], width, TOLD_CHARACTER, " "), "told", 1, bottom + (GAP if note else 0), TOLD)
    return "".join(parts) + foot, width + 2, bottom + 1


def _name(panels: Sequence[Panel]) -> str:
    """The picture's role, and what a reader who cannot see it is told."""
    titles = [". ".join([panel.title, *panel.told]) for panel in panels if panel.title]
    about = "Samples of a Free Transformer: one group with independent Z, the others with one Z a group"
    return f'role="img" aria-label="{label("; ".join([about, *titles]))}"'


def _panel(panel: Panel, boxes: Sequence[_Box], left: float, top: float, width: float) -> tuple[str, float]:
    """Title, numbers, and boxes one below the other, short ones as many beside each other as fit; and where they end."""
    heading, top = _lines(_packed([panel.title], width, HEADING_CHARACTER, " "), "heading", left, top, HEADING)
    told, top = _lines(_packed(panel.told, width, TOLD_CHARACTER, " · "), "told", left, top, TOLD)
    parts = [heading, told]
    top += 8 if heading or told else 0
    widest = max([0.0, *(box.width for box in boxes)])
    beside = max(1, int((width + GAP) / (widest + GAP)))
    for start in range(0, len(boxes), beside):
        line = boxes[start : start + beside]
        parts += [_drawn(box, left + number * (widest + GAP), top) for number, box in enumerate(line)]
        top += max(box.height for box in line) + GAP
    return "".join(parts), top - GAP if boxes else top


def _lines(lines: Sequence[str], name: str, left: float, top: float, height: int) -> tuple[str, float]:
    """Lines of text of a class; and where they end."""
    drawn = [f'<text class="{name}" x="{left:g}" y="{top + height * n - 4:g}">{label(line)}</text>\n' for n, line in enumerate(lines, 1)]
    return "".join(drawn), top + height * len(lines)


def _packed(items: Sequence[str], width: float, character: float, between: str) -> list[str]:
    """As many items a line as fit; an item that is longer than a line is broken."""
    most, lines = int(width / character), [""]
    for item in items:
        for start, end in _breaks(item, most):
            piece = item[start:end].rstrip()
            joined = f"{lines[-1]}{between}{piece}" if lines[-1] else piece
            if start == 0 and cell_len(joined) <= most:
                lines[-1] = joined
            else:
                lines.append(piece)
    return [line for line in lines if line]


def _box(rows: Sequence[str], groups: SampleGroups, latent: bool) -> _Box:
    broken = [_broken(row, groups.prompt) for row in rows]
    gap = ROW_GAP if any(len(row) > 1 for row in broken) else 0
    return _Box("shared" if groups.shared else "independent", box_title(shared=groups.shared, latent=latent), broken, gap)


def _broken(row: str, prompt: str) -> list[Line]:
    """A row of letters is one line; running text is broken at spaces, none of its characters left out."""
    pieces = [(piece.expandtabs(4), kind) for piece, kind in parts(row, prompt)]
    if is_letters(row):
        return [pieces]
    text, kinds = "".join(piece for piece, _ in pieces), [kind for piece, kind in pieces for _ in piece]
    return [
        [("".join(text[i] for i in run), kind) for kind, run in itertools.groupby(range(start, end), kinds.__getitem__)]
        for start, end in _breaks(text, RUNNING)
    ]


def _breaks(text: str, most: int) -> Iterator[tuple[int, int]]:
    """Where each line begins and ends: at newlines, and where it would be wider than `most` columns, behind its last space."""
    start, space, width = 0, 0, 0
    for place, char in enumerate(text):
        if char == "\n":
            yield start, place
            start, width = place + 1, 0
            continue
        if width + cell_len(char) > most and char != " " and place > start:
            end = space if space > start else place
            yield start, end
            start, width = end, cell_len(text[end:place])
        width += cell_len(char)
        space = place + 1 if char == " " else space
    yield start, len(text)


def _columns(line: Line) -> int:
    return sum(cell_len(piece) for piece, _ in line)


def _drawn(box: _Box, left: float, top: float) -> str:
    """One group in its frame."""
    kind, x = box.kind, f"{left + PAD - 1:g}"
    parts = [
        f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{box.width:.1f}" height="{box.height:g}" rx="6" stroke-width="1.5"/>\n',
        f'<text class="title t-{kind}" x="{x}" y="{top + PAD + 8:g}">{box.title}</text>\n',
    ]
    y = top + PAD + 8
    for row in box.rows:
        for line in row:
            y += LINE
            parts.append(_text(line, x, y))
        y += box.gap
    return "".join(parts)


def _text(line: Line, x: str, y: float) -> str:
    """A line of a sample. textLength keeps the columns in place whatever font the reader has."""
    pieces = "".join(f'<tspan class="s-{kind}">{label(piece)}</tspan>' for piece, kind in line)
    width = _columns(line)
    plain = 0 < width == sum(len(piece) for piece, _ in line)  # glyphs that are not of the font may have any width: let them
    length = f' textLength="{CHARACTER * width:.1f}" lengthAdjust="spacingAndGlyphs"' if plain else ""
    return f'<text x="{x}" y="{y:g}"{length} xml:space="preserve">{pieces}</text>\n'
