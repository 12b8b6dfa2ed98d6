from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from freetf_cli.records.likelihood import Estimate
from freetf_cli.records.probe import HeatMap
from freetf_cli.report.figures import Curve, Dot, bar_chart, dot_interval_chart, heat_map, information_by_kappa, standalone
from tests.report.probe_helper import EVIL, NAN, budget, estimate, factors, heat_maps, sweep

ODD_VALUES = [[], [math.nan], [0.0, 0.0], [1.0], [1.0, math.nan, 2.0], [-1.0, 2.0], [1e-9, 2e-9], [1e12, math.inf], [0.5] * 3000]


def parsed(svg: str) -> ElementTree.Element:
    """The picture; fails if it is no XML or a coordinate is no number."""
    tree = ElementTree.fromstring(svg)
    drawn = " ".join(value for element in tree.iter() for name, value in element.attrib.items() if name not in ("aria-label", "class"))
    assert not re.search(r"\b(nan|inf|None)\b", drawn)
    return tree


def of_class(tree: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in tree.iter() if element.get("class") == name]


def words(tree: ElementTree.Element) -> str:
    return " ".join(element.text or "" for element in tree.iter())


def bars(values: list[float], **options: object) -> ElementTree.Element:
    return parsed(bar_chart(values, title="KL", x_label="position", y_label="bits", **options))  # type: ignore[arg-type]


def curves() -> list[Curve]:
    runs = sweep().runs
    found = [(run.kappa, run.intervention.factors) for run in runs if run.intervention]
    return [Curve(name, [(kappa, one[i].information) for kappa, one in found], found[0][1][i].entropy) for i, name in ((1, "a"), (2, "b"))]


@pytest.mark.parametrize("values", ODD_VALUES)
def test_bars_of_odd_values_are_xml(values: list[float]) -> None:
    tree = bars(values, line=(0.5, "κ <0.5>"))
    assert len(of_class(tree, "bar")) == (sum(map(math.isfinite, values)) if any(map(math.isfinite, values)) else 0)


def test_bars_stand_on_the_axis_in_proportion() -> None:
    tall, half = of_class(bars([2.0, 1.0]), "bar")
    heights = [float(one.get("height", 0)) for one in (tall, half)]
    ends = [float(one.get("y", 0)) + float(one.get("height", 0)) for one in (tall, half)]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.2) and ends[0] == pytest.approx(ends[1], abs=0.2)
    assert "position 1: 1.000 bits" in words(bars([2.0, 1.0]))


def test_a_line_is_drawn_where_it_is_or_named_above() -> None:
    near, far = bars([1.0, 0.5], line=(0.5, "κ 0.50")), bars([1.0, 0.5], line=(9.0, "κ 9.00"))
    middle = re.match(r"M[\d.]+ ([\d.]+)h", of_class(near, "kappa")[0].get("d", ""))
    assert middle and float(middle.group(1)) == pytest.approx(float(of_class(near, "bar")[1].get("y", 0)), abs=0.2)
    assert of_class(far, "kappa") == [] and "κ 9.00, above the picture" in words(far)


def test_every_tick_of_a_profile_is_inside() -> None:
    tree = bars(budget().by_position, width=380)
    assert all(-1 <= float(one.get("x", 0)) <= 380 for one in tree.iter() if one.tag.endswith("text"))


@pytest.mark.parametrize("shares", [[], [[]], [[0.0]], [[math.nan]], [[0.5], [0.1, 0.2]], [[1.0] * 300] * 200])
def test_heat_maps_of_odd_shares_are_xml(shares: list[list[float]]) -> None:
    tree = parsed(heat_map(HeatMap("<map>", shares)))
    has_heat = any(value > 0 for row in shares for value in row)
    assert ("no values" in words(tree)) is not has_heat


def test_a_heat_map_covers_each_place_once() -> None:
    shares = [[0.0, 0.5, 0.5, 1.0], [1.0, 0.0, 0.25, 0.0]]
    drawn = [
        (int(y), x, float(path.get("fill-opacity", 0)))
        for path in parsed(heat_map(HeatMap("m", shares))).iter()
        if path.get("d") and path.get("class") == "heat"
        for left, y, run in re.findall(r"M(\d+) (\d+)h(\d+)v", path.get("d", ""))
        for x in range(int(left), int(left) + int(run))
    ]
    assert sorted(drawn) == [(0, 1, 0.5), (0, 2, 0.5), (0, 3, 1.0), (1, 0, 1.0), (1, 2, 0.25)]


def test_heat_maps_stay_small() -> None:
    assert all(len(heat_map(one)) < 60_000 for one in heat_maps())


def dots() -> list[Dot]:
    return [Dot(one.factor, one.information, one.entropy, one.shuffled) for one in factors()]


def test_dots_lie_inside_their_intervals_and_ceilings_are_named() -> None:
    tree = parsed(dot_interval_chart(dots(), title="I", x_label="bits"))
    marks, whiskers = of_class(tree, "mark"), of_class(tree, "whisker")
    assert len(marks) == len(whiskers) == 6
    for mark, whisker in zip(marks, whiskers, strict=True):
        ends = re.match(r"M([\d.]+) [\d.]+H([\d.]+)", whisker.get("d", ""))
        assert ends and float(ends.group(1)) <= float(mark.get("cx", 0)) <= float(ends.group(2))
    said = words(tree)
    assert "H 5.83" in said and "H 21.58 →" in said and "4.12 [3.99, 4.25]" in said and len(of_class(tree, "limit")) == 2


@pytest.mark.parametrize("width", [380, 960])
def test_dots_without_values(width: int) -> None:
    odd = [Dot("a", NAN, math.nan), Dot("b", Estimate(1.0, math.nan, math.nan), math.nan, NAN), Dot(EVIL, estimate(-0.5), 0.0)]
    tree = parsed(dot_interval_chart(odd, title="I", x_label="bits", width=width))
    assert len(of_class(tree, "mark")) == 2
    assert "no values" in words(parsed(dot_interval_chart(odd[:1], title="I", x_label="bits")))


def test_kappas_are_spaced_by_their_logarithm() -> None:
    tree = parsed(information_by_kappa(curves(), title="I"))
    xs = [float(mark.get("cx", 0)) for mark in of_class(tree, "mark")][:6]
    steps = [b - a for a, b in itertools.pairwise(xs)]
    assert steps == pytest.approx([steps[0]] * 5, abs=0.2) and steps[0] > 0
    assert len(of_class(tree, "ceiling")) == 2 and "κ, bits/token (log scale)" in words(tree) and "a at κ 0.125: 1.55" in words(tree)


@pytest.mark.parametrize(
    "points",
    [[], [(0.5, NAN)], [(0.5, estimate(1.0))], [(0.0, estimate(1.0)), (0.5, estimate(2.0))], [(0.0, estimate(0.0))], [(math.nan, NAN)]],
)
def test_odd_curves_are_xml(points: list[tuple[float, Estimate]]) -> None:
    tree = parsed(information_by_kappa([Curve(EVIL, points, math.nan), Curve("none", [], 3.0)], title=EVIL))
    assert len(of_class(tree, "mark")) == sum(math.isfinite(one.value) for _, one in points)


def test_a_ceiling_far_above_is_told_and_not_drawn() -> None:
    tree = parsed(information_by_kappa([Curve("noise", [(1.0, estimate(1.0))], 200.0)], title="I"))
    assert of_class(tree, "ceiling") == [] and "noise, H 200.00, above the picture" in words(tree)


def test_a_figure_is_a_file_of_its_own() -> None:
    file = standalone(heat_map(heat_maps()[0]))
    tree = ElementTree.fromstring(file.encode())
    style = next(element.text or "" for element in tree.iter() if element.tag.endswith("style"))
    used = set(re.findall(r"var\((--[a-z-]+)\)", file))
    assert used and all(f"{name}:" in style for name in used) and "prefers-color-scheme: dark" in style
    assert re.findall(r"https?://[^\s\"'<]*", file) == ["http://www.w3.org/2000/svg"]
