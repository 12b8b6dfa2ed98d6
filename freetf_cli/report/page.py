"""Renders reports as HTML pages with jinja2. A page is one file: it needs neither network nor script."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from freetf_cli.report import blocks, boxes, charts
from freetf_cli.report.console import visible
from freetf_cli.report.style import sheet

if TYPE_CHECKING:
    from jinja2 import Template


def html(report: blocks.Report) -> str:
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
    environment.globals.update(css=sheet(), chart=_chart, box=_box)
    environment.tests["wide"] = lambda block: isinstance(block, blocks.Intervals) or (isinstance(block, blocks.Chart) and not block.small)
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["cell"] = lambda cell: (cell, "") if isinstance(cell, str) else cell
    return environment.get_template("page.html.jinja")


def _finalize(value: Any) -> Any:
    """Control characters and what a file cannot hold, made visible in every text of the page."""
    return visible(value) if type(value) is str else value


def _chart(block: blocks.Chart | blocks.Intervals | blocks.HeatMap, width: int) -> Any:
    from markupsafe import Markup

    return Markup(charts.svg(block, width))


def _box(box: blocks.Box) -> Any:
    from markupsafe import Markup

    return Markup(boxes.box_svg(box))
