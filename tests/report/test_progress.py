"""Progress on a terminal, in a pipe and with --quiet."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from freetf_cli.report.console import set_verbosity
from freetf_cli.report.progress import TrainingProgress, bar_line, counter, number_line
from tests.report.helper import Terminal, metrics, progress


def whole_run(display: TrainingProgress) -> None:
    with display:
        for step in range(10, 4001, 10):
            display.update(progress(step).status())
            if step % 1000 == 0:
                display.update(progress(step, split="val").status())


def test_not_a_terminal_gets_a_few_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    whole_run(TrainingProgress())
    with counter("documents", 100) as advance:
        for _ in range(100):
            advance()
    said = capsys.readouterr()
    lines = said.err.splitlines()
    train = [line for line in lines if "held out" not in line]
    assert said.out == "" and "\x1b" not in said.err and "\r" not in said.err
    assert 10 <= len(train) <= 21 and len(lines) - len(train) == 4
    assert lines[0].startswith("step 10/4,000") and lines[-2].startswith("step 4,000/4,000")
    assert "floor 27.41" in lines[0] and "bits/sequence" in lines[0]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    whole_run(TrainingProgress(quiet=True))
    set_verbosity(quiet=True, verbose=False)
    whole_run(TrainingProgress())
    assert capsys.readouterr() == ("", "")


def test_a_terminal_is_animated_and_stdout_left_alone(screen: Callable[[int], Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    stream, piped = screen(80), io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    with TrainingProgress() as display, counter("documents", 5) as advance:
        display.update(progress().status())
        advance(5)
        advance(0, "training BPE on documents")
        print("result")
    assert piped.getvalue() == "result\n"
    assert "1,240/4,000 steps" in stream.getvalue() and "training BPE on documents" in stream.getvalue()
    assert "result" not in stream.getvalue()


def lines_at(width: int, **changes: object) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    now = replace(progress(), **changes)  # type: ignore[arg-type]
    held_out = replace(now, metrics=replace(metrics(1200, "val"), kl=now.metrics.kl, kappa=now.metrics.kappa))
    with console.capture() as captured:
        console.print(bar_line(now.status(), width))
        console.print(number_line(now.status(), held_out.status(), width))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [20, 34, 50, 80, 140])
def test_two_lines_fit(width: int) -> None:
    lines = lines_at(width)
    assert len(lines) == 2 and all(len(line.rstrip()) <= width for line in lines)
    assert "CE 23" in lines[1]


def test_what_is_shown_at_80_and_140_columns() -> None:
    for width in (80, 140):
        shown = " ".join(lines_at(width))
        for word in ("31 %", "12.3/s", "3:44 left", "CE 23", "KL 8.4", "floor 27.41", "κ 0.125", "loss 0.25"):
            assert word in shown, word
    assert "held out: CE 23" in lines_at(140)[1] and "val 23" in lines_at(80)[1]


def test_a_baseline_has_no_kl() -> None:
    shown = lines_at(140, metrics=metrics(1240, free=False))[1]
    assert "KL" not in shown and "κ" not in shown


def test_a_run_that_diverged_is_shown() -> None:
    assert "CE –" in lines_at(80, metrics=metrics(1240, ce=math.nan, kl=math.nan, loss=math.nan), remaining=math.inf)[1]
