from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from freetf_cli.records import SampleGroups
from freetf_cli.report.report import report_html
from freetf_cli.report.series import Series
from freetf_cli.report.svg import line_chart, thinned, ticks
from tests.report.helper import MANIFEST, metrics, summary
from tests.report.test_terminal import ODD_RUNS

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balance(HTMLParser):
    """Fails on a tag that is closed out of order, and collects what the page says and links to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.said = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data


def read(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.mark.parametrize("name", ODD_RUNS)
def test_every_run_has_a_page_that_stands_alone(name: str) -> None:
    page = report_html(ODD_RUNS[name])
    parsed = read(page)
    assert parsed.links == [] and "<script" not in page and "@import" not in page and "url(" not in page
    assert re.findall(r"https?://[^\s\"']*", page.replace("http://www.w3.org/2000/svg", "")) == []
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", parsed.said.split("}")[-1])


def test_the_page_tells_the_result() -> None:
    said = read(report_html(summary())).said
    for words in (
        "22.97",
        "8.44",
        "31.41",
        "27.41",
        "0.2450 nats/token",
        "62.1 %",
        "7,160,928",
        "2.13.0",
        "freetf train letters-free",
        "shared Z",
    ):
        assert words in said


def test_a_baseline_has_no_kl_and_no_z() -> None:
    said = read(report_html(summary(False))).said.split("}")[-1]
    assert "KL" not in said and "independent Z" not in said and "27.43" in said


def test_what_comes_from_outside_is_escaped() -> None:
    evil = "</title></style><script>alert(1)</script><img src=x onerror=y>\x1b\u202e\ud800"
    run = summary(
        run=evil,
        status=evil,
        recipe={"description": evil, evil: {evil: evil}},
        manifest={**MANIFEST, "argv": [evil], evil: evil},
        samples=[SampleGroups(evil, True, [[evil]])],
        metrics=[metrics(10), metrics(10, evil)],
    )
    page = report_html(run)
    assert "<script" not in page and "<img" not in page and "\x1b" not in page and "\u202e" not in page
    page.encode("utf-8")
    read(page)


def chart(*series: Series, **options: object) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(series, title="<t> & \x1b", x_label="step", y_label="bits", **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ys",
    [[], [math.nan], [1.0], [0.0, 0.0], [1.0, math.nan, 2.0], [math.nan, math.inf, 3.0], [-1.0, -2.0], [1e-9, 2e-9], [1e12, 3e12]],
)
def test_charts_of_odd_curves_are_xml(ys: list[float]) -> None:
    picture = chart(Series("a <b>", list(range(len(ys))), ys, "ce"), Series("b", [], [], "kl"), floor=(1.0, "floor & more"))
    drawn = "".join(value for element in picture.iter() for value in element.attrib.values())
    assert "nan" not in drawn and "inf" not in drawn


def test_a_gap_breaks_the_line_and_points_tell_their_values() -> None:
    picture = chart(Series("CE", [0, 1, 2, 3, 4], [1.0, 2.0, math.nan, 2.0, 1.5], "ce"))
    lines = [element for element in picture.iter() if element.get("class") == "line"]
    titles = [element.text for element in picture.iter() if element.tag.endswith("title") and element.text]
    assert len(lines) == 2 and titles == ["CE: 1.00 at step 0", "CE: 2.00 at step 1", "CE: 2.00 at step 3", "CE: 1.50 at step 4"]


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 43, 5) == [0, 10, 20, 30, 40] and ticks(0, 0.13, 4) == [0, 0.05, 0.1] and ticks(3, 3, 5) == [3]


def test_thinning_keeps_extremes_and_order() -> None:
    points = [(float(x), 100.0 if x == 4321 else float(x % 7)) for x in range(10_000)]
    few = thinned(points, 200)
    assert len(few) <= 200 and (4321.0, 100.0) in few and few == sorted(few)
