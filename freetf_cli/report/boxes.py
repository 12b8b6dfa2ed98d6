"""Draws samples as the paper's Figure 4 does: a blue box for sequences that each have their own Z, green boxes for a shared Z.

The page shows each box as an SVG element of its own; `figure` puts whole panels of them into one SVG file. Sizes are in pixels, widths of
text in columns of a monospaced font.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator, Sequence

from rich.cells import cell_len

from freetf_cli.report.blocks import Box, Line, Samples
from freetf_cli.report.console import visible
from freetf_cli.report.style import sheet

LINE, CHARACTER, PAD, GAP = 17, 7.23, 12, 14  # CHARACTER: the width of a column in 12 px
HEADING, SMALL = (20, 9.4), (15, 6.63)  # height of a line and width of a character: of a title, of the numbers under it
PANEL_GAP, ROW_GAP, MARGIN = 28, 6, 12
RUNNING = 66  # columns of running text
LEAST = 340  # width of a panel that has a title

Drawn = tuple[str, float, float]  # SVG, width, height


def box_svg(box: Box) -> str:
    """One box as an SVG element, at most life size."""
    body, width, height = _box(box)
    size = f'viewBox="-1 -1 {width + 2:.0f} {height + 2:.0f}" style="max-width:{width + 2:.0f}px"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="samples" {size} role="img" aria-label="{_text(box.title)}">{body}</svg>'


def figure(panels: Sequence[Samples], note: str = "", columns: int = 2) -> str:
    """Panels as one SVG file that follows the reader's light or dark setting. note: small type below them."""
    least = LEAST if note or any(panel.title or panel.measured for panel in panels) else 0
    inner = max([least, *(_box(box)[1] for panel in panels for box in panel.boxes)])
    parts, y, bottom = [], 1.0, 1.0
    for start in range(0, len(panels), columns):
        row = [_panel(panel, inner) for panel in panels[start : start + columns]]
        parts += [_moved(svg, 1 + number * (inner + PANEL_GAP), y) for number, (svg, _, _) in enumerate(row)]
        bottom = y + max(height for _, _, height in row)
        y = bottom + PANEL_GAP
    width = inner + (inner + PANEL_GAP) * (max(1, min(columns, len(panels))) - 1)
    foot, height = _lines([note], width, "measured", SMALL, " ")
    parts.append(_moved(foot, 1, bottom + GAP) if note else "")
    size = f'"{-MARGIN} {-MARGIN} {width + 2 + 2 * MARGIN:.0f} {bottom + 1 + (GAP + height if note else 0) + 2 * MARGIN:.0f}"'
    style = f"<style>{sheet('colours', 'samples')}svg {{ background: var(--page) }}</style>"
    titles = "; ".join(". ".join([panel.title, *panel.measured]) for panel in panels if panel.title)
    about = _text(f"Samples of a Free Transformer: one group with independent Z, the others with one Z each. {titles}".rstrip())
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="samples" viewBox={size} role="img" aria-label="{about}">'
    return f"{head}{style}\n{''.join(parts)}</svg>\n"


def _panel(panel: Samples, width: float) -> Drawn:
    """Title, numbers, and the boxes below each other; short ones side by side."""
    title, y = _lines([panel.title], width, "heading", HEADING, " ")
    measured, height = _lines(panel.measured, width, "measured", SMALL, " · ")
    parts, y = [title, _moved(measured, 0, y)], y + height
    y += 8 if y else 0
    drawn = [_box(box) for box in panel.boxes]
    widest = max([0.0, *(one[1] for one in drawn)])
    beside = max(1, int((width + GAP) / (widest + GAP)))
    for start in range(0, len(drawn), beside):
        row = drawn[start : start + beside]
        parts += [_moved(svg, number * (widest + GAP), y) for number, (svg, _, _) in enumerate(row)]
        y += max(height for _, _, height in row) + GAP
    return "".join(parts), width, y - GAP


def _box(box: Box) -> Drawn:
    broken = [list(_broken(line, box.fixed)) for line in box.lines]
    gap = ROW_GAP if any(len(lines) > 1 for lines in broken) else 0
    width = 2 * PAD + CHARACTER * max([_columns(line) for lines in broken for line in lines] + [len(box.title)])
    height = 2 * PAD + LINE * sum(map(len, broken)) + gap * (len(broken) - 1) + 5
    parts = [f'<rect class="{box.kind}" width="{width:.1f}" height="{height:g}" rx="6"/>\n']
    parts.append(f'<text class="title {box.kind}" x="{PAD - 1}" y="{PAD + 8}">{_text(box.title)}</text>\n')
    y = PAD + 8
    for lines in broken:
        for line in lines:
            y += LINE
            parts.append(_spans(line, y))
        y += gap
    return "".join(parts), width, height


def _spans(line: Line, y: float) -> str:
    """A line of a sample. textLength keeps the columns in place in whatever font the reader has."""
    pieces = "".join(f'<tspan class="s-{_text(role)}">{_text(text)}</tspan>' for text, role in line)
    width = _columns(line)
    plain = 0 < width == sum(len(text) for text, _ in line)  # glyphs that the font lacks may have any width: let them
    length = f' textLength="{CHARACTER * width:.1f}" lengthAdjust="spacingAndGlyphs"' if plain else ""
    return f'<text x="{PAD - 1}" y="{y:g}"{length} xml:space="preserve">{pieces}</text>\n'


def _columns(line: Line) -> int:
    return sum(cell_len(text) for text, _ in line)


def _broken(line: Line, fixed: bool) -> Iterator[Line]:
    """A line of text in lines of at most RUNNING columns, without losing a character; a fixed one stays whole."""
    pieces = [(visible(text).expandtabs(4), role) for text, role in line]
    if fixed:
        yield pieces
        return
    text, roles = "".join(piece for piece, _ in pieces), [role for piece, role in pieces for _ in piece]
    for start, end in _breaks(text, RUNNING):
        yield [("".join(text[i] for i in run), role) for role, run in itertools.groupby(range(start, end), roles.__getitem__)]


def _breaks(text: str, most: int) -> Iterator[tuple[int, int]]:
    """Where each line begins and ends: at newlines, and after the last space that keeps it within `most` columns."""
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


def _lines(items: Sequence[str], width: float, name: str, font: tuple[int, float], between: str) -> tuple[str, float]:
    """Items in lines of text, as many to a line as fit, and the height of the lines. An item longer than a line is broken."""
    height, character = font
    lines = [""]
    for item in items:
        for start, end in _breaks(visible(item), int(width / character)):
            piece = visible(item)[start:end].rstrip()
            joined = f"{lines[-1]}{between}{piece}" if lines[-1] else piece
            if start == 0 and cell_len(joined) <= int(width / character):
                lines[-1] = joined
            else:
                lines.append(piece)
    shown = [line for line in lines if line]
    drawn = [f'<text class="{name}" y="{height * order - 4}">{_text(line)}</text>\n' for order, line in enumerate(shown, 1)]
    return "".join(drawn), float(height * len(shown))


def _moved(svg: str, x: float, y: float) -> str:
    return f'<g transform="translate({x:g} {y:g})">{svg}</g>\n' if svg else ""


def _text(value: str) -> str:
    return html.escape(visible(value))
