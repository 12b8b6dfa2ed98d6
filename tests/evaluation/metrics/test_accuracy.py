"""accuracy against a count, token by token."""

from types import SimpleNamespace

import pytest
import torch

from freetf_cli.config.recipe import DataConfig, ModelConfig
from freetf_cli.data.batches import open_data
from freetf_cli.evaluation.metrics import Request, load
from freetf_cli.latent.build import build_model, initialise_model


def test_it_counts_right_predictions() -> None:
    source = open_data(DataConfig(task="coins"), context=None, seed=0)
    model = build_model(ModelConfig(layers=2, width=16, heads=2, vocab=source.tokenizer.vocab_size, context=source.context), None)
    initialise_model(model, seed=0)
    checkpoint = SimpleNamespace(recipe=SimpleNamespace(kind="baseline"), step=0)
    found = load("accuracy")(checkpoint, model, source, Request("r", "val", sequences=30))
    right = total = 0
    for batch in source.held_out("val", 30, 1):
        predicted = model(torch.from_numpy(batch.inputs)).logits[0].argmax(-1)
        right += sum(int(a == b) for a, b in zip(predicted.tolist(), batch.targets[0].tolist(), strict=True))
        total += batch.targets.size
    assert (found.sequences, found.tokens) == (30, total)
    assert found.accuracy.value == pytest.approx(right / total)
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
