"""Reports in a terminal of any width, in a pipe, and on a stream that carries ASCII only."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Callable

import pytest
from rich.cells import cell_len

from freetf_cli.records.samples import SampleGroups, line_spans
from freetf_cli.report.blocks import Chart, Report, Series, Table
from freetf_cli.report.terminal import show, show_blocks, show_line, sparkline
from tests.report.helper import RECORDS, TRAINED, Terminal, comparison, letters_groups, sweep


def plain(stream: Terminal) -> str:
    """What a terminal shows, without colours and without commands to copy, which are never folded."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    return "".join(line for line in text.splitlines(keepends=True) if "hint: " not in line and not line.startswith("   freetf "))


@pytest.mark.parametrize("width", [20, 40, 80, 140])
@pytest.mark.parametrize("name", RECORDS)
def test_everything_fits_a_terminal(name: str, width: int, screen: Callable[[int], Terminal]) -> None:
    stream = screen(width)
    show(RECORDS[name].report())
    text = plain(stream)
    assert max(map(cell_len, text.splitlines())) <= width
    assert not re.search(r"\b(nan|None|inf)\b", text) and (name == "text" or "…" not in text)
    assert "\x1b[2J" not in stream.getvalue() and "\u202e" not in text


@pytest.mark.parametrize("name", RECORDS)
def test_a_pipe_gets_every_character_without_colour(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(RECORDS[name].report())
    said = capsys.readouterr().out
    boxes = {"│", "╭", "╰"}
    assert "\x1b" not in said and all(line == line.rstrip() for line in said.splitlines() if not boxes & set(line[:1]))
    if name.startswith("hostile"):
        assert "[red]\\x1b[2J\\u202e\\ud800" in said


def test_an_ascii_stream_gets_lookalikes(ascii_pipe: Callable[[], io.BytesIO]) -> None:
    written = ascii_pipe()
    for record in (sweep(), comparison()):
        show(record.report())
    sys.stdout.flush()
    text = written.getvalue().decode("ascii")
    assert "\\u" not in text and "B - A" in text and "||B - A||" in text and "#" in text


@pytest.mark.parametrize("width", [80, 140])
def test_numbers_are_whole_at_80_columns(screen: Callable[[int], Terminal], width: int) -> None:
    stream = screen(width)
    for record in (RECORDS["probe"], RECORDS["likelihood"], comparison()):
        show(record.report())
    text = re.sub(" +", " ", plain(stream))
    interval = RECORDS["probe"].intervention.factors[1].information.text()
    for cells in ("nll 37.51 36.57 -0.94 [-1.41, -0.47] -2.50", "0.250 (0.9700)", "7,160,928", interval):
        assert cells in text, cells


def test_a_table_without_room_is_stacked(screen: Callable[[int], Terminal]) -> None:
    stream = screen(30)
    show_blocks([Table(["name", "first number", "second"], [["row", "1,234,567.89", "0.123456789"]], align="lrr")])
    assert plain(stream).splitlines() == ["row", "  first number 1,234,567.89", "  second       0.123456789"]


def test_hints_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    show(TRAINED.report())
    said = capsys.readouterr()
    assert "CE 22.97 + KL 8.44 = 31.41 bits/sequence (loss 0.2550 nats/token)" in said.out and "66,560,000" in said.out
    assert "freetf sample 'runs/my run' --z shared" in said.err and "freetf show" not in said.out


def test_details_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    show(Report("t", [Table(["a"], [["x"]], detail=True)], parts=[Report("part", [])]))
    assert capsys.readouterr().out == "t\n\n"


def test_a_line_of_a_sample(capsys: pytest.CaptureFixture[str], screen: Callable[[int], Terminal]) -> None:
    text = "a [red] \x1b[2J " + "x" * 200
    show_line(line_spans(text, "a"))
    assert capsys.readouterr().out == text + "\n"
    stream = screen(80)
    show_line(line_spans(text, "a"))
    assert "[red] \\x1b[2J" in stream.getvalue() and "\x1b[2J" not in stream.getvalue() and "x" * 200 in stream.getvalue()


@pytest.mark.parametrize(("width", "beside"), [(80, 1), (140, 2), (210, 3)])
def test_boxes_stand_side_by_side_where_they_fit(screen: Callable[[int], Terminal], width: int, beside: int) -> None:
    groups = letters_groups(True)
    stream = screen(width)
    show_blocks([groups.block()])
    assert max(line.count("shared Z") for line in plain(stream).splitlines()) == beside
    assert all(row in plain(stream) for group in groups.groups for row in group)


def test_colours_and_no_color(screen: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> str:
        stream = screen(80)
        show_blocks([letters_groups(False, 1).block(), letters_groups(True, 1).block()])
        return stream.getvalue()

    assert all(one in shown() for one in ("\x1b[34m╭", "\x1b[32m╭", "\x1b[1;35mKKKKKKKK", "\x1b[31m!"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search("\x1b\\[[0-9;]*3[1-6]m", shown())


def test_running_text_is_wrapped_without_loss(screen: Callable[[int], Terminal]) -> None:
    stream = screen(60)
    show_blocks(
        [
            SampleGroups("", False, [["The film was " + "very " * 30 + "dull."]], "The film was ").block(),
            SampleGroups("", True, [[]]).block(),
        ]
    )
    assert plain(stream).count("very") == 30 and len(plain(stream).splitlines()) == 6


def test_curves_are_sparklines(capsys: pytest.CaptureFixture[str]) -> None:
    assert sparkline([0, 7, math.nan, 3.5]) == "▁█ ▅" and sparkline([]) == "" and sparkline([2.0]) == "▄"
    assert len(sparkline(list(range(1000)), 40)) == 40 and sparkline(list(range(1000)), 40)[-1] == "█"
    show_blocks([Chart("Cost", [Series("CE", [0, 1], [3.0, 1.5]), Series("train", [0], [1.0], faint=True)], "step", "bits")])
    assert capsys.readouterr().out == "Cost, by step\nCE  █▁  min 1.50, last 1.50\n"
