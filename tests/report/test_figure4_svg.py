from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from freetf_cli.records import SampleGroups
from freetf_cli.report.figure4_svg import FIGURE4_CSS, figure4_inline, figure4_svg
from freetf_cli.report.panels import Panel
from freetf_cli.report.style import PAGE_CSS
from tests.report.helper import letters_groups
from tests.report.probe_helper import EVIL

BLUE, GREEN = letters_groups(False, groups=1), letters_groups(True, groups=3)
SVG = "{http://www.w3.org/2000/svg}"


def panel(title: str = "κ = 1/8 bit per token", *told: str) -> Panel:
    return Panel(title, [BLUE, GREEN], told)


def parsed(svg: str) -> ElementTree.Element:
    tree = ElementTree.fromstring(svg)
    assert not re.search(r"<script|<image|href|@import|url\(|@font-face", svg)
    return tree


def of_class(tree: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [element for element in tree.iter() if element.get("class") == name]


def rows(tree: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in tree.iter(f"{SVG}text") if text.find(f"{SVG}tspan") is not None]


def said(tree: ElementTree.Element, name: str) -> list[str]:
    return [element.text or "" for element in of_class(tree, name)]


def number(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name, "nan"))


def test_every_row_is_there_in_order_under_its_box() -> None:
    tree = parsed(figure4_svg([panel()]))
    assert rows(tree) == [row for groups in (BLUE, GREEN) for group in groups.groups for row in group]
    assert len(of_class(tree, "independent")) == 1 and len(of_class(tree, "shared")) == 3
    assert said(tree, "title t-independent") == ["independent Z"] and said(tree, "title t-shared") == ["shared Z"] * 3


def test_letters_and_noise_have_their_colours() -> None:
    tree = parsed(figure4_svg([Panel("", [SampleGroups("", True, [["K>__KQ!_"]])])]))
    spans = [(span.get("class"), span.text) for span in tree.iter(f"{SVG}tspan")]
    assert spans == [("s-prompt", "K>"), ("s-blank", "__"), ("s-target", "K"), ("s-wrong", "Q"), ("s-noise", "!"), ("s-blank", "_")]
    named = {str(span.get("class")) for span in tree.iter(f"{SVG}tspan")}
    light, dark = FIGURE4_CSS.split("@media (prefers-color-scheme: dark)")
    assert all(re.search(rf"\.figure4 \.{name}\b", css) for name in named for css in (light, dark))


def test_the_colours_are_the_pages_and_reach_nothing_else() -> None:
    light, dark = (set(re.findall("#[0-9a-f]{6}", css)) for css in FIGURE4_CSS.split("@media"))
    page_light, page_dark = PAGE_CSS.split("@media (prefers-color-scheme: dark)")[:2]
    assert light <= set(re.findall("#[0-9a-f]{6}", page_light)) and dark <= set(re.findall("#[0-9a-f]{6}", page_dark))
    selectors = [one.strip() for head in re.findall(r"([^{}]+)\{[^{}]*:", FIGURE4_CSS) for one in head.split(",")]
    assert len(selectors) > 20 and all(one.startswith(".figure4") for one in selectors)


def test_panels_stand_two_by_two_and_do_not_overlap() -> None:
    tree = parsed(figure4_svg([panel(f"panel {n}", "a number", "another " * 12) for n in range(5)]))
    places = [(number(one, "x"), number(one, "y")) for one in of_class(tree, "heading")]
    assert said(tree, "heading") == [f"panel {n}" for n in range(5)]
    (left, top), (right, _), (_, second), _, (_, third) = places
    assert places == [(left, top), (right, top), (left, second), (right, second), (left, third)] and left < right and top < second < third
    boxes = [[number(one, name) for name in ("x", "y", "width", "height")] for one in tree.iter(f"{SVG}rect")][1:]
    assert len(boxes) == 20
    for i, (x, y, width, height) in enumerate(boxes):
        assert all(x + width <= ox or ox + w <= x or y + height <= oy or oy + h <= y for ox, oy, w, h in boxes[:i])
    x, y, width, height = map(float, str(tree.get("viewBox")).split())
    assert all(x <= a and y <= b and a + c <= x + width and b + d <= y + height for a, b, c, d in boxes)


def test_one_panel_needs_no_title() -> None:
    tree = parsed(figure4_svg([panel("")]))
    assert of_class(tree, "heading") == [] and of_class(tree, "told") == [] and len(rows(tree)) == 24


def test_numbers_and_note_are_whole_and_fit() -> None:
    told = ["I(Z; position) 4.12 [3.99, 4.25] of 5.83 bits", "I(Z; noise) 3.21 [2.99, 3.43] of 21.58 bits", "valid 98.2 % [97.8, 98.6]"]
    tree = parsed(figure4_svg([panel("t", *told)], note="where they come from"))
    assert said(tree, "told") == [told[0], f"{told[1]} · {told[2]}", "where they come from"]
    label = str(tree.get("aria-label"))
    assert all(one in label for one in ("t", *told))
    long = parsed(figure4_svg([panel("run-" * 40, "x" * 200)]))
    assert "".join(said(long, "heading")) == "run-" * 40 and "".join(said(long, "told")) == "x" * 200
    assert max(map(len, said(long, "heading"))) < 60 and max(map(len, said(long, "told"))) < 80


def test_short_rows_leave_room_for_the_title() -> None:
    short = [SampleGroups("", True, [["K>K_!"]])]
    tree = parsed(figure4_svg([Panel("κ = 1/2 bit per token", short, ["I(Z; position) 4.12 [3.99, 4.25] of 5.83 bits"])]))
    assert len(of_class(tree, "heading")) == len(of_class(tree, "told")) == 1
    assert number(of_class(tree, "page")[0], "width") > 300 > number(of_class(parsed(figure4_svg([Panel("", short)])), "page")[0], "width")


def test_boxes_of_short_rows_stand_beside_each_other() -> None:
    short = SampleGroups("", True, [["E>____EEEE________"] * 2] * 3)
    tree = parsed(figure4_svg([Panel("κ = 1/4 bit per token", [short])]))
    boxes = [[number(one, name) for name in ("x", "y", "width")] for one in tree.iter(f"{SVG}rect")][1:]
    (x, y, width), (other, beside, _), (third, below, _) = boxes
    assert (y, x) == (beside, third) and other >= x + width and below > y
    assert other + width <= number(of_class(tree, "page")[0], "width")


def test_running_text_is_broken_without_loss_and_its_prompt_dim() -> None:
    row = "The film was " + "very " * 30 + "x" * 90 + "\nand\tdull <b>& 日本語."
    tree = parsed(figure4_svg([Panel("", [SampleGroups("", False, [[row, "The film was good."]], "The film was ")])]))
    lines = rows(tree)
    assert "".join(lines) == (row + "The film was good.").replace("\t", " ").replace("\n", "")  # a tab reaches to the next stop of four
    assert len(lines) == 7 and max(map(len, lines)) <= 66 and lines[0].endswith("very ")
    assert [one.text for one in of_class(tree, "s-prompt")] == ["The film was ", "The film was "]
    box = of_class(tree, "independent")[0]
    last = max(number(text, "y") for text in tree.iter(f"{SVG}text"))
    assert last < number(box, "y") + number(box, "height")


def test_what_comes_from_outside_is_escaped() -> None:
    groups = SampleGroups("", True, [[EVIL, "\uffff\x00]]>&amp;"]], prompt=EVIL[:9])
    for svg in (figure4_svg([Panel(EVIL, [groups], [EVIL])], note=EVIL), figure4_inline([Panel(EVIL, [groups], [EVIL])], note=EVIL)):
        tree = parsed(svg)
        assert "<img" not in svg and "\x1b" not in svg and "\u202e" not in svg and "\\x1b[2J\\u202e\\ud800" in "".join(rows(tree))
        assert rows(tree)[-1] == "\\uffff\\x00]]>&amp;"
        svg.encode("utf-8")


@pytest.mark.parametrize("groups", [[], [SampleGroups("", True, [])], [SampleGroups("", True, [[]])]])
def test_nothing_to_show(groups: list[SampleGroups]) -> None:
    assert rows(parsed(figure4_svg([Panel("t", groups)]))) == [] and rows(parsed(figure4_svg([]))) == []
    assert rows(parsed(figure4_svg([Panel("", [SampleGroups("", True, [[""]])])]))) == []


def test_in_a_page_it_has_no_style_and_no_ground_of_its_own() -> None:
    inline, alone = figure4_inline([panel(), panel()]), figure4_svg([panel(), panel()])
    assert "<style" not in inline and 'class="page"' not in inline and rows(parsed(inline)) == rows(parsed(alone))
    assert alone.count("<style") == 1 and len(of_class(parsed(alone), "page")) == 1
    width = str(parsed(inline).get("viewBox")).split()[2]
    assert parsed(inline).get("style") == f"max-width:{width}px"
    one = parsed(figure4_inline([panel(), panel()], columns=1))
    assert float(str(one.get("viewBox")).split()[2]) < float(width) / 1.9


def test_a_baseline_has_no_z() -> None:
    assert said(parsed(figure4_svg([Panel("", [BLUE])], latent=False)), "title t-independent") == ["no Z"]
    assert "independent Z" in figure4_svg([Panel("", [replace(BLUE, title="x")])])
