"""evaluate --task answers: the share of rows with a wrong target."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from freetf_cli.cli.app import main
from freetf_cli.evaluation.metrics import Request
from freetf_cli.evaluation.metrics.answers import evaluate as evaluate_answers
from freetf_cli.evaluation.run_data import open_run_data
from freetf_cli.evaluation.statistics import wilson
from freetf_cli.model.decoder import Output
from freetf_cli.runs.checkpoint import open_model
from freetf_cli.tasks import make_task
from freetf_cli.tasks.base import Task

pytestmark = pytest.mark.usefixtures("no_charts")


@pytest.mark.parametrize(("count", "low", "high"), [(0, 0.0, 0.0370), (50, 0.4038, 0.5962), (100, 0.9630, 1.0)])
def test_wilsons_interval(count: int, low: float, high: float) -> None:
    """Of 100, as statistics books and SciPy have it."""
    from scipy.stats import binomtest

    share = wilson(count, 100)
    assert (share.low, share.high) == pytest.approx(tuple(binomtest(count, 100).proportion_ci(method="wilson")), abs=1e-8)
    assert (share.value, share.low, share.high) == (count / 100, pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@pytest.fixture(scope="module")
def blocks_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("blocks")
    free = folder / "free.toml"
    free.write_text('extends = "blocks-multi-token"\n[latent]\nkappa = 0.5\nbits = 4\n', encoding="utf-8")
    variants = {"softmax": "blocks-softmax", "multi-token": "blocks-multi-token", "free": str(free)}
    for name, recipe in variants.items():
        assert main(["train", recipe, "--smoke", "-o", str(folder / name), "--set", "train.steps=3", "-q"]) == 0
    return {name: folder / name for name in variants}


def test_a_row_is_wrong_with_one_wrong_token(blocks_runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that misses one token in every fourth row and knows all others is wrong in a quarter of the rows."""
    checkpoint, model = open_model(blocks_runs["softmax"], torch.device("cpu"), lambda text: None)
    source = open_run_data(checkpoint, None)
    known = {}
    for batch in source.held_out("val", 40, 40):
        for row, (inputs, targets) in enumerate(zip(batch.inputs, batch.targets, strict=True)):
            right = torch.from_numpy(targets).clamp(min=0)
            if row % 4 == 0:
                right[-1 - row % 3] += 1
            known[inputs.tobytes()] = right

    def forward(inputs_BT: torch.Tensor, z: None) -> Output:
        rows = [torch.nn.functional.one_hot(known[row.numpy().tobytes()], 40).float() for row in inputs_BT]
        return Output(logits=torch.stack(rows))

    monkeypatch.setattr(model, "forward", forward)
    progress: list[int] = []
    found = evaluate_answers(checkpoint, model, source, Request("r", "val", sequences=40, advance=progress.append))
    assert (found.sequences, found.errors.wrong, found.errors.share.value, sum(progress)) == (40, 10, 0.25, 40)
    assert found.errors_posterior is None


def test_free_models_answer_with_both_sources_of_z(blocks_runs: dict[str, Path], run_cli: Callable) -> None:
    done = run_cli("evaluate", blocks_runs["free"], "--task", "answers", "--sequences", 30, "--json")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["task"], found["kind"], found["sequences"]) == ("answers", "free", 30)
    for errors in (found["errors"], found["errors_posterior"]):
        assert 0 <= errors["wrong"] <= 30 and math.isclose(errors["share"]["value"], errors["wrong"] / 30)
    again = json.loads(run_cli("evaluate", blocks_runs["free"], "--task", "answers", "--sequences", 30, "--json").stdout)
    assert {**found, "seconds": 0} == {**again, "seconds": 0}


@pytest.mark.parametrize("name", ["softmax", "multi-token", "free"])
def test_the_table(name: str, blocks_runs: dict[str, Path], run_cli: Callable) -> None:
    done = run_cli("evaluate", blocks_runs[name], "--task", "answers", "--sequences", 30)
    assert done.code == 0 and "wrong answers" in done.stdout
    assert ("posterior Z" in done.stdout) == (name == "free")


@pytest.mark.parametrize(("less", "said"), [(0, ""), (2, "The last 2 tokens of a row lie beyond the model's context")])
def test_an_answer_that_the_context_cuts_off_is_told(run_cli: Callable, tmp_path: Path, less: int, said: str) -> None:
    context = make_task("blocks", {"blocks": 4}).row_tokens - 1 - less
    sizes = ["--set", "data.params.blocks=4", "--set", f"model.context={context}", "--set", "train.steps=1"]
    assert run_cli("train", "blocks-softmax", "--smoke", "-o", tmp_path / "run", *sizes, "-q").code == 0
    done = run_cli("evaluate", tmp_path / "run", "--task", "answers", "--sequences", 20)
    assert done.code == 0, done.stderr
    assert ("beyond the model's context" in done.stdout) == bool(said) and said in done.stdout


def test_data_that_asks_nothing_is_refused(run_cli: Callable, tmp_path: Path) -> None:
    done = run_cli("train", "demo-baseline", "--smoke", "-o", tmp_path / "run", "--set", "data.task=coins", "--set", "train.steps=2", "-q")
    assert done.code == 0, done.stderr
    done = run_cli("evaluate", tmp_path / "run", "--task", "answers")
    assert done.code == 2 and "no answers to score" in done.stderr


def test_the_facts_are_those_of_the_data_that_was_measured(blocks_runs: dict[str, Path], run_cli: Callable, tmp_path: Path) -> None:
    made = run_cli("gen-synthetic", "blocks", "-o", tmp_path / "other", "--param", "blocks=6", "--count", 400, "-q")
    assert made.code == 0, made.stderr
    asked = ["evaluate", blocks_runs["softmax"], "--task", "answers", "--sequences", 20, "--json"]
    own, other = (json.loads(run_cli(*asked, *more).stdout)["facts"] for more in ([], ["--data", tmp_path / "other"]))
    assert (own["name"], other["name"]) == ("blocks", "other") and own["sha256"] != other["sha256"]


def test_any_right_answer_counts(run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows only the leftmost of two right blocks is right in every row, and in half of them by the row's own answer."""
    params = ["--set", "data.params.valid=2", "--set", "train.steps=1"]
    assert run_cli("train", "blocks-softmax", "--smoke", "-o", tmp_path / "run", *params, "-q").code == 0
    checkpoint, model = open_model(tmp_path / "run", torch.device("cpu"), lambda text: None)
    source = open_run_data(checkpoint, None)
    task, known, own = source.task, {}, 0
    assert task is not None
    for batch in source.held_out("val", 40, 40):
        rows = np.concatenate([batch.inputs, batch.targets[:, -1:]], axis=1)
        first = task.alternatives(rows)[0]
        own += int((first == rows).all(1).sum())
        known = {row[: task.loss_start].tobytes(): torch.from_numpy(right[1:]) for row, right in zip(rows, first, strict=True)}

    def forward(inputs_BT: torch.Tensor, z: None) -> Output:
        rows = [torch.nn.functional.one_hot(known[row[: task.loss_start].numpy().tobytes()], 40).float() for row in inputs_BT]
        return Output(logits=torch.stack(rows))

    monkeypatch.setattr(model, "forward", forward)
    assert evaluate_answers(checkpoint, model, source, Request("r", "val", sequences=40)).errors.wrong == 0
    assert 8 < own < 32
    monkeypatch.setattr(type(task), "alternatives", Task.alternatives)
    assert evaluate_answers(checkpoint, model, source, Request("r", "val", sequences=40)).errors.wrong == 40 - own
    for key in list(known)[:3]:
        known[key][-2] += 1
    monkeypatch.undo()
    monkeypatch.setattr(model, "forward", forward)
    assert evaluate_answers(checkpoint, model, source, Request("r", "val", sequences=40)).errors.wrong == 3
