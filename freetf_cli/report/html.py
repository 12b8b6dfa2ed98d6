"""Pieces of HTML pages. Whatever comes from outside passes `text`, which escapes it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from freetf_cli.records import SampleGroups
from freetf_cli.report.console import visible
from freetf_cli.report.rows import box_title, parts

SAMPLES_CSS = """
.groups { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 31rem), 1fr)); gap: 14px; margin: .6rem 0 1.6rem }
.box { margin: 0; border: 1.5px solid var(--edge); border-radius: 6px; background: var(--fill); min-width: 0; break-inside: avoid }
.box.independent { --edge: var(--blue); --fill: var(--blue-fill) }
.box.shared { --edge: var(--green); --fill: var(--green-fill) }
.box figcaption { color: var(--edge); font-size: .8rem; font-weight: 600; padding: .35rem .75rem 0 }
.box pre { margin: 0; padding: .3rem .75rem .6rem; overflow-x: auto; font: 12px/1.55 var(--mono) }
.box pre.running { white-space: pre-wrap; overflow-wrap: anywhere }
.box pre.running .row { display: block; margin-bottom: .5em }
.s-prompt { color: var(--soft) } .s-blank { color: var(--faint) } .s-noise { color: var(--noise); font-weight: 700 }
.s-target { color: var(--target); font-weight: 700 }
.s-wrong { color: var(--page); background: var(--noise); font-weight: 700 }
"""


def text(value: Any) -> str:
    """A value as text in a page, control characters visible."""
    return html.escape(visible(str(value)))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), total: bool = False, label: str) -> str:
    """A table that scrolls in a box of its own. Cells are plain text; columns in `right` hold numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        inner = (f"<{tag}{' class=n' if column in right else ''}>{text(cell)}</{tag}>" for column, cell in enumerate(cells))
        return f"<tr>{''.join(inner)}</tr>"

    head = f"<thead>{line(headers, 'th')}</thead>" if any(headers) else ""
    foot = f"<tfoot>{line(rows[-1], 'td')}</tfoot>" if total and rows else ""
    body = "".join(line(row, "td") for row in (rows[:-1] if foot else rows))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}"><table>{head}<tbody>{body}</tbody>{foot}</table></div>'
    )


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    return "<dl>" + "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in rows) + "</dl>"


def samples_html(groups: SampleGroups, *, latent: bool = True) -> str:
    """Figure 4's boxes: blue for independent Z, green for one Z a group. latent: False for a baseline."""
    kind, title = "shared" if groups.shared else "independent", box_title(shared=groups.shared, latent=latent)
    boxes = (
        f'<figure class="box {kind}"><figcaption>{title}</figcaption>{_rows(rows, groups.prompt)}</figure>'
        for rows in groups.groups
        if rows
    )
    heading = f"<h3>{text(groups.title)}</h3>" if groups.title else ""
    return f'{heading}<div class="groups">{"".join(boxes)}</div>'


def _rows(rows: Sequence[str], prompt: str) -> str:
    pieces = [parts(row, prompt) for row in rows]
    running = any(kind == "text" for row in pieces for _, kind in row)
    lines = [
        "".join(f'<span class="s-{kind}">{html.escape(piece)}</span>' if kind != "text" else html.escape(piece) for piece, kind in row)
        for row in pieces
    ]
    if running:
        return f'<pre class="running">{"".join(f"""<span class="row">{line}</span>""" for line in lines)}</pre>'
    return f'<pre tabindex="0">{chr(10).join(lines)}</pre>'


def flattened(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested tables as `table.key` and value, without what is not set."""
    if isinstance(tree, dict):
        return [pair for key, value in tree.items() for pair in flattened(value, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(tree, list | tuple):
        return [(prefix, " ".join(str(item) for item in tree))] if tree else []
    return [] if tree is None or tree == "" else [(prefix, str(tree))]
