"""Samples as the paper's Figure 4 shows them: blue boxes for independent Z, green boxes for one Z shared by a group."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from freetf_cli.records import Agreement, SampleGroups
from freetf_cli.report.console import page_width, visible
from freetf_cli.report.panels import Panel as SamplePanel
from freetf_cli.report.rows import Part, box_title, is_letters, parts
from freetf_cli.report.tables import print_heading, print_table
from freetf_cli.report.units import count, share, times

FRAME = 4  # columns of a box's border and padding

STYLES: dict[Part, str] = {
    "prompt": "dim",
    "blank": "dim",
    "noise": "red",
    "target": "bold magenta",
    "wrong": "bold white on red",
    "text": "",
}


def figure4(groups: SampleGroups, *, console: Console, latent: bool = True) -> None:
    """Print one box a group, each line a sequence; side by side where two fit.

    The rows' prompt is dim. latent: False for a baseline.
    """
    if groups.title:
        print_heading(console, groups.title)
    _print_boxes([groups], console, latent)


def figure4_panel(panel: SamplePanel, *, console: Console) -> None:
    """Print a panel of a sweep: its title, the numbers measured, and all of its boxes, side by side where two fit."""
    print_heading(console, panel.title)
    for line in panel.told:
        console.print(Text(visible(line), style="dim"), overflow="fold")
    _print_boxes(panel.groups, console, latent=True)


def row_text(row: str, prompt: str = "") -> Text:
    """One sequence, coloured."""
    return Text.assemble(*((piece, STYLES[part]) for piece, part in parts(row, prompt)), overflow="fold")


def agreement_table(agreement: Sequence[Agreement], *, console: Console) -> None:
    """How often sequences agree within a group and across groups."""
    rows = [
        [one.factor, share(one.within), share(one.across), times(one.ratio), f"{count(one.pairs_within)} / {count(one.pairs_across)}"]
        for one in agreement
    ]
    print_table(console, ["agreement on", "within", "across", "ratio", "pairs within / across"], rows, right=(1, 2, 3, 4))


def _print_boxes(all_groups: Sequence[SampleGroups], console: Console, latent: bool) -> None:
    boxes = [
        _box(rows, groups.prompt, box_title(shared=groups.shared, latent=latent), "green" if groups.shared else "blue")
        for groups in all_groups
        for rows in groups.groups
        if rows
    ]
    rows = [row for groups in all_groups for group in groups.groups for row in group]
    for line in _lines(boxes, rows, page_width(console)):
        console.print(line)


def _box(rows: Sequence[str], prompt: str, title: str, colour: str) -> Panel:
    body = Text("\n").join(row_text(row, prompt) for row in rows)
    body.overflow = "fold"
    return Panel(body, title=Text(title, style=f"bold {colour}"), title_align="left", border_style=colour, expand=False)


def _lines(boxes: list[Panel], rows: Sequence[str], width: int) -> list[Panel | Table]:
    """Boxes in as many columns as fit, but only for letters rows: running text is easier to read across the page."""
    box_width = FRAME + max((cell_len(row) for row in rows), default=0)
    columns = min(len(boxes), width // box_width) if rows and all(is_letters(row) for row in rows) else 1
    if columns < 2:
        return [*boxes]
    gap = min(2, (width - columns * box_width) // (columns - 1))
    lines: list[Panel | Table] = []
    for start in range(0, len(boxes), columns):
        line = Table.grid(padding=(0, gap, 0, 0), pad_edge=False)
        line.add_row(*boxes[start : start + columns])
        lines.append(line)
    return lines
