"""Tables in the form of the paper's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from freetf_cli.errors import CheckFailed, InputError
from freetf_cli.evaluation.benchmarks import BENCHMARKS, tables
from freetf_cli.evaluation.benchmarks.minimum import parse_minimums, raise_if_below
from freetf_cli.records import to_json
from freetf_cli.records.benchmarks import Benchmarks, Score
from freetf_cli.records.likelihood import Estimate
from freetf_cli.report.blocks import Table


def result(kind: str, **scores: float) -> Benchmarks:
    tasks = [
        Score(
            name,
            BENCHMARKS[name].metric,
            9,
            0,
            {BENCHMARKS[name].metric: Estimate(value, 0.0, 1.0), "acc": Estimate(0.9, 0, 1)},
            0.25,
            0,
            None,
            1.0,
        )
        for name, value in scores.items()
    ]
    return Benchmarks(run=f"runs/{kind}", kind=kind, steps=[10, 20], z=None, draws=1, seed=0, limit=None, tasks=tasks)


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    (tmp_path / "result.json").write_text(to_json(result("baseline", mmlu=0.25, piqa=0.5, humaneval_plus=0.0)), encoding="utf-8")
    return tmp_path


def test_measured_columns_stand_before_the_papers(baseline: Path) -> None:
    found = tables.paper_table(1, result("free", mmlu=0.3, piqa=0.45, humaneval_plus=0.1), [baseline])
    assert found.measured == ["baseline (baseline, mean of 2)", "free (free, mean of 2)"]
    assert found.paper == ["baseline", "free 1/4 bit", "free 1/2 bit", "free 1 bit", "free 2 bits"]
    rows = {row.benchmark: row for row in found.rows}
    assert rows["mmlu"].measured == [0.25, 0.3] and rows["mmlu"].paper == [0.252, 0.265, 0.261, 0.254, 0.257]
    assert rows["mmlu"].metric == "macro_avg/acc_char"
    assert rows["race.high"].measured == [None, None] and rows["race.high"].paper[0] == 0.39
    shown = next(block for block in found.section().blocks if isinstance(block, Table))
    assert list(shown.columns)[-5:] == [f"paper: {name}" for name in found.paper]
    cells = {row[0]: row[2:4] for row in shown.rows}
    assert cells["mmlu"] == ["0.250", "0.300 (+20.0 %)"] and cells["piqa"] == ["0.500", "0.450 (-10.0 %)"]
    assert cells["human_eval_plus"] == ["0.000", "0.100"] and cells["race.high"] == ["–", "–"]


@pytest.mark.parametrize(("number", "columns"), [(1, 5), (2, 5), (3, 4)])
def test_each_table_has_the_papers_sixteen_rows(number: int, columns: int) -> None:
    found = tables.paper_table(number, result("free"), [])
    assert len(found.rows) == 16 and all(len(row.paper) == columns and None not in row.paper for row in found.rows)
    assert {row.benchmark for row in found.rows} - {"race.high", "race.middle"} == set(tables.NAMES)
    for row in found.rows:
        if row.benchmark in tables.NAMES:
            assert row.metric.rpartition("/")[2] == BENCHMARKS[tables.NAMES[row.benchmark]].metric
    text = "".join(block.text for block in found.section().blocks if hasattr(block, "text"))
    assert f"Table {number} of the paper (arXiv 2510.17558" in text and "not measured here" in text


def test_the_result_reads_back_as_it_was_written(baseline: Path) -> None:
    made = dataclasses.replace(result("free", piqa=0.4), paper=tables.paper_table(3, result("free", piqa=0.4), [baseline]))
    read = json.loads(to_json(made))
    assert read["paper"]["rows"][0]["paper"] == [0.268, 0.299, 0.245, 0.256]


def test_what_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no result of an evaluation"):
        tables.paper_table(1, result("free"), [tmp_path])
    for text in ("[", "[]", '{"tasks": [{}]}'):
        (tmp_path / "result.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="not the result of an evaluation"):
            tables.paper_table(1, result("free"), [tmp_path])


def test_a_minimum_of_a_group_is_not_passed_silently() -> None:
    """lm-eval's group is measured as its tasks, none of which has the group's name."""
    minimums = parse_minimums(["0.1", "lm-eval:knowledge=0.5"], ["piqa", "lm-eval:knowledge"])
    assert minimums == {"": 0.1, "knowledge": 0.5}
    with pytest.raises(CheckFailed, match=r"below --min: mmlu 0\.050 < 0\.1, knowledge has no score of its own"):
        raise_if_below([result("free", piqa=0.1), result("free", mmlu=0.05)], minimums)
    raise_if_below([result("free", piqa=0.1)], {"piqa": 0.1})
    with pytest.raises(CheckFailed, match="piqa nan < 0"):
        raise_if_below([result("free", piqa=float("nan"))], {"": 0.0})
