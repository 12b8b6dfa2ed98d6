"""evaluate --task likelihood."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def test_a_free_run(run_cli: Callable, free_run: Path) -> None:
    done = run_cli("evaluate", free_run, "--task", "likelihood", "--sequences", 40, "--samples", 64, "--device", "cpu", "--json")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["schema_version"], found["task"], found["kind"], found["sequences"], found["tokens"]) == (
        1,
        "likelihood",
        "free",
        40,
        520,
    )
    assert [one["samples"] for one in found["bound"]] == [1, 8, 64]
    values = [one["nll"]["nats_per_token"] for one in found["bound"]]
    assert values == sorted(values, reverse=True)
    total = found["ce_posterior"]["nats_per_token"] + found["kl"]["nats_per_token"]
    assert found["elbo"]["nats_per_token"] == pytest.approx(total)
    assert found["nll"]["nats_per_token"] <= min(values[-1], found["ce_prior"]["nats_per_token"]) + 1e-9
    assert found["nll"]["low"] < found["nll"]["nats_per_token"] < found["nll"]["high"]
    assert found["nll"]["bits_per_sequence"] == pytest.approx(found["nll"]["nats_per_token"] * 13 / math.log(2))
    assert found["nll"]["bits_per_byte"] is None and found["floor_bits"] > 0


def test_units_of_text_are_bits_per_byte(run_cli: Callable, text_run: Path) -> None:
    found = json.loads(run_cli("evaluate", text_run, "--split", "train", "--sequences", 20, "--samples", 8, "--json").stdout)
    assert found["nll"]["bits_per_byte"] > found["nll"]["bits_per_token"] > 0  # separators are tokens but no bytes
    assert found["floor_bits"] is None


def test_sequences_of_the_train_split_are_not_called_held_out(run_cli: Callable, baseline_run: Path) -> None:
    of_train, of_val = (run_cli("evaluate", baseline_run, "--split", split, "--sequences", 40).stdout for split in ("train", "val"))
    assert "Cost of sequences of the train split" in of_train and "held-out" not in of_train
    assert "Cost of held-out sequences" in of_val


def test_a_baseline_has_its_ce(run_cli: Callable, baseline_run: Path) -> None:
    done = run_cli("evaluate", baseline_run, "--sequences", 40)
    assert done.code == 0 and "nats/token" in done.stdout
    found = json.loads(run_cli("evaluate", baseline_run, "--sequences", 40, "--json").stdout)
    assert found["nll"] == found["elbo"] and found["kl"] is None and found["bound"] == [] and found["proposal"] == "none"


def test_it_repeats_and_agrees_with_the_record_of_the_run(run_cli: Callable, baseline_run: Path) -> None:
    """The held-out CE that training logged at its end, on the same 16 rows and more."""
    first, second = (json.loads(run_cli("evaluate", baseline_run, "--sequences", 64, "--json").stdout) for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    logged = [json.loads(line) for line in (baseline_run / "metrics.jsonl").read_text().splitlines()][-1]
    assert logged["split"] == "val" and first["nll"]["low"] - 0.1 < logged["ce"] < first["nll"]["high"] + 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sequences", 5), "too few sequences for an interval: 5, and at least 20 are needed"),
        (("--task", "likelyhood"), "likelihood"),
        (("--task", "likelihood", "--temperature", 0), "--task likelihood has no --temperature"),
        (("--task", "creativity", "--attempts", 4), "--task creativity has no --attempts"),
        (("--task", "persistence", "--samples", 4), "--task persistence has no --samples"),
        (("--task", "creativity"), "open-ended tasks"),
        (("--task", "attempts"), "no answers to score"),
        (("--split", "nothing", "--data", "text"), "tokenizer"),
    ],
)
def test_bad_input(run_cli: Callable, free_run: Path, workshop: Path, monkeypatch: pytest.MonkeyPatch, options: tuple, said: str) -> None:
    monkeypatch.chdir(workshop)
    done = run_cli("evaluate", free_run, *options)
    assert done.code == 2 and said in done.stderr


def test_rows_of_an_open_ended_task(run_cli: Callable, tmp_path: Path) -> None:
    small = "model.width=16 model.heads=2 train.steps=2 train.warmup=1 eval.every=0 eval.samples=0 eval.sequences=4 latent.bits=4"
    options = [word for setting in small.split() for word in ("--set", setting)]
    assert run_cli("train", "triangles/free", "--smoke", "-o", tmp_path / "run", "--device", "cpu", "-q", *options).code == 0
    words = ("evaluate", tmp_path / "run", "--task", "creativity", "--sequences", 20, "--device", "cpu")
    cold, warm = (json.loads(run_cli(*words, "--temperature", one, "--json").stdout) for one in (0, 1))
    assert (cold["temperature"], warm["temperature"], cold["sequences"], cold["training_objects"]) == (0.0, 1.0, 20, 200)
    assert 0 <= warm["creativity"]["measured"]["low"] <= warm["creativity"]["measured"]["value"] <= 1
    shown = run_cli(*words)
    assert shown.code == 0 and "perfect sampler" in shown.stdout and "3 × 20 generated rows, temperature 1.00" in shown.stdout


def test_benchmarks_without_lm_eval(run_cli: Callable, free_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = run_cli("evaluate", free_run, "--task", "piqa", "--data", ".")
    assert (done.code, done.stderr) == (1, "freetf: error: benchmarks need lm-eval, which is not installed; pip install 'freetf[eval]'\n")
