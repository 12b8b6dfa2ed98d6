"""Charts of any values are SVG that follows light and dark, names its numbers and fits its place."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from freetf_cli.report.blocks import Chart, HeatMap, Interval, Intervals, Reference, Series
from freetf_cli.report.charts import NARROW, SMALL, WIDE, standalone, svg
from tests.report.helper import EVIL

NAN = math.nan
ODD = [[], [NAN], [0.0, 0.0], [1.0], [1.0, NAN, 2.0], [-1.0, 2.0], [1e-9, 2e-9], [1e12, math.inf], [0.5] * 3000]


def drawn(block: Chart | Intervals | HeatMap, width: int = WIDE) -> str:
    """The picture's text; fails if it is not XML, or a coordinate is not a number."""
    picture = svg(block, width)
    tree = ElementTree.fromstring(picture)
    places = " ".join(value for one in tree.iter() for name, value in one.attrib.items() if name != "aria-label")
    assert not re.search(r"\b(nan|inf|None)\b", places) and "#0102" not in picture and picture == svg(block, width)
    return " ".join(text for one in tree.iter() if (text := one.text or "").strip())


def chart(ys: list[float], **changes: Any) -> Chart:
    series = [Series("CE <b> $x$", range(len(ys)), ys, "ce", limit=changes.pop("limit", None))]
    return Chart("<t> & \x1b", series, "step", "bits", **changes)


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("options", [{}, {"kind": "bars"}, {"log": True, "limit": 2.0}])
@pytest.mark.parametrize("ys", ODD)
def test_charts_of_odd_values(ys: list[float], options: dict[str, Any], width: int) -> None:
    text = drawn(chart(ys, references=[Reference(1.0, "floor & more")], **options), width)
    assert ("no values" in text) == (not any(map(math.isfinite, ys))) and "<t> & \\x1b" in text


def test_a_line_is_drawn_where_it_is_or_named_above() -> None:
    near, far = (drawn(chart([1.0, 0.5], kind="bars", references=[Reference(value, f"κ {value:g}")])) for value in (0.5, 9.0))
    assert "κ 0.5" in near and "above" not in near and "κ 9, above the picture" in far
    assert "H 200.00, above the picture" in drawn(chart([1.0, 2.0], log=True, limit=200.0))


def test_points_tell_their_values_where_there_is_a_pointer() -> None:
    tips = re.findall(r'<g class="tip"><title>(.*?)</title>', svg(chart([1.0, NAN, 2.0])))
    assert tips[::-1] == ["CE &lt;b&gt; $x$: 1.00 at step 0", "CE &lt;b&gt; $x$: 2.00 at step 2"]
    assert "tip" not in svg(chart([1.0, NAN, 2.0]), NARROW)
    assert svg(chart([1.0, 2.0], small=True), SMALL).count('class="tip"') == 2
    assert "position 1: 1.000 bits" in drawn(Chart("KL", [Series("KL", [0, 1], [2.0, 1.0])], "position", "bits", "bars"))


def test_a_gap_breaks_the_line_and_the_steep_start_is_cut_off() -> None:
    gap = svg(chart([1.0, 2.0, NAN, 2.0, 1.5]))
    assert len(re.findall(r"M [\d. ]+\nL [\d. ]+\n(?=M)", gap)) == 1
    assert "50" not in drawn(chart([100.0, *[2.0] * 20]), NARROW).split() and "100" in drawn(chart([100.0, 2.0, 90.0])).split()


def test_legends_fill_as_many_lines_as_they_need() -> None:
    block = Chart("t", [Series(f"a long name {i}", [0, 1], [i, 1]) for i in range(6)], "x", "y")
    heights = [float(re.findall(r'viewBox="0 0 \S+ (\S+)"', svg(block, width))[0]) for width in (WIDE, NARROW)]
    assert "a long name 5" in drawn(block, NARROW) and heights[1] > heights[0] - 70 * 0.75


@pytest.mark.parametrize("shares", [[], [[]], [[0.0]], [[NAN]], [[0.5], [0.1, 0.2]], [[1.0] * 300] * 200])
def test_heat_maps_of_odd_shares(shares: list[list[float]]) -> None:
    text = drawn(HeatMap("<map>", shares, "position", "group", "of outputs"))
    assert ("no values" in text) == (not any(value > 0 for row in shares for value in row))


def test_a_heat_map_has_a_shape_for_each_level() -> None:
    picture = svg(HeatMap("m", [[0.0, 0.5, 0.5, 1.0], [1.0, 0.0, 0.25, 0.0]], "position", "group", "of outputs"))
    shapes = re.findall(r'<path d="([^"]*)" clip-path="[^"]*" style="fill: var\(--target\)', picture)
    assert [shape.count("M ") for shape in shapes[:3]] == [1, 1, 2]  # the rest are the scale's
    assert "100 % of outputs" in picture


def test_a_heat_map_may_name_rows_and_columns_and_have_a_top() -> None:
    """All shares are 0 or small: with a top of 1 they are shown, as numbers and in a faint colour."""
    shares = [[0.25, NAN], [0.0, 0.5]]
    named = HeatMap("m", shares, "length", "depth", "right", rows=["0", EVIL], columns=["512", "1024"], top=1.0)
    text = drawn(named)
    assert all(words in text for words in ("512", "1024", "25 %", "50 %", "–", "0 %", "100 % right", "length", "depth"))
    shapes = re.findall(r'style="fill: var\(--target\); opacity: ([\d.]+)', svg(named))
    assert [float(one) for one in shapes[:2]] == [0.25, 0.5]
    assert "no values" not in drawn(HeatMap("m", [[0.0]], "x", "y", "right", rows=["0"], columns=["1"], top=1.0))


def test_intervals_name_their_limits() -> None:
    rows = [
        Interval("position", 4.12, 3.99, 4.25, "target", (0.02, -0.01, 0.05), 5.83),
        Interval("noise", 3.2, 3.0, 3.4, "noise", None, 21.58),
    ]
    text = drawn(Intervals("I", rows, "● estimate"))
    assert all(words in text for words in ("H 5.83", "H 21.58 →", "position: 4.12 [3.99, 4.25]", "position, control: 0.02", "● estimate"))
    odd = [Interval("a", NAN, NAN, NAN), Interval("b", 1.0, NAN, NAN, limit=NAN), Interval(EVIL, -0.5, -0.6, -0.4, limit=0.0)]
    assert "b: 1.00" in drawn(Intervals("I", odd), NARROW + 1) and "no values" in drawn(Intervals("I", odd[:1]))


def test_a_picture_is_a_file_of_its_own() -> None:
    file = standalone(svg(chart([1.0, 2.0])))
    ElementTree.fromstring(file)
    used = set(re.findall(r"var\((--[a-z-]+)\)", file))
    assert used and all(f"{name}:" in file for name in used) and "prefers-color-scheme: dark" in file
    assert set(re.findall(r"https?://[^\s\"'<]*", file)) == {"http://www.w3.org/2000/svg"}
