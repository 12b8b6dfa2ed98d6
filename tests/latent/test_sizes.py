"""Sizes other than the paper's: an odd number of blocks, Z below and above the middle, and 1 to 20 bits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.latent.binary import PostSampler, kl_per_token, sample_codes
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.latent.low_order import LowOrderTable, count_sets, full_table
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.model.weights import Draws

LENGTH, VOCAB = 6, 7
PLACES = [(3, 1), (3, 2), (5, 1), (5, 2), (8, 2), (8, 4), (8, 6)]  # blocks, and those below Z


def make(layers: int, depth: int, **latent: Any) -> Decoder:
    model = build_model(
        ModelConfig(layers=layers, width=16, heads=2, vocab=VOCAB, context=8), LatentConfig(kappa=0.5, depth=depth, **latent)
    )
    initialise_model(model, seed=0)
    return model.double()


@pytest.mark.parametrize("encoder", ["shared", "full"])
@pytest.mark.parametrize(("layers", "depth"), PLACES)
def test_z_enters_above_as_many_blocks_as_asked(layers: int, depth: int, encoder: str) -> None:
    """Only keys and values of block `depth` come from x + r; an own encoder has a block for each below; all learns; decoding agrees."""
    model = make(layers, depth, bits=4, encoder=encoder)
    generator = torch.Generator().manual_seed(layers)
    tokens, noise = torch.randint(VOCAB, (2, LENGTH), generator=generator), torch.rand(2, LENGTH, 4, generator=generator)
    read: list[tuple[int, bool]] = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, given, out, index=index: read.append((index, len(given) > 2 and given[2] is not None)))
    losses = model(tokens, noise=noise, targets_BT=tokens, weights=ObjectiveWeights(0.1, 0.0, 0.0)).losses
    assert read == [(index, index == depth) for index in range(layers)]
    assert len(model.latent.encoder.blocks) == (depth if encoder == "full" else 0)  # type: ignore[union-attr, arg-type]
    losses.objective.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum() > 0] == []
    with torch.no_grad():
        model.eval()
        z = torch.randint(16, (2, LENGTH), generator=generator)
        whole, cache = model(tokens, z).logits, model.new_cache(2, LENGTH)
        steps = [model(tokens[:, t : t + 1], z[:, t : t + 1], cache=cache).logits for t in range(LENGTH)]
        assert (torch.cat(steps, 1) - whole).abs().max() < 1e-12
        assert (model(tokens, z ^ 1).logits - whole).abs().max() > 1e-3


@pytest.mark.parametrize("bits", range(1, 21))
def test_every_number_of_bits(bits: int) -> None:
    """Codes are drawn, their rows read, and the logits' gradient is that of Σ_d G_d (W_d · dr), all 2^H terms written out in float64."""
    sampler, low = PostSampler(bits, 4).double(), LowOrderTable(bits, 4, min(3, bits)).double()
    sampler.initialise("bits", 1.5, Draws(0).within("post_sampler"))
    low.initialise("bits", 1.5, Draws(0).within("post_sampler"))
    assert sampler.weight.shape == (2**bits, 4) and low.weight.shape == (count_sets(bits, min(3, bits)), 4)
    if bits <= 10:  # more codes take long to write out
        assert (full_table(low) - sampler.weight).abs().max() < 1e-5
    generator = torch.Generator().manual_seed(bits)
    logits = torch.randn(1, 2, bits, generator=generator).double().requires_grad_()
    codes = sample_codes(logits.detach(), torch.rand(1, 2, bits, generator=generator).double())
    assert int(codes.min()) >= 0 and int(codes.max()) < 2**bits
    assert int(sample_codes(torch.full((1, 1, bits), 9.0), torch.zeros(1, 1, bits))) == 2**bits - 1
    dr = torch.randn(1, 2, 4, generator=generator).double()
    with torch.no_grad():
        sampler.weight += 0.3 * torch.randn(sampler.weight.shape, generator=generator)
        low.weight += 0.3 * torch.randn(low.weight.shape, generator=generator)
    p = torch.sigmoid(logits)
    g = torch.ones(1, 2, 1, dtype=torch.float64)
    for h in range(bits):  # the codes in order, the highest bit last
        g = torch.cat([g * (1 - p[..., h : h + 1]), g * p[..., h : h + 1]], dim=-1)
    for table, rows in [(sampler, sampler.weight), *([(low, full_table(low))] if bits <= 10 else [])]:
        assert (table(codes) - rows[codes]).abs().max() < 1e-12
        (want,) = torch.autograd.grad((g @ rows.detach() * dr).sum(), logits, retain_graph=True)
        (got,) = torch.autograd.grad((table(codes, logits) * dr).sum(), logits)
        assert want.abs().max() > 1e-3
        assert (got - want).abs().max() <= 1e-10
    assert float(kl_per_token(torch.full((1, 1, bits), 40.0).double())) == pytest.approx(bits * math.log(2))


@pytest.mark.parametrize("order", [None, 2])
@pytest.mark.parametrize("bits", [1, 20])
def test_the_fewest_and_the_most_bits_train(bits: int, order: int | None) -> None:
    model = make(2, 1, bits=bits, **({"table": {"order": min(order, bits)}} if order else {}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    generator, costs = torch.Generator().manual_seed(0), []
    tokens, noise = torch.randint(VOCAB, (2, LENGTH), generator=generator), torch.rand(2, LENGTH, bits, generator=generator)
    for _ in range(4):
        losses = model(tokens, noise=noise, targets_BT=tokens, weights=ObjectiveWeights(0.1, 0.0, 0.0)).losses
        optimizer.zero_grad()
        (losses.objective / tokens.numel()).backward()
        optimizer.step()
        costs.append(float(losses.objective.detach()))
    assert costs[3] < costs[0]
