"""What holds for every task: streams that never change, discovery, help, parameters. Each task has a test file of its own besides."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import freetf_cli.tasks
from freetf_cli.config.schema import recipe_schema
from freetf_cli.data.prepare import task_tokenizer
from freetf_cli.errors import InputError
from freetf_cli.streams import stream_seed
from freetf_cli.tasks import describe, make_task, task_names
from freetf_cli.tasks.base import PAD
from freetf_cli.tasks.factors import UNREAD, Factor, encode, spans_of

TASKS = task_names()

EXTRA_TASK = '''"""echo: one digit, written twice. A task for this test."""
from freetf_cli.tasks.base import Example, Param, Rows, Task, BLOCK_ROWS, decoder

class Echo(Task):
    alphabet, row_tokens = "0123456789", 2
    PARAMS = {"base": Param(10, "digits", 2, 10)}

    def draw(self, rng):
        tokens = rng.integers(self.params["base"], size=(BLOCK_ROWS, 1)).repeat(2, axis=1)
        return Rows(tokens, lambda i: Example(decoder(self.alphabet)(tokens[i]), {"digit": int(tokens[i, 0])}))

    def entropy(self):
        return {}

    def prompt(self, seed, index):
        return "0"
'''


def test_tasks_are_found_by_listing_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file is a new task, with its help, and nothing else changes."""
    assert {"letters", "coins", "reviews", "blocks"} <= set(TASKS) and list(TASKS) == sorted(TASKS)
    assert [make_task(name, {}).name for name in TASKS] == [*TASKS]
    (tmp_path / "echo.py").write_text(EXTRA_TASK, encoding="utf-8")
    monkeypatch.setattr(freetf_cli.tasks, "__path__", [*freetf_cli.tasks.__path__, str(tmp_path)])
    assert task_names() == tuple(sorted([*TASKS, "echo"]))
    assert make_task("echo", {"base": 2}).name == "echo"
    assert make_task("echo", {}).examples(0, 0, 1)[0].text in {str(digit) * 2 for digit in range(10)}


@pytest.mark.parametrize("name", TASKS)
def test_help_is_parsed_from_the_source(name: str) -> None:
    summary, params = describe(name)
    assert summary.startswith(f"{name}: ") and params == list(make_task(name, {}).PARAMS)


def test_names_are_listed_without_numpy() -> None:
    code = "import sys, freetf_cli.tasks as t; t.task_names(); t.describe('letters'); print('numpy' in sys.modules)"
    assert run_python(code) == "False"


def test_the_schema_of_a_recipe_lists_the_tasks() -> None:
    (task, _) = recipe_schema()["$defs"]["DataConfig"]["properties"]["task"]["anyOf"]
    assert task["enum"] == list(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_rows_do_not_depend_on_how_they_are_asked_for(name: str) -> None:
    whole = make_task(name, {}).tokens(3, 1000, 60)  # across the border of a block
    task = make_task(name, {})
    parts = [task.tokens(3, start, 7) for start in range(1000, 1060, 7)]
    assert (np.concatenate(parts)[:60] == whole).all()
    assert (make_task(name, {}).tokens(3, 1059, 1) == whole[-1:]).all()
    assert not (make_task(name, {}).tokens(4, 1000, 60) == whole).all()


@pytest.mark.parametrize("name", TASKS)
def test_tokens_are_the_tokenized_examples(name: str) -> None:
    task = make_task(name, {})
    tokenizer = task_tokenizer(task)
    edge = [tokenizer.separator] if task.separator else []
    for tokens, example in zip(task.tokens(0, 0, 50), task.examples(0, 0, 50), strict=True):
        assert tokens[tokens != PAD].tolist() == [*edge, *tokenizer.encode(example.text), *edge]
        assert len(tokens) == task.row_tokens
        assert (tokens[: len(tokens) - (tokens == PAD).sum()] != PAD).all(), "padding stands at the end only"


def test_another_process_makes_the_same_rows() -> None:
    code = "from freetf_cli.tasks import make_task; print([make_task(n, {}).examples(5, 9, 2) for n in ('letters', 'reviews')])"
    assert run_python(code) == str([make_task(name, {}).examples(5, 9, 2) for name in ("letters", "reviews")])


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout.strip()


def test_splits_have_streams_of_their_own() -> None:
    task = make_task("letters", {"noise": 0.4})
    train, val = (task.tokens(stream_seed(0, split), 0, 2000) for split in ("train", "val"))
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in val}


@pytest.mark.parametrize("name", TASKS)
def test_readings_of_true_rows(name: str) -> None:
    """True rows are valid, their spans are the row without an invalid one, and the prompt for other factors is a prompt."""
    task = make_task(name, {})
    examples = task.examples(0, 0, 60)
    for example, reading in zip(examples, task.read_all([example.text for example in examples]), strict=True):
        spans = task.spans(example.text)
        assert reading.valid is not False
        assert "".join(text for text, _ in spans) == (example.text if spans else "") and "invalid" not in {role for _, role in spans}
        assert {factor.name for factor in task.factors} <= reading.factors.keys() & example.factors.keys()
        task.check_prompt(task.other_prompt(example.factors) or task.prompt(0, 0))


def test_factors_as_numbers() -> None:
    place, marks = Factor("place", range(5)), Factor("marks", (False, True), sites=4)
    assert place.encode([4, None, 9, "2"]).tolist() == [4, UNREAD, UNREAD, 2]
    assert Factor("label", ("neg", "pos")).encode(["pos", "new", ["a", "list"]]).tolist() == [1, UNREAD, UNREAD]
    assert encode([place, marks], [{"place": 1, "marks": [0, 3]}, {}])["marks"].tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]]
    assert spans_of("aab", ["plain", "plain", "noise"]) == [("aa", "plain"), ("b", "noise")]


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("leters", {}, "did you mean 'letters'"),
        ("letters", {"nose": 1}, "did you mean 'noise'"),
        ("letters", {"noise": 1.5}, "outside 0 … 1"),
        ("letters", {"noise": "nan"}, "must be a number"),
        ("letters", {"noise": "1e999999999"}, "must be a number"),
        ("letters", {"noise": math.inf}, "must be a number"),
        ("letters", {"length": 8.5}, "whole number"),
        ("letters", {"length": "64/2"}, "whole number"),
        ("letters", {"length": True}, "whole number"),
        ("letters", {"target": 65}, "longer than length"),
        ("blocks", {"which": "lst"}, "did you mean 'last'"),
        ("blocks", {"query": 5}, "less than n"),
        ("blocks", {"n": 2, "query": 1, "blocks": 302}, "half of the 600 different blocks"),
        ("reviews", {"length": 3}, "no parameter"),
    ],
)
def test_bad_parameters(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task(name, params)


def test_numbers_as_text() -> None:
    assert make_task("letters", {"noise": "1/16", "length": "64"}).params == make_task("letters", {}).params
