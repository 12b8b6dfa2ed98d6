"""First weights: the same numbers however they are cut into blocks' rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.latent.build import build_model, constants, initialise_model
from freetf_cli.model import weights
from freetf_cli.model.weights import Draws, fill


def test_the_same_seed_and_name_give_the_same_numbers() -> None:
    drawn = [nn.Parameter(torch.empty(6, 5)) for _ in range(5)]
    names = [(0, "", "a"), (0, "", "a"), (1, "", "a"), (0, "", "b"), (0, "x.", "a")]
    for parameter, (seed, prefix, name) in zip(drawn, names, strict=True):
        Draws(seed, prefix).normal(name, parameter, 1.0)
    assert torch.equal(drawn[0], drawn[1])
    assert all(not torch.equal(drawn[0], other) for other in drawn[2:])
    assert Draws(0).within("x").prefix == "x."


def test_numbers_are_normal_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK", 700)
    parameter = nn.Parameter(torch.empty(1000, 64))
    Draws(3).normal("w", parameter, 0.5)
    values = parameter.detach().double() / 0.5
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.01 and abs((values**4).mean() - 3) < 0.1
    rows = values @ values.T / 64
    assert (rows - torch.eye(1000)).abs().max() < 1.0  # no two rows are alike, in or across blocks


def test_fill_asks_for_the_same_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "BLOCK", 20)
    asked: list[range] = []
    parameter = nn.Parameter(torch.zeros(10, 5))
    fill(parameter, lambda rows: (asked.append(rows), torch.arange(rows.start, rows.stop)[:, None].expand(-1, 5))[1])  # type: ignore[func-returns-value]
    assert sorted(asked, key=lambda rows: rows.start) == [range(4), range(4, 8), range(8, 10)]
    assert torch.equal(parameter.detach(), torch.arange(10.0)[:, None].expand(-1, 5))


def test_a_baseline_starts_with_the_weights_of_its_free_model() -> None:
    config = ModelConfig(layers=2, width=16, heads=2, vocab=11, context=8)
    free, baseline = (build_model(config, latent) for latent in (LatentConfig(kappa=0.5, bits=4), None))
    initialise_model(free, 5)
    initialise_model(baseline, 5)
    own = dict(free.named_parameters())
    assert all(torch.equal(own[name], parameter) for name, parameter in baseline.named_parameters())


def test_constants_are_what_a_model_is_built_with() -> None:
    config = ModelConfig(layers=2, width=16, heads=2, vocab=11, context=8, attention="differential")
    model = build_model(config, None)
    found = constants(config, None)
    expected = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() != 2}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found if name.endswith("norm.weight"))
