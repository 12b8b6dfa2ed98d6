from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from freetf_cli.records import DatasetSummary, Finding, RunSummary, Sample, TrainResult
from freetf_cli.report import show, terminal
from freetf_cli.report.plot import line_plot, sparkline
from freetf_cli.report.series import Series
from tests.report.helper import FACTS, Terminal, metrics, plan, summary

DATASET = DatasetSummary(
    "data/letters", "letters", "characters", 29, {"train": {"tokens": 3960000, "documents": 60000}, "val": {}}, {"K": 3}, 27.412
)
RESULT = TrainResult("runs/my run", "free", 4000, 66560000, 324.0, metrics(4000, "val"), "runs/my run/c", "runs/my run/report.html", FACTS)
LONG = "a/very/long/path/" * 12
ODD_RUNS = {
    "free": summary(),
    "baseline": summary(False),
    "no metrics": summary(metrics=[], samples=[], agreement=[], checkpoints=[], status="running"),
    "no val": summary(metrics=[line for line in summary().metrics if line.split == "train"]),
    "one line": summary(metrics=[metrics(10)]),
    "diverged": summary(metrics=[metrics(step, ce=math.nan, kl=math.nan, loss=math.nan) for step in (10, 20)]),
    "null": summary(metrics=[metrics(10, ce=None, kl=None, loss=None, kappa=None)]),
    "unknown floor": summary(facts=replace(FACTS, floor_bits=None)),
    "varying rows": summary(facts=replace(FACTS, targets=None)),
    "empty plan": summary(plan=replace(plan(), parts=[], parameters=0, memory={}, overhead_compute=None), recipe={}, manifest={}),
}


def everything() -> None:
    terminal.dataset_summary(DATASET)
    terminal.plan(plan())
    terminal.train_result(RESULT)
    terminal.sample(Sample("K>", "K>__", 0, 0, 1, None))
    terminal.recipes([("letters-free", "free", "as in Figure 4", "7 M")])
    terminal.recipe_diff("a", "b", [("train.lr", 1e-3, None)])
    terminal.findings([Finding("torch", "2.13", True), Finding("device", "none", False, "pip install torch")])
    show.run_summary(summary())


@pytest.mark.parametrize("width", [20, 80, 140])
def test_everything_fits_a_terminal(screen: Callable[[int], Terminal], width: int) -> None:
    stream = screen(width)
    everything()
    assert "…" not in stream.getvalue()


def test_nothing_is_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    everything()
    terminal.findings([Finding("cache", LONG, True)])
    terminal.recipe_diff("a", "b", [("data.dir", LONG, LONG + "b")])
    said = capsys.readouterr().out
    assert LONG in said and LONG + "b" in said and "…" not in said and "\x1b" not in said


def test_ascii_only_stdout(ascii_pipe: Callable[[], io.BytesIO]) -> None:
    written = ascii_pipe()
    everything()
    assert b"CE + KL" in written.getvalue()


@pytest.mark.parametrize("name", ODD_RUNS)
def test_odd_runs_are_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    show.run_summary(ODD_RUNS[name])
    said = capsys.readouterr().out
    assert "runs/letters" in said and "nan" not in said.lower()
    assert ("KL" in said) == (name not in ("baseline", "no metrics"))


def test_numbers_are_labelled(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.train_result(RESULT)
    said = capsys.readouterr()
    assert "CE 22.97 + KL 8.44 = 31.41 bits/sequence (loss 0.2550 nats/token)" in said.out and "66,560,000" in said.out
    assert "freetf sample 'runs/my run' --z shared" in said.err and "freetf show" not in said.out


def test_plan_counts_the_overhead_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.plan(plan())
    said = capsys.readouterr().out
    assert "+12.6 % FLOPs (+12.5 %" in said and "1.8 GiB" in said and "7,160,928" in said and "44.0 %" in said


def test_samples_in_a_pipe_are_raw(capsys: pytest.CaptureFixture[str], screen: Callable[[int], Terminal]) -> None:
    row = Sample("a", "a [red] \x1b[2J " + "x" * 200, 0, 0, 1, None)
    terminal.sample(row)
    assert capsys.readouterr().out == row.text + "\n"
    stream = screen(80)
    terminal.sample(row)
    assert "[red] \\x1b[2J" in stream.getvalue() and "\x1b[2J" not in stream.getvalue() and "x" * 200 in stream.getvalue()


def test_hostile_names(capsys: pytest.CaptureFixture[str]) -> None:
    run: RunSummary = summary(run="[red]\x1b[2J", status="[/]", metrics=[metrics(10, "\x1b[2J"), metrics(20, "\x1b[2J")])
    show.run_summary(run)
    terminal.recipe_diff("[red]\x1b[2J", "b", [("[/k]", "\x1b[2J", 1)])
    said = capsys.readouterr().out
    assert said.count("[red]\\x1b[2J") == 2 and "[/k]" in said and "\x1b" not in said


def test_sparkline() -> None:
    assert sparkline([0, 7, math.nan, 3.5]) == "▁█ ▅" and sparkline([]) == "" and sparkline([2.0]) == "▄"
    assert len(sparkline(list(range(1000)), 40)) == 40 and sparkline(list(range(1000)), 40)[-1] == "█"


def test_line_plot_labels_its_curves_where_they_end() -> None:
    series = [Series("CE", [0, 100, 200], [90, 30, math.nan], "ce"), Series("KL", [0, 100, 200], [0, 8, 9], "kl")]
    lines = line_plot(series, width=80, floor=27.4).plain.splitlines()
    rows = {name: next(i for i, line in enumerate(lines) if name in line) for name in ("CE 30.00", "floor 27.40", "KL 9.00")}
    assert rows["CE 30.00"] < rows["floor 27.40"] < rows["KL 9.00"] and max(map(len, lines)) <= 80
    assert not line_plot([], width=80) and not line_plot([Series("x", [1], [math.nan], "ce")], width=80)


def test_piped_tables_end_with_their_text(capsys: pytest.CaptureFixture[str]) -> None:
    everything()
    lines = [line for line in capsys.readouterr().out.splitlines() if not {"│", "┤"} & set(line)]  # plots are drawings
    assert len(lines) > 30 and all(line == line.rstrip() for line in lines)


def test_the_recipe_in_a_line_names_another_kind_of_attention_only() -> None:
    recipe = summary().recipe
    kinds = {kind: {**recipe, "model": {**recipe["model"], "attention": kind}} for kind in ("softmax", "multi-token")}
    lines = {kind: show.highlights(summary(recipe=changed)) for kind, changed in kinds.items()}
    assert "attention" not in lines["softmax"]
    assert "model.attention multi-token" in lines["multi-token"]
