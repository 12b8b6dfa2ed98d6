"""The paper's Figure 4 as SVG: every row is there, nothing overlaps, nothing is lost."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from freetf_cli.records.samples import SampleGroups, box
from freetf_cli.report.blocks import Samples
from freetf_cli.report.boxes import box_svg, figure
from freetf_cli.tasks import spans_by_text
from tests.report.helper import EVIL, letters_groups

GROUPS = [letters_groups(False, 1), letters_groups(True, 3)]
SVG = "{http://www.w3.org/2000/svg}"


def panel(title: str = "κ = 1/8 bit per token", *measured: str) -> Samples:
    return Samples([one for groups in GROUPS for one in groups.boxes()], title, measured)


def parsed(svg: str) -> ElementTree.Element:
    assert not re.search(r"<script|<img|<image|href|@import|url\(|@font-face|\x1b|\u202e", svg)
    svg.encode("utf-8")
    return ElementTree.fromstring(svg)


def rows(tree: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in tree.iter(f"{SVG}text") if text.find(f"{SVG}tspan") is not None]


def said(tree: ElementTree.Element, name: str) -> list[str]:
    return [one.text or "" for one in tree.iter() if one.get("class") == name]


def frames(tree: ElementTree.Element) -> list[tuple[float, ...]]:
    """Place and size of each box in the picture."""
    found = []

    def walk(one: ElementTree.Element, x: float, y: float) -> None:
        move = re.match(r"translate\((\S+) (\S+)\)", one.get("transform", ""))
        x, y = (x + float(move[1]), y + float(move[2])) if move else (x, y)
        if one.tag == f"{SVG}rect":
            found.append((x, y, float(one.get("width", 0)), float(one.get("height", 0))))
        for child in one:
            walk(child, x, y)

    walk(tree, 0, 0)
    return found


def test_every_row_is_there_in_order_under_its_box() -> None:
    tree = parsed(figure([panel()]))
    assert rows(tree) == [row for groups in GROUPS for group in groups.groups for row in group]
    assert said(tree, "title independent") == ["independent Z"] and said(tree, "title shared") == ["shared Z"] * 3


def test_characters_have_their_colours_in_light_and_dark() -> None:
    picture = figure([Samples([box("shared Z", ["K>__KQ!_"], "", shared=True, spans=spans_by_text("letters", {}, ["K>__KQ!_"]))])])
    spans = [(span.get("class"), span.text) for span in parsed(picture).iter(f"{SVG}tspan")]
    assert spans == [("s-prompt", "K>"), ("s-blank", "__"), ("s-target", "K"), ("s-invalid", "Q"), ("s-noise", "!"), ("s-blank", "_")]
    assert all(f".{name} " in picture or f".{name}," in picture for name in dict(spans)) and picture.count("--noise:") == 2
    used = set(re.findall(r"var\((--[a-z-]+)\)", picture))
    assert all(picture.count(f"{name}:") >= 1 for name in used)


def test_panels_stand_two_by_two_and_do_not_overlap() -> None:
    tree = parsed(figure([panel(f"panel {n}", "a number", "another " * 12) for n in range(5)]))
    assert said(tree, "heading") == [f"panel {n}" for n in range(5)]
    boxes = frames(tree)
    assert len(boxes) == 20 and len({x for x, *_ in boxes}) == 2
    for i, (x, y, width, height) in enumerate(boxes):
        assert all(x + width <= ox or ox + w <= x or y + height <= oy or oy + h <= y for ox, oy, w, h in boxes[:i])
    x, y, width, height = map(float, str(tree.get("viewBox")).split())
    assert all(x <= a and y <= b and a + c <= x + width and b + d <= y + height for a, b, c, d in boxes)


def test_numbers_and_note_are_whole() -> None:
    measured = ["I(Z; position) 4.12 [3.99, 4.25] of 5.83 bits", "I(Z; noise) 3.21 [2.99, 3.43] of 21.58 bits", "valid 98.2 % [97.8, 98.6]"]
    tree = parsed(figure([panel("t", *measured)], note="where they come from"))
    assert said(tree, "measured") == [measured[0], f"{measured[1]} · {measured[2]}", "where they come from"]
    assert all(one in str(tree.get("aria-label")) for one in ("t", *measured))
    long = parsed(figure([panel("run-" * 40, "x" * 200)]))
    assert "".join(said(long, "heading")) == "run-" * 40 and "".join(said(long, "measured")) == "x" * 200


def test_short_boxes_stand_beside_each_other() -> None:
    short = SampleGroups("", True, [["E>____EEEE________"] * 2] * 3)
    (x, y, width, _), (other, beside, *_), (third, below, *_) = frames(parsed(figure([Samples(short.boxes(), "κ = 1/4 bit per token")])))
    assert (y, x) == (beside, third) and other >= x + width and below > y


def test_running_text_is_broken_without_loss() -> None:
    row = "The film was " + "very " * 30 + "x" * 90 + "\nand\tdull <b>& 日本語."
    lines = rows(parsed(box_svg(box("independent Z", [row, "The film was good."], "The film was "))))
    assert "".join(lines) == (row + "The film was good.").replace("\t", " ").replace("\n", "")  # a tab reaches to the next stop of four
    assert len(lines) == 7 and max(map(len, lines)) <= 66 and lines[0].endswith("very ")


def test_what_comes_from_outside_is_escaped() -> None:
    drawn = figure([Samples([box(EVIL, [EVIL, "\uffff\x00]]>&amp;"], EVIL[:9])], EVIL, [EVIL])], note=EVIL)
    tree = parsed(drawn)
    assert "\\x1b[2J\\u202e\\ud800" in "".join(rows(tree)) and rows(tree)[-1] == "\\uffff\\x00]]>&amp;"


@pytest.mark.parametrize("panels", [[], [Samples([])], [Samples([box("shared Z", [""], "")])]])
def test_nothing_to_show(panels: list[Samples]) -> None:
    assert rows(parsed(figure(panels))) == []
