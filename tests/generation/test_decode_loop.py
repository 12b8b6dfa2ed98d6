"""The steps of generation after the prompt, with a static cache and without."""

from __future__ import annotations

import pytest
import torch

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.generation.choose import choose_tokens
from freetf_cli.generation.decode_loop import DecodeLoop
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.model.decoder import Decoder

CONFIG = ModelConfig(layers=4, width=32, heads=4, kv_heads=2, vocab=6, context=12)
PROMPT, TOTAL = 3, 13


def model_of(kind: str) -> Decoder:
    model = build_model(CONFIG, LatentConfig(kappa=1.0, bits=4, table_std=3.0) if kind == "free" else None)
    initialise_model(model, 0)
    torch.nn.init.normal_(model.embedding.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    return model.double().eval()


def begun(model: Decoder, separator: int | None = None) -> DecodeLoop:
    """The loop of five rows whose prompt is in the cache."""
    random = torch.Generator().manual_seed(1)
    tokens = torch.cat([torch.randint(6, (5, PROMPT), generator=random), torch.zeros(5, TOTAL - PROMPT, dtype=torch.int64)], dim=1)
    z, quantiles = torch.randint(16, (5, TOTAL - 1), generator=random), torch.rand(5, TOTAL - PROMPT, generator=random)
    cache, prompt = model.new_cache(5, TOTAL - 1), tokens[:, :PROMPT]
    logits = model(prompt, z[:, :PROMPT], cache=cache).logits
    return DecodeLoop(model, cache, tokens, z, quantiles, logits[:, -1], choose_tokens, separator)


@pytest.mark.parametrize("kind", ["free", "baseline"])
@torch.inference_mode()
def test_a_step_with_a_static_cache_equals_an_eager_step(kind: str) -> None:
    model = model_of(kind)
    plain, device = begun(model), begun(model)
    plain.run()
    device.cache.make_static(model.config.head_width, model.config.rope_theta)
    device.logits_BV = device.logits_BV.clone()
    for step in range(TOTAL - PROMPT - 1):
        device.step()
        assert int(device.cache.length) == PROMPT + step + 1
    assert torch.equal(device.tokens_BT[:, :-1], plain.tokens_BT[:, :-1])
    torch.testing.assert_close(device.logits_BV, plain.logits_BV, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(device.cache.layers, plain.cache.layers, strict=True):
        torch.testing.assert_close(ours.k, theirs.k, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours.v, theirs.v, rtol=1e-12, atol=1e-12)


@torch.inference_mode()
def test_a_static_cache_is_not_read_beyond_its_length() -> None:
    model = model_of("free")
    found = []
    for rest in (0.0, 7.0):
        at = begun(model)
        for layer in at.cache.layers:
            layer.k[:, :, PROMPT + 1 :], layer.v[:, :, PROMPT + 1 :] = rest, rest
        at.cache.make_static(model.config.head_width, model.config.rope_theta)
        at.logits_BV = at.logits_BV.clone()
        at.step()
        found.append(at.logits_BV)
    assert torch.equal(*found)


@torch.inference_mode()
def test_generation_stops_when_all_sequences_have_ended() -> None:
    model = model_of("free")
    whole = begun(model)
    whole.run()
    ends = [next((t for t in range(PROMPT, TOTAL) if row[t] == 2), None) for row in whole.tokens_BT.tolist()]
    assert any(end is not None and end < TOTAL - 1 for end in ends)
    ending = begun(model, separator=2)
    ending.tokens_BT[:], ending.logits_BV = 0, torch.eye(6, dtype=torch.float64)[[2] * 5] * 1e6
    ending.run()
    assert (ending.tokens_BT[:, PROMPT] == 2).all() and (ending.tokens_BT[:, PROMPT + 1 :] == 0).all()
    assert ending.cache.length == PROMPT
