"""Renders reports as HTML pages with jinja2. A page is one file: it needs neither network nor script."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from freetf_cli.report import boxes, charts
from freetf_cli.report.blocks import Report
from freetf_cli.report.console import visible
from freetf_cli.report.style import sheet

if TYPE_CHECKING:
    from jinja2 import Template


def html(report: Report) -> str:
    """The whole page of a report."""
    return _template().render(report=report).strip() + "\n"


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("freetf_cli.report", ""),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(css=sheet(), chart=charts.svg, box=boxes.box_svg)
    environment.filters["cell"] = lambda cell: (cell, "") if isinstance(cell, str) else cell
    return environment.get_template("page.html.jinja")


def _finalize(value: Any) -> Any:
    """Show control characters, and what a file cannot hold, as escapes in every text of the page."""
    return visible(value) if type(value) is str else value
