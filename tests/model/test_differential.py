"""DIFF Transformer's attention against loops; its λ."""

from __future__ import annotations

import math

import pytest
import torch

from freetf_cli.config.recipe import ModelConfig
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.attention.differential import Differential
from freetf_cli.model.attention.head_norm import lambda_init
from freetf_cli.model.attention.softmax import Attention
from tests.model import attention_loops as loops


def config(kv_heads: int = 8) -> ModelConfig:
    return ModelConfig(layers=4, width=32, heads=8, kv_heads=kv_heads, vocab=5, attention="differential")


@pytest.mark.parametrize("kv_heads", [2, 4, 8])
@pytest.mark.parametrize("index", [0, 3])
def test_it_is_the_difference_of_two_softmax_attentions(kv_heads: int, index: int) -> None:
    """Consecutive pairs of query heads share a pair of key heads; the two attentions of a pair never share keys."""
    attention = loops.randomised(Differential(config(kv_heads), index), kv_heads)
    (q, kv), tables = loops.streams(7, 32), loops.tables(7, 4)
    got = attention(q, kv, loops.context(tables))
    for b in range(2):
        want = torch.from_numpy(loops.differential(attention, q[b], kv[b], tables, index))
        assert (got[b] - want).abs().max() < 1e-12 * want.abs().max()


def test_it_is_a_mix_of_two_plain_attentions_after_the_softmax() -> None:
    """Before the norm, it is Multi-Token Attention with the mix [[1, −λ], [1, −λ]] of each pair."""
    attention = loops.randomised(Differential(config(), 1), 0)
    plain = Attention(config()).double()
    plain.load_state_dict({name: p for name, p in attention.state_dict().items() if "lambda" not in name and "norm" not in name})
    plain.out.weight.data = torch.eye(32).double()
    (q, kv), tables, part = loops.streams(7, 32), loops.tables(7, 4), float(attention.subtracted().detach())  # type: ignore[operator]
    read = {}
    for half in range(2):  # both attentions of a pair read each half of its values
        values = plain.v.weight.view(4, 2, 4, 32)[:, [half, half]].reshape(32, 32)
        plain_half = Attention(config()).double()
        plain_half.load_state_dict({**plain.state_dict(), "v.weight": values})
        read[half] = plain_half(q, kv, loops.context(tables)).view(2, 7, 4, 2, 4)
    pairs = torch.cat([read[half][:, :, :, 0] - part * read[half][:, :, :, 1] for half in range(2)], dim=-1)
    want = attention.norm(pairs).flatten(2) @ attention.out.weight.T  # type: ignore[operator]
    got = attention(q, kv, loops.context(tables))
    assert (got - want).abs().max() < 1e-12 * want.abs().max()


def test_initial_lambda_depends_on_depth() -> None:
    assert [lambda_init(index) for index in (0, 1, 30)] == pytest.approx([0.2, 0.8 - 0.6 * math.exp(-0.3), 0.8], abs=1e-4)
    model = build_model(config(), None)
    initialise_model(model, 0)
    drawn = torch.stack([block.attention.lambdas.detach() for block in model.blocks])
    assert 0.07 < float(drawn.std()) < 0.13
    assert all(abs(float(block.attention.subtracted().detach()) - lambda_init(i)) < 0.3 for i, block in enumerate(model.blocks))
