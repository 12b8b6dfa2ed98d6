"""Pages stand alone, balance their tags and escape whatever comes from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from freetf_cli.records.run import title
from freetf_cli.report.page import html
from tests.report.helper import RECORDS, comparison, probe, summary, sweep

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Fails on a tag that is closed out of order, and collects the page's text and links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.said = ""
        self.feed(page)
        self.close()
        assert self.open == []
        self.said = self.said.split("}\n", self.said.count("}\n"))[-1]

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


def said(record: Any) -> str:
    return Reader(html(record.report())).said


@pytest.mark.parametrize("name", RECORDS)
def test_every_page_stands_alone(name: str) -> None:
    page = html(RECORDS[name].report())
    read = Reader(page)
    assert all(link.startswith("#") for link in read.links)
    assert "<script" not in page and "<img" not in page and "@import" not in page and not re.search(r"url\((?!#)", page)
    assert set(re.findall(r"https?://[^\s\"'<]*", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(nan|inf|None)\b", read.said) and not re.search(r'="[^"]*\b(nan|inf)\b', page)
    assert "\x1b" not in page and "\u202e" not in page
    assert all((shown in page) == name.startswith("hostile") for shown in ("&lt;script&gt;", "\\x1b[2J\\u202e\\ud800"))
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page
    page.encode("utf-8")


def test_pages_show_more_than_a_terminal() -> None:
    for record, words in (
        (summary(), ("22.97", "0.2450 nats/token", "62.1 %", "2.13.0", "freetf train letters-free", "shared Z", "floor 27.41", "Q(Z|S)")),
        (comparison(), ("old and new", "-0.94 [-1.41, -0.47]", "FAILED", "blocks.0.ffn.up.weight", "encoder.zeta", "Every unit")),
        (probe(), ("Verdict: details", "not over training seeds", "KL by position", "not information", "the letter", "I(Z; factor), bits")),
    ):
        text = said(record)
        assert all(word in text for word in words), [word for word in words if word not in text]


def test_titles_name_the_run_its_recipe_and_the_kind_of_report() -> None:
    titles = {"letters · letters-free · Free Transformer": summary(), "letters-2th · what Z encodes · probe-latent": probe()}
    for words, record in titles.items():
        assert f"<title>{words} · freetf</title>" in html(record.report())
    assert "<h1>letters · letters-free</h1>" in html(summary().report())


@pytest.mark.parametrize(
    ("recipe", "shown"),
    [
        ("demo-free", "a · demo-free"),
        ("figure4/8th", "a · figure4/8th"),
        ("my/own.toml", "a · own"),
        ("my/own.toml/8th", "a · own/8th"),
        ("a", "a"),
        ("", "a"),
        (None, "a"),
    ],
)
def test_a_recipe_in_a_title(recipe: str | None, shown: str) -> None:
    assert title("runs/a", {"recipe": recipe}) == shown


def test_wide_tables_scroll_under_a_shade() -> None:
    page = html(sweep().report())
    assert len(re.findall('<div class="scroll" tabindex="0"[^>]*><table>', page)) == page.count("<table>") > 5
    assert re.search(r"\.scroll \{ overflow-x: auto;[^}]*var\(--faint\), transparent\) right", page)
    assert re.search(r"max-width: 640px\) \{[^@]*td:first-child \{ white-space: normal \}", page)


def test_the_page_of_a_sweep_links_to_its_runs() -> None:
    page = html(sweep().report())
    assert (
        page.count("<article") == 4
        and page.count('class="glossary"') == 1
        and [link for link in Reader(page).links if "part" in link] == [f"#part-{i}" for i in range(1, 5)]
    )
    assert page.index("I(Z; factor) by κ") < page.index("Samples by κ") < page.index("Verdict: ")


def test_the_same_report_gives_the_same_bytes() -> None:
    assert html(probe().report()) == html(probe().report())
