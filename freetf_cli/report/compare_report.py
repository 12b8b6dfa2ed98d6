"""The page of `compare`: two models side by side, in one file that needs neither network nor script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath

from freetf_cli.records import SampleGroups
from freetf_cli.records.compare import Comparison, Difference
from freetf_cli.report import compare_rows as rows_of
from freetf_cli.report.html import SAMPLES_CSS, facts, samples_html, table, text
from freetf_cli.report.series import Series
from freetf_cli.report.style import PAGE_CSS
from freetf_cli.report.svg import CHART_CSS, line_chart, ticks
from freetf_cli.report.units import count, is_number, scale

COMPARE_CSS = """
.verdict { border-left: 4px solid var(--edge); padding: .1rem 0 .1rem 1.1rem; margin: 1.4rem 0; font-family: var(--serif);
  font-size: 1.25rem; line-height: 1.35; overflow-wrap: anywhere; --edge: var(--length) }
.verdict.good { --edge: var(--floor) } .verdict.bad { --edge: var(--noise) }
.intervals { max-width: 47rem; margin: 1.2rem 0 1rem }
.chart .zero { stroke: var(--soft); stroke-width: 1 } .chart .span { stroke: currentColor; stroke-width: 2.5 }
details { margin: .6rem 0 } summary { cursor: pointer; color: var(--soft); font-size: .93rem }
"""
COSTS = (
    "Every cost is of the same held-out sequences for both. The interval of B − A is paired: it resamples the difference of each "
    "sequence, so that what is hard for both cancels. It is of these sequences, not of training seeds."
)


def comparison_html(result: Comparison) -> str:
    """The whole page."""
    title = f"{_name(result.a.run)} and {_name(result.b.run)}"
    sections = [_head(result, title), _checks(result)]
    if not result.equal:
        sections += [_costs(result), _positions(result), _curves(result), _latent(result), _weights(result)]
    sections += [_recipe(result), _samples(result), "" if result.equal else _sizes(result)]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{text(title)} · freetf</title>'
        f"<style>{PAGE_CSS}{CHART_CSS}{SAMPLES_CSS}{COMPARE_CSS}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def _name(run: str) -> str:
    """The last parts that tell: a checkpoint's folder says little without its run."""
    path = PurePath(run)
    return "/".join(path.parts[-3::2]) if path.parent.name == "checkpoints" else path.name or run


def _section(title: str, body: str) -> str:
    return f"<section><h2>{text(title)}</h2>{body}</section>" if body else ""


def _head(result: Comparison, title: str) -> str:
    said, mood = (rows_of.EQUAL, "good") if result.equal else rows_of.verdict(result)
    rows = [(f"{name}: {side.run}", rows_of.side_text(side)) for name, side in (("A", result.a), ("B", result.b))]
    if result.facts:
        rows += [("data", f"{result.facts.name}, split {result.split}"), ("measured on", rows_of.measured_text(result))]
    return (
        f'<header><p class="kicker">A against B</p><h1>{text(title)}</h1></header><p class="verdict {mood}">{text(said)}</p>{facts(rows)}'
    )


def _checks(result: Comparison) -> str:
    rows = [["holds" if one.holds else "FAILS", one.expression, rows_of.check_text(one)] for one in result.checks]
    return _section("Checks: B relative to A", table(["", "fails if", "found"], rows, label="checks") if rows else "")


def _costs(result: Comparison) -> str:
    notes = "".join(f'<p class="reading">{text(line)}</p>' for line in rows_of.reading(result))
    metrics = table(rows_of.metric_headers(result), rows_of.metric_rows(result), right=range(1, 5), label="held-out cost")
    headers = ["metric", "of", "nats/token", "95 % interval", "bits/token", "bits/byte", "bits/sequence"]
    every = table(headers, rows_of.cost_rows(result), right=range(2, 7), label="every unit")
    body = f"{_both_widths(result)}{metrics}{notes}<details><summary>Every unit</summary>{every}</details>"
    return _section("Held-out cost", f'<p class="reading">{text(COSTS)}</p>{body}')


def _both_widths(result: Comparison) -> str:
    """One picture for a page and one for a phone, on which the first would be too small to read; CSS shows either."""
    return (
        f'<div class="intervals"><div class="wide">{_intervals(result, 760)}</div><div class="narrow">{_intervals(result, 380)}</div></div>'
    )


def _intervals(result: Comparison, width: int) -> str:
    """B − A and its interval, a line a metric, about a common zero."""
    to = rows_of.unit(result)
    found = [(rows_of.NAMES[name], pair.difference) for name, pair in result.metrics.items() if pair.difference]
    rows = [(name, one) for name, one in found if all(map(is_number, (one.low, one.high, one.nats_per_token)))]
    ends = [end * to.factor for _, one in rows for end in (one.low, one.high)]
    if not rows or not all(map(is_number, ends)):
        return ""
    low, high = min(0.0, *ends), max(0.0, *ends)
    low, high = (low, high) if high > low else (-1.0, 1.0)
    left, across, height = 130, width - 150, 28 * len(rows) + 62

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * across

    marks = "".join(_interval(name, one, 38 + 28 * row, to.factor, x) for row, (name, one) in enumerate(rows))
    grid = "".join(_grid_line(x(tick), height, f"{tick:g}") for tick in ticks(low, high, max(2, across // 110)))
    name = f"B − A, {to.name}, 95 % interval"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{text(name)}">'
        f'<text class="title" x="0" y="13">{text(name)}</text>{grid}<path class="zero" d="M{x(0):.1f} 22V{height - 36}"/>{marks}'
        f'<text x="{left}" y="{height - 4}">left of zero: B costs less</text></svg>'
    )


def _grid_line(x: float, height: int, label: str) -> str:
    return f'<path class="grid" d="M{x:.1f} 22V{height - 36}"/><text x="{x:.1f}" y="{height - 20}" text-anchor="middle">{label}</text>'


def _interval(name: str, one: Difference, y: int, factor: float, x: Callable[[float], float]) -> str:
    low, value, high = (x(end * factor) for end in (one.low, one.nats_per_token, one.high))
    colour = "plain" if not one.excludes_zero else rows_of.B_CLASS if value > x(0) else rows_of.A_CLASS
    return (
        f'<text class="key" x="0" y="{y + 4}">{text(name)}</text><g class="c-{colour}"><path class="span" d="M{low:.1f} {y}H{high:.1f}"/>'
        f'<circle class="dot" cx="{value:.1f}" cy="{y}" r="4.5"/></g>'
    )


def _charts(series: Sequence[Series], title: str, x_label: str, y_label: str, floor: float | None = None) -> str:
    """A wide and a narrow picture."""
    line = (floor, f"floor {floor:.2f}") if floor is not None else None
    wide, narrow = (
        line_chart(series, title=title, x_label=x_label, y_label=y_label, floor=line, width=width, height=height)
        for width, height in ((960, 340), (380, 320))
    )
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'


def _positions(result: Comparison) -> str:
    places = result.by_position
    if places is None or len(places.targets) < 2:
        return ""
    xs = list(range(len(places.targets)))
    series = [Series("A", xs, places.a, rows_of.A_CLASS), Series("B", xs, places.b, rows_of.B_CLASS)]
    rows, _ = rows_of.position_rows(result)
    body = _charts(series, "CE + KL (a baseline: CE)", "position", "bits/token")
    return _section("By position", body + table(["positions", "A", "B", "B − A"], rows, right=(1, 2, 3), label="by position"))


def _curves(result: Comparison) -> str:
    assert result.facts is not None
    to = scale(result.facts)
    series = rows_of.curves(result, to)
    return _section("Training, held out", _charts(series, f"Held out, {to.unit}", "step", to.unit, to.floor) if series else "")


def _latent(result: Comparison) -> str:
    rows = rows_of.latent_rows(result)
    note = '<p class="reading">What Z says: freetf probe-latent RUN.</p>'
    return _section("Use of Z", table(["", "A", "B"], rows, right=(1, 2), label="use of Z") + note if rows else "")


def _weights(result: Comparison) -> str:
    assert result.weights is not None
    groups = table(["", "all", "attention", "ffn"], rows_of.group_rows(result), right=(1, 2, 3), label="weights by group")
    every = [[one.name, rows_of.shape_text(one.shape), rows_of.change_text(one.change)] for one in result.weights.tensors]
    alone = [*result.weights.only_a, *result.weights.only_b, *result.weights.reshaped]
    every += [[one.name, f"A {rows_of.shape_text(one.a)}, B {rows_of.shape_text(one.b)}", "not compared"] for one in alone]
    listed = table(["tensor", "shape", "‖B − A‖ / ‖A‖ (cosine)"], every, right=(2,), label="every tensor")
    details = f"<details><summary>Every tensor, {count(len(every))}</summary>{listed}</details>"
    return _section("Weights: ‖B − A‖ / ‖A‖ (cosine)", facts(rows_of.weight_facts(result)) + groups + details)


def _recipe(result: Comparison) -> str:
    rows = [[one.key, *("–" if value is None else str(value) for value in (one.a, one.b))] for one in result.recipe]
    return _section("Recipe: settings that differ", table(["key", "A", "B"], rows, label="recipe") if rows else "")


def _samples(result: Comparison) -> str:
    samples = result.samples
    if samples is None:
        return ""
    pairs = (("A", result.a, samples.a), ("B", result.b, samples.b))
    boxes = "".join(
        f"<div>{samples_html(SampleGroups(name, False, [texts], samples.prompt), latent=side.kind == 'free')}</div>"
        for name, side, texts in pairs
    )
    return _section("Samples", f'<p class="reading">{text(rows_of.samples_text(samples))}</p><div class="pair">{boxes}</div>')


def _sizes(result: Comparison) -> str:
    body = table(["", "A", "B", "B / A"], rows_of.size_rows(result), right=(1, 2, 3), label="size and speed")
    return _section("Size and speed", f'{body}<p class="reading">{text(rows_of.SIZES_NOTE)}</p>')
