"""`freetf bench`: tables for people, JSON for programs, and what does not fit is said."""

from __future__ import annotations

import json

import pytest

TRAIN = ("bench", "train", "demo-free", "--smoke", "--steps", "1", "--repeats", "2", "--device", "cpu", "--set", "train.batch=2")
SAMPLE = ("bench", "sample", "demo-free", "--smoke", "--batch", "2", "--max-tokens", "3", "--repeats", "2", "--device", "cpu")
MAPPER = ("bench", "mapper", "--tokens", "16", "--width", "8", "--bits", "8", "--steps", "1", "--repeats", "2", "--device", "cpu")
HEADINGS = ["A training step, on random tokens", "Generation, from random weights", "The mapper's gradient: 16 tokens, width 8, 8 bits"]


@pytest.mark.parametrize(("words", "heading"), list(zip((TRAIN, SAMPLE, MAPPER), HEADINGS, strict=True)))
def test_tables(run_cli, words, heading):
    code, stdout, stderr = run_cli(*words)
    assert (code, stderr) == (0, "")
    assert heading in stdout and "ceiling" in stdout and "× 1.000" in stdout


def test_json_has_rows_and_parts(run_cli):
    code, stdout, _ = run_cli(*TRAIN, "--json")
    result = json.loads(stdout)
    assert code == 0 and result["schema_version"] == 1
    assert [row["recipe"] for row in result["rows"]] == ["demo-free without Z", "demo-free"]
    assert set(result["rows"][0]["time"]) == {"median", "least", "most", "steps", "repeats"}
    assert len(result["parts"]) == 5


def test_a_recipe_without_data_can_be_timed(run_cli):
    small = ["model.layers=2", "model.width=16", "model.heads=2", "model.kv_heads=1", "model.ffn=16", "model.vocab=32", "model.context=8"]
    settings = [word for setting in [*small, "train.batch=2", "train.grad_accum_steps=1", "latent.bits=4"] for word in ("--set", setting)]
    code, stdout, _ = run_cli("bench", "train", "paper-1.5b-free", *settings, *TRAIN[4:], "--json")
    assert code == 0 and json.loads(stdout)["rows"][1]["tokens"] == 16


def test_more_tokens_than_a_row_are_refused(refused):
    line = refused("bench", "sample", "demo-free", "--prompt-tokens", "60", "--max-tokens", "100", "--device", "cpu")
    assert "a prompt of 60 tokens and 100 new tokens exceed the row of" in line and "--max-tokens" in line
