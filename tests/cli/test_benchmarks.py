"""evaluate with benchmarks, through lm-eval, on tiny data and without a network."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from freetf_cli.evaluation.benchmarks import BENCHMARKS
from freetf_cli.evaluation.benchmarks.metrics import KINDS
from tests.evaluation.benchmarks.data import write_all

pytest.importorskip("lm_eval")


CODE = ("--allow-code-execution", "--attempts", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("offline")
def test_all_benchmarks_without_a_network(run_cli: Callable, text_run: Path, data: Path, tmp_path: Path) -> None:
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    done = run_cli("evaluate", text_run, "--task", "all", "--data", data, "--samples", 3, "-o", tmp_path / "out", "--json", *CODE)
    assert (done.code, done.stderr) == (0, "")
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    found = json.loads(done.stdout)
    assert (found["kind"], found["z"], found["draws"]) == ("free", "posterior-prompt", 3)
    assert [one["task"] for one in found["tasks"]] == list(BENCHMARKS)
    for one in found["tasks"]:
        assert one["metric"] == BENCHMARKS[one["task"]].metric and one["metric"] in one["scores"]
        items = lines(tmp_path / "out" / f"{one['task']}.jsonl")
        assert len(items) == one["items"] >= 2
        assert one["truncated"] == sum(item["truncated"] for item in items)
        values = [item["scores"][one["metric"]] for item in items]
        score = one["scores"][one["metric"]]
        assert score["value"] == pytest.approx(np.mean(values))
        assert score["low"] is None or score["low"] <= score["value"] <= score["high"]
        for item in items:
            assert item["scores"] == KINDS[BENCHMARKS[one["task"]].kind](item["doc"], item.get("outcomes", item["answers"]))
            if BENCHMARKS[one["task"]].kind in ("choices", "last_word"):
                assert all(answer["stderr"] >= 0 and answer["tokens"] > 0 for answer in item["answers"])
            else:
                assert all(isinstance(answer, str) for answer in item["answers"])
    assert json.loads((tmp_path / "out" / "result.json").read_text())["tasks"] == found["tasks"]


def test_a_table_in_the_terminal(run_cli: Callable, text_run: Path, data: Path) -> None:
    done = run_cli("evaluate", text_run, "--task", "piqa,boolq", "--data", data, "--limit", 1, "--z", "prior", "--samples", 2)
    assert done.code == 0, done.stderr
    assert "piqa" in done.stdout and "acc_completion" in done.stdout and "prior, 2 draws" in done.stdout and "0.500" in done.stdout


def test_limit_and_examples(run_cli: Callable, text_run: Path, data: Path, tmp_path: Path) -> None:
    asked = ["evaluate", text_run, "--data", data, "--samples", 1, "--limit", 1, "-q"]
    for task, shots, mark in (("arc_easy", 2, "Why?"), ("mmlu", 3, "Answer:"), ("winogrande", 1, "won."), ("piqa", 1, "Open door")):
        assert run_cli(*asked, "--task", task, "--fewshot", shots, "-o", tmp_path / task).code == 0
        (item,) = lines(tmp_path / task / f"{task}.jsonl")
        assert item["prompt"].count(mark) == shots + (task != "winogrande"), item["prompt"]
        assert json.loads((tmp_path / task / "result.json").read_text())["tasks"][0]["shots"] == shots
    assert "Open door a" in item["prompt"] and "Open door b\nAnswer: sing" in item["prompt"]  # the other item, never itself
    done = run_cli(*asked, "--task", "arc_easy", "--fewshot", 4)
    assert done.code == 2 and "arc_easy has 3 examples" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", "piqa"), "--task piqa needs the folder of its data set; --data DIR"),
        (("--task", "piqa", "--data", "docs"), "no file for piqa"),
        (("--task", "piqa", "--split", "val"), "a benchmark has no --split"),
        (("--task", "likelihood", "--limit", 3), "only benchmarks have --limit"),
        (("--task", "likelihood", "--task", "piqa"), "--task likelihood is measured alone"),
        (("--task", "piqa", "--resume"), "-o DIR"),
        (("--task", "mbpp", "--data", "docs"), "--task mbpp runs the code that the model writes; --allow-code-execution permits it"),
    ],
)
def test_what_is_refused(refused: Callable, text_run: Path, options: tuple, said: str) -> None:
    assert said in refused("evaluate", text_run, *options)


def test_right_and_wrong_programs(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through lm-eval, with a model that writes the right program, a wrong one, one that does not end, and one that just leaves."""
    from contextlib import nullcontext

    from lm_eval.api.model import LM

    from freetf_cli.evaluation.benchmarks import measure

    texts = {"humaneval": "    return 2 * x", "mbpp": "def f(x):\n    return 2 * x\n"}
    monkeypatch.setattr(measure, "SECONDS", dict.fromkeys(measure.SECONDS, 1.0))

    class Writer(LM):
        loglikelihood = loglikelihood_rolling = None

        def generate_until(self, requests: list) -> list[str]:
            right = texts[self.task.removesuffix("_plus")]
            return [right, right.replace("2", "3"), right.replace("2 * x", "f(x - 1) if x else f(1)"), "    exit()"][: len(requests)] * 2

    for name in ("humaneval", "humaneval_plus", "mbpp", "mbpp_plus"):
        asked = measure.Questions(str(data), attempts=4, allow_code=True, limit=2)
        (score,), items = measure.measure(Writer(), name, asked, lambda *_: nullcontext(lambda count: None))
        assert [item["outcomes"][0] for item in items] == ["passed"] * 2
        assert all("passed" not in item["outcomes"][1:] for item in items)
        assert {metric: found.value for metric, found in score.scores.items()} == {"pass@1": 0.25, "pass@4": 1.0}


def test_an_unknown_name_and_a_name_of_lm_eval(run_cli: Callable, text_run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    from freetf_cli.evaluation.benchmarks import TASKS

    whole = TaskManager.__init__

    def small(self: TaskManager, **settings: object) -> None:
        """lm-eval's own index takes 12 s to build: ours stands for it, with the data that it would download."""
        metadata = {**settings.pop("metadata"), "data": str(data)}
        whole(self, **{"include_path": str(TASKS), **settings, "include_defaults": False, "metadata": metadata})

    monkeypatch.setattr(TaskManager, "__init__", small)
    for name, near in (("helaswag", "hellaswag"), ("likelyhood", "likelihood"), ("lm-eval:pikca", "piqa")):
        done = run_cli("evaluate", text_run, "--task", name)
        assert done.code == 2 and f"there is no task '{name}'; did you mean '{near}'?" in done.stderr
    done = run_cli("evaluate", text_run, "--task", "lm-eval:piqa", "--json", "--samples", 1)
    assert done.code == 0, done.stderr
    (score,) = json.loads(done.stdout)["tasks"]
    assert (score["task"], score["metric"], score["items"]) == ("piqa", "acc", 2) and score["scores"]["acc"]["low"] is not None
