from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from freetf_cli.records import Agreement, SampleGroups
from freetf_cli.report.figure4 import agreement_table, figure4, figure4_panel
from freetf_cli.report.html import samples_html
from freetf_cli.report.panels import Panel
from freetf_cli.report.rows import parts
from tests.report.helper import letters_groups


def drawn(groups: SampleGroups, width: int, *, colour: bool = False, **options: object) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system="standard" if colour else None)
    figure4(groups, console=console, **options)  # type: ignore[arg-type]
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 100, 140, 160])
def test_rows_are_whole_in_boxes_that_fit(width: int) -> None:
    groups = letters_groups(True)
    shown = drawn(groups, width)
    assert all(row in shown for group in groups.groups for row in group)
    assert all(len(line.rstrip()) <= width for line in shown.splitlines()) and "…" not in shown
    assert max(line.count("shared Z") for line in shown.splitlines()) == (2 if width >= 140 else 1)


def test_a_narrow_terminal_folds_without_loss() -> None:
    groups = letters_groups(False, groups=2, count=2)
    shown = drawn(replace(groups, title=""), 20)
    letters = "".join(line.strip("│").strip() for line in shown.splitlines() if line.startswith("│"))
    assert letters == "".join(row for group in groups.groups for row in group)


def test_colours_tell_blue_from_green_and_letters_from_noise() -> None:
    blue, green = drawn(letters_groups(False), 80, colour=True), drawn(letters_groups(True), 80, colour=True)
    assert "\x1b[34m╭" in blue and "\x1b[32m╭" not in blue and "\x1b[32m╭" in green
    assert "\x1b[1;35mKKKKKKKK" in blue and "\x1b[31m!" in blue


def test_a_wrong_letter_stands_out() -> None:
    assert parts("K>__KQ!_") == [("K>", "prompt"), ("__", "blank"), ("K", "target"), ("Q", "wrong"), ("!", "noise"), ("_", "blank")]


def test_running_text_is_wrapped_and_its_prompt_dim() -> None:
    groups = SampleGroups("", False, [["The film was " + "very " * 30 + "dull.", "The film was good."]], prompt="The film was ")
    assert len(drawn(groups, 60).splitlines()) > 5
    assert "\x1b[2mThe film was \x1b[0mgood." in drawn(groups, 60, colour=True)


def test_hostile_text_is_shown_as_it_is() -> None:
    groups = SampleGroups("[bold]t[/bold]", False, [["[red]<script>alert(1)</script> \x1b[2J\r"]])
    shown, page = drawn(groups, 80), samples_html(groups)
    assert "[red]<script>alert(1)</script> \\x1b[2J\\r" in shown and "[bold]t[/bold]" in shown and "\x1b[2J" not in shown
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page


def test_a_baseline_has_no_z() -> None:
    assert "independent" not in drawn(letters_groups(False), 80, latent=False)
    assert "independent Z" not in samples_html(letters_groups(False), latent=False)


def test_nothing_to_show() -> None:
    assert drawn(SampleGroups("", True, []), 80) == "" and drawn(SampleGroups("", True, [[]]), 80) == ""


@pytest.mark.parametrize(("width", "columns"), [(80, 1), (140, 2), (210, 3)])
def test_a_panel_has_its_title_its_numbers_and_all_boxes_in_one_flow(width: int, columns: int) -> None:
    stream, groups = io.StringIO(), [letters_groups(False, groups=1), letters_groups(True)]
    panel = Panel("κ = 1 [b]bit[/b]", groups, ["I(Z; position) 4.12", "valid 98.2 %\x1b"])
    figure4_panel(panel, console=Console(file=stream, width=width, color_system=None))
    lines = stream.getvalue().splitlines()
    assert lines[1:4] == ["κ = 1 [b]bit[/b]", "I(Z; position) 4.12", "valid 98.2 %\\x1b"]
    assert lines[4].count("╭") == columns and lines[4].count("shared Z") == columns - 1 and "independent Z" in lines[4]
    assert all(row in stream.getvalue() for one in groups for group in one.groups for row in group)
    assert max(map(len, lines)) <= width


def test_agreement() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=80)
    agreement_table([Agreement("position", 0.62, 0.05, 1045, 108), Agreement("noise", 0.3, 0.0, 4, 9)], console=console)
    assert "62.0 %" in stream.getvalue() and "12.4 ×" in stream.getvalue() and "∞ ×" in stream.getvalue() and "1,045" in stream.getvalue()
