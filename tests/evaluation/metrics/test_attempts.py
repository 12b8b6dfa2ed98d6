"""attempts: pass@k by enumeration of subsets, and answers that are known to be right or wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from freetf_cli.config.recipe import DataConfig, LatentConfig, ModelConfig
from freetf_cli.data.batches import open_data
from freetf_cli.errors import InputError
from freetf_cli.evaluation.metrics import Request, attempts, load, own_options
from freetf_cli.latent.build import build_model, initialise_model

CHECKPOINT = SimpleNamespace(recipe=SimpleNamespace(kind="free"), step=0)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(k: int) -> None:
    for right in range(7):
        subsets = list(itertools.combinations([True] * right + [False] * (6 - right), k))
        assert attempts.pass_at(k, 6, right) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_the_sizes() -> None:
    assert attempts.sizes(64) == [1, 2, 4, 8, 16, 32, 64]
    assert attempts.sizes(6) == [1, 2, 4, 6] and attempts.sizes(1) == [1]


def test_right_answers_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Question i gets i mod 3 right answers of 4; the others are two wrong ones."""
    source = open_data(DataConfig(task="countdown", params={"numbers": 3}), context=None, seed=0)
    assert source.task is not None
    rows = [example.text for example in source.task.examples(_val_seed(), 0, 30)]

    def generate(model: Any, tokenizer: Any, prompts: list[str], spec: Any) -> Iterator[Any]:
        assert (spec.count, spec.temperature, spec.prompt_z, spec.total) == (4, 0.0, "prior", source.context + 1)
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            assert row.startswith(prompt) and prompt.endswith(" :")
            answers = [row] * (number % 3) + [f"{prompt} wrong {i % 2}" for i in range(4)]
            yield from (SimpleNamespace(text=text) for text in answers[:4])

    monkeypatch.setattr(attempts, "generate", generate)
    request = Request("r", "val", sequences=30, temperature=0.0, attempts=4)
    found = attempts.evaluate(CHECKPOINT, None, source, request)  # type: ignore[arg-type]
    assert [one.k for one in found.passed] == [1, 2, 4]
    assert [one.share.value for one in found.passed] == pytest.approx([(0 + 1 / 4 + 2 / 4) / 3, (0 + 1 / 2 + 5 / 6) / 3, 2 / 3])
    assert found.different.value == pytest.approx((2 + 3 + 3) / 12)
    assert "pass@4" in str(found.report()) and (found.attempts, found.sequences) == (4, 30)


def _val_seed() -> int:
    from freetf_cli.streams import stream_seed

    return stream_seed(0, "val")


def test_z_alone_makes_greedy_answers_differ() -> None:
    """A Free model with a strong table answers differently at temperature 0; its baseline does not."""
    source = open_data(DataConfig(task="pathstar", params={"length": 2, "nodes": 8}), context=None, seed=0)
    different = {}
    for name, latent in (("baseline", None), ("free", LatentConfig(kappa=1.0, bits=4, table_std=20.0))):
        model = build_model(ModelConfig(layers=2, width=16, heads=2, vocab=source.facts.vocabulary, context=source.context), latent)
        initialise_model(model, seed=0)
        found = load("attempts")(CHECKPOINT, model, source, Request("r", "val", sequences=20, temperature=0.0, attempts=8))  # type: ignore[arg-type]
        different[name] = found.different.value  # type: ignore[attr-defined]
    assert different["baseline"] == 1 / 8 < different["free"]


@pytest.mark.parametrize(
    ("config", "message"),
    [(DataConfig(task="siblings"), "no answers to score"), (DataConfig(task="coins"), "no answers to score")],
)
def test_data_without_questions(config: DataConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("attempts")(None, None, open_data(config, context=None, seed=0), Request("r", "val", sequences=20))  # type: ignore[arg-type]


def test_its_options() -> None:
    assert own_options("attempts") == ("--temperature", "--attempts")
