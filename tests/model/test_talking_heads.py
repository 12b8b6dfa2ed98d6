"""Talking-Heads attention against loops, and as plain attention."""

from __future__ import annotations

import pytest
import torch

from freetf_cli.config.recipe import ModelConfig, MultiTokenConfig
from freetf_cli.model.attention import multi_token
from freetf_cli.model.attention.multi_token import MultiToken
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.attention.talking_heads import TalkingHeads
from tests.model import attention_loops as loops


def config(kv_heads: int) -> ModelConfig:
    return ModelConfig(layers=2, width=16, heads=4, kv_heads=kv_heads, vocab=5, attention="talking-heads")


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_scores_and_weights_are_mixed_over_all_heads(kv_heads: int) -> None:
    attention, (q, kv), tables = loops.randomised(TalkingHeads(config(kv_heads), 0), kv_heads), loops.streams(7, 16), loops.tables(7, 4)
    got = attention(q, kv, loops.context(tables))
    for b in range(2):
        want = torch.from_numpy(loops.talking_heads(attention, q[b], kv[b], tables))
        assert (got[b] - want).abs().max() < 1e-12 * want.abs().max()


def test_it_starts_as_plain_attention() -> None:
    attention, plain = TalkingHeads(config(2), 0).double(), Attention(config(2)).double()
    attention.load_state_dict(plain.state_dict(), strict=False)
    q, kv = loops.streams(7, 16)
    for causal in (True, False):
        ours, theirs = (one(q, kv, loops.context(loops.tables(7, 4), causal)) for one in (attention, plain))
        assert (ours - theirs).abs().max() < 1e-14


def test_it_is_multi_token_attention_without_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multi_token, "WIDEST_HEAD", 0)  # materialise the weights
    options = MultiTokenConfig(kq="none", norm="none")
    other = MultiToken(config(2).model_copy(update={"attention": "multi-token", "multi_token": options}), 0)
    attention = loops.randomised(TalkingHeads(config(2), 0), 0)
    other.double().load_state_dict(
        {name.replace("pre", "pre.mix").replace("post", "post.mix"): p for name, p in attention.state_dict().items()}
    )
    q, kv = loops.streams(7, 16)
    assert torch.equal(attention(q, kv, loops.context(loops.tables(7, 4))), other(q, kv, loops.context(loops.tables(7, 4))))
