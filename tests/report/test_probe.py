from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from freetf_cli.records.likelihood import Estimate
from freetf_cli.records.probe import HeatMap, ProbeResult, Sweep
from freetf_cli.report.bars import bar, column_chart, pooled, shade_rows, split_bar
from freetf_cli.report.estimates import bracket, interval, number, share_interval
from freetf_cli.report.probe import probe, sweep
from freetf_cli.report.probe_report import probe_report_html
from tests.report.helper import Terminal
from tests.report.probe_helper import EVIL, NAN, ODD_RESULTS, budget, factors, intervention, result
from tests.report.probe_helper import sweep as made_sweep
from tests.report.test_report import read

STYLES = re.compile("\x1b\\[[0-9;]*m")


def said(shown: ProbeResult | Sweep, capsys: pytest.CaptureFixture[str]) -> str:
    if isinstance(shown, Sweep):
        sweep(shown)
    else:
        probe(shown)
    return capsys.readouterr().out


def test_the_verdict_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(result(), capsys).splitlines()
    assert lines[0] == "Verdict: global. Z says where the target stands and some of the noise; it says nothing about the letter."
    assert lines[1] == "· I(Z; position) is 4.12 of 5.83 bits, the shuffled control 0.02"


def test_every_section_has_its_numbers_and_units(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(result(), capsys)
    for words in (
        *("9.61 [9.42, 9.80] bits/sequence", "7.91 to 8.63 bits/sequence", "0.78 [0.76, 0.80] bits of CE saved by each bit of KL"),
        *("212 of 1,040 (20.4 %)", "at most log2 of their number, 12.00 bits", "κ 0.50"),
        *("64.90", "0.4802 [0.4762, 0.4842] nats/token", "I(Z; factor), bits", "4.12 [3.99, 4.25]", "70.7 %", "0.11 [-0.03, 0.25]"),
        *("noise: lower bound, a sum over 64 sites", "48 Zs from the prior, 64 sequences each", "12.2 ×", "98.2 %"),
        *("16 of 48 groups", "90.0 % of a group's outputs", "shared Z", "58.7 % [56.6, 60.8]", "hidden, linear", "3.60 of 21.58"),
    ):
        assert words in text, words
    assert "position: lower bound" not in text


def test_bars_show_the_share_of_the_entropy(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(result(), capsys)
    lines = {name: next(line for line in text.splitlines() if line.startswith(name) and "[" in line) for name in ("position", "noise")}
    assert lines["position"].count("█") == 14 and lines["position"].count("░") == 6 and lines["noise"].count("█") == 3


def test_a_bracket_at_its_end_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    reached = result(budget=budget(information_low=11.9, information_high=13.0))
    assert "it has reached that" in said(reached, capsys)
    assert "it has reached that" in read(probe_report_html([reached])).said
    assert "it has reached that" not in said(result(), capsys)


def test_parts_that_are_missing_leave_no_heading(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(ODD_RESULTS["no intervention"], capsys)
    assert "Reliance" in text and not any(word in text for word in ("Intervention", "Transplant", "Decoding", "Notes"))
    assert "efficiency" not in said(ODD_RESULTS["no floor"], capsys)
    assert "valid outputs" not in said(ODD_RESULTS["no factors"], capsys)


@pytest.mark.parametrize("name", ODD_RESULTS)
def test_pipes_lose_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(ODD_RESULTS[name], capsys)
    assert "Budget" in text and "nan" not in text.lower() and "…" not in text and "\x1b" not in text and "None" not in text


@pytest.mark.parametrize("width", [20, 40, 60, 80, 140])
@pytest.mark.parametrize("name", ODD_RESULTS)
def test_terminals_of_any_width(name: str, width: int, screen: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = screen(width)
    probe(ODD_RESULTS[name])
    sweep(Sweep([ODD_RESULTS[name]]))
    lines = STYLES.sub("", stream.getvalue()).splitlines()
    assert "…" not in stream.getvalue() and max(len(line.rstrip()) for line in lines) <= width


def test_numbers_are_whole_at_80_columns(screen: Callable[[int], Terminal]) -> None:
    stream = screen(80)
    probe(result())
    text = STYLES.sub("", stream.getvalue())
    for words in ("[0.6910, 0.6931]", "4.12 [3.99, 4.25]", "0.02 [-0.01, 0.05]", "95.1 % [94.9, 95.3]", "3.60 of 21.58", "64.90"):
        assert words in text, words


def test_ascii_only(ascii_pipe: Callable[[], io.BytesIO]) -> None:
    written = ascii_pipe()
    probe(result())
    sweep(made_sweep())
    assert b"\\u" not in written.getvalue() and b"\\x" not in written.getvalue() and b"KL: # information at least" in written.getvalue()


def test_hostile_text_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(ODD_RESULTS["hostile"], capsys)
    assert "[red]\\x1b[2J\\u202e" in text and "\x1b" not in text and "\u202e" not in text


def test_a_sweep_is_in_the_order_of_kappa(capsys: pytest.CaptureFixture[str]) -> None:
    runs = made_sweep().runs
    text = said(Sweep(runs[::-1]), capsys)
    table = text[text.index("Rate and distortion") : text.index("Information of Z")]
    found = re.findall(r"letters-k(\S+)", table)
    assert found == ["0.125", "0.25", "0.5", "1", "2", "4"] and "copying" in table and "bits/sequence" in table
    bars = [line.count("█") for line in text[text.index("position, bits of H") : text.index("noise, bits of H")].splitlines()[1:] if line]
    assert len(bars) == 6 and bars == sorted(bars) and bars[0] < bars[-1]
    assert "letter, bits of H" not in text, "a factor without entropy needs no bars"


def test_a_sweep_ends_with_the_samples_of_each_kappa(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(Sweep(made_sweep((8.0, 0.125, 1.0)).runs), capsys)
    shown = text[text.index("Samples by κ") :]
    assert re.findall(r"κ = (\S+) bit", shown) == ["1/8", "1", "8"] and shown.count("independent Z") == 6 and shown.count("shared Z") == 6
    assert shown.count("valid 94.0 % [93.0, 95.0]") == 1 and "I(Z; position) 5.18 [5.05, 5.31] of 5.83 bits" in shown
    samples = made_sweep((1.0,)).runs[0].intervention.samples  # type: ignore[union-attr]
    assert all(shown.count(row) >= 3 for groups in samples for group in groups.groups for row in group) and "…" not in text
    assert "Samples by κ" not in said(Sweep([ODD_RESULTS["no intervention"]]), capsys)


def test_a_sweeps_boxes_are_blue_and_green_unless_colour_is_refused(
    screen: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = screen(140)
    sweep(made_sweep((1.0, 2.0)))
    assert "\x1b[34m╭" in stream.getvalue() and "\x1b[32m╭" in stream.getvalue() and "\x1b[1;35mKKKKKKKK" in stream.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = screen(140)
    sweep(made_sweep((1.0, 2.0)))
    assert not re.search("\x1b\\[[0-9;]*3[1-6]m", plain.getvalue()) and plain.getvalue().count("╮╭") >= 4


def test_runs_of_one_name_keep_their_folders(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(Sweep([result(run="a/run", kappa=1.0), result(run="b/run", kappa=2.0)]), capsys)
    assert "a/run" in text and "b/run" in text


def test_sweeps_of_little(capsys: pytest.CaptureFixture[str]) -> None:
    assert "No runs" in said(Sweep([]), capsys)
    text = said(Sweep([ODD_RESULTS["no intervention"], replace(result(), run="x", kappa=2.0)]), capsys)
    assert "4.12" in text and "–" in text


def test_estimates_in_words() -> None:
    assert interval(Estimate(-0.001, -0.002, 0.1)) == "0.00 [0.00, 0.10]" and interval(NAN) == "–" and number(None) == "–"
    assert interval(Estimate(1.0, math.nan, math.nan)) == "1.00" and share_interval(Estimate(0.5, 0.4, 0.6)) == "50.0 % [40.0, 60.0]"
    assert bracket(1.0, 1.0) == "1.00" and bracket(1.0, 2.5) == "1.00 to 2.50"


def test_bars() -> None:
    assert bar(0.5, 4) == "██░░" and bar(7, 4) == "████" and bar(-1, 4) == "░░░░" and bar(math.nan, 4) == bar(None, 4) == "    "
    assert split_bar(2, 1, 1, 8) == "████▒▒░░" and split_bar(math.nan, 0, 0) == ""
    assert pooled([1, 3, 5, math.nan], 2) == [2, 5] and pooled([1, 2], 5) == [1, 2]


def test_columns_stand_on_zero_and_carry_their_line() -> None:
    lines = column_chart([4.0, 2.0, 1.0], width=40, name="bit", height=4, line=(2.0, "κ 2")).plain.splitlines()
    assert len(lines) == 6 and "κ 2" in lines[1] and lines[0].count("█") == 3 and lines[3].count("█") == 9
    assert not column_chart([0.0], width=40, name="bit") and not column_chart([], width=40, name="bit")
    assert not column_chart([1.0], width=10, name="position")


def test_shades_are_taken_evenly() -> None:
    rows = shade_rows([[i / 9, 0.0, math.nan] for i in range(10)], width=3, most=5, top=1.0)
    assert [row for row, _ in rows] == [0, 2, 4, 6, 8] and [shades[0] for _, shades in rows] == [" ", "░", "▒", "▓", "█"]
    assert all(shades[1:] == "  " for _, shades in rows)


@pytest.mark.parametrize("name", ODD_RESULTS)
@pytest.mark.parametrize("runs", [1, 2])
def test_every_page_stands_alone(name: str, runs: int) -> None:
    page = probe_report_html([ODD_RESULTS[name], result(run="other")][:runs])
    parsed = read(page)
    assert all(link.startswith("#run-") for link in parsed.links) and len(parsed.links) == (runs if runs > 1 else 0)
    assert "<script" not in page and "<img" not in page and "@import" not in page and "url(" not in page
    assert re.findall(r"https?://[^\s\"']*", page.replace("http://www.w3.org/2000/svg", "")) == []
    assert not re.search(r"\b(nan|inf|None)\b", parsed.said.split("}")[-1]) and not re.search(r'="[^"]*\b(nan|inf)\b', page)


def test_the_page_tells_the_result() -> None:
    words = read(probe_report_html([result()])).said.split("}")[-1]
    for part in (
        *("Verdict: global", "Budget", "Reliance", "Intervention", "Transplant", "Decoding", "Notes", "seed 0", "4,096 sequences"),
        *("9.61 [9.42, 9.80] bits/sequence", "4.12 [3.99, 4.25]", "log2 of their number", "a sum over 64 sites", "shared Z"),
        *("lower bound of the whole where the sites are independent", "not information", "not over training seeds", "KL by position"),
    ):
        assert part in words, part


def test_several_runs_begin_with_their_sweep() -> None:
    page = probe_report_html(made_sweep().runs)
    words = read(page).said.split("}")[-1]
    assert words.index("Rate and distortion") < words.index("I(Z; factor) by κ") < words.index("Verdict: global")
    assert page.count("<article") == 6 and page.count('<p class="label">') == 6


def test_a_sweeps_page_has_figure_4_near_its_top() -> None:
    page = probe_report_html(made_sweep((2.0, 0.125)).runs)
    figure = page[page.index("Samples by κ") : page.index("Rate and distortion")]
    for picture in re.findall(r"<svg.*?</svg>", figure, re.DOTALL):
        titles = [one.text for one in ElementTree.fromstring(picture).iter() if one.get("class") == "heading"]
        assert titles == ["κ = 1/8 bit per token", "κ = 2 bits per token"]
    assert figure.count("<svg") == 2 and page.count(".figure4 text {") == 2, "light and dark, in the head alone"
    assert "Samples by κ" not in probe_report_html([ODD_RESULTS["no intervention"]] * 2)


def test_what_comes_from_outside_is_escaped() -> None:
    page = probe_report_html([ODD_RESULTS["hostile"], replace(result(), notes=[EVIL], run=EVIL * 2)])
    assert "&lt;script&gt;" in page and "<script" not in page and "<img" not in page and "\x1b" not in page and "\u202e" not in page
    page.encode("utf-8")
    read(page)


def test_a_page_without_entropy_or_heat() -> None:
    bare = intervention(factors=[replace(factors()[0], entropy=0.0)], heat_maps=[HeatMap("m", [[0.0]])], samples=[])
    assert "no values" in read(probe_report_html([result(intervention=bare)])).said


@pytest.mark.parametrize("width", [40, 59, 60, 79, 80])
def test_narrow_tables_keep_their_names_and_numbers(width: int, screen: Callable[[int], Terminal]) -> None:
    stream = screen(width)
    probe(result())
    text = STYLES.sub("", stream.getvalue())
    for word in ("another", "hidden,", "95 % interval", "[0.6910, 0.6931]", "95.1 % [94.9, 95.3]", "3.60 of 21.58", "64.90", "93.8 %"):
        assert word in text, word
