"""The Gaussian latent against torch.distributions, and each way to read it against its equation, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.errors import InputError
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.latent.gaussian import WAYS, GaussianDistribution, GaussianLatent
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.context import Memory, make_context
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import Distribution, ObjectiveWeights, joined

DIMS, LENGTH, VOCAB = 3, 9, 11


def make(way: str, **latent: Any) -> Decoder:
    config = ModelConfig(layers=4, width=32, heads=4, kv_heads=2, vocab=VOCAB, context=16)
    of_way = {"encoder": "full" if way == "embedding" else "shared", "every": "sequence", **latent}
    model = build_model(config, LatentConfig(kind="gaussian", kappa=0.5, options={"dims": DIMS, "inject": way}, **of_way)).double()
    initialise_model(model, seed=0)
    return model.eval()


def gaussian(model: Decoder) -> GaussianLatent:
    assert isinstance(model.latent, GaussianLatent)
    return model.latent


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(seed))


def numbers() -> torch.Tensor:
    """One Z a sequence, at all its positions."""
    return torch.randn(2, 1, DIMS, generator=torch.Generator().manual_seed(1)).double().expand(-1, LENGTH, -1)


def test_distribution_equals_torchs() -> None:
    torch.manual_seed(0)
    mean, log_var, u = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.rand(2, 3, 4)
    ours, theirs = GaussianDistribution(mean, log_var), Normal(mean, torch.exp(log_var / 2))
    z = ours.sample(u)
    assert torch.allclose(z, theirs.icdf(u), atol=1e-4)
    assert torch.allclose(ours.log_prob(z), theirs.log_prob(z).sum(-1), atol=1e-5)
    assert torch.allclose(ours.kl(), kl_divergence(theirs, Normal(0.0, 1.0)).sum(-1), atol=1e-5)


@pytest.mark.parametrize("encoder", ["shared", "full"])
@pytest.mark.parametrize("way", WAYS)
def test_decoding_step_by_step_equals_the_whole_forward(way: str, encoder: str) -> None:
    model = make(way, encoder="full" if way == "embedding" else encoder)
    whole = model(tokens(), numbers()).logits
    cache = model.new_cache(2, LENGTH)
    parts = [model(tokens()[:, :4], numbers()[:, :4], cache=cache).logits]
    parts += [model(tokens()[:, t : t + 1], numbers()[:, t : t + 1], cache=cache).logits for t in range(4, LENGTH)]
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-12
    static = model.new_cache(2, LENGTH)
    model(tokens()[:, :4], numbers()[:, :4], cache=static)
    static.make_static(model.config.head_width, model.config.rope_theta)
    assert (model(tokens()[:, 4:5], numbers()[:, 4:5], cache=static).logits - whole[:, 4:5]).abs().max() < 1e-12
    assert (model(tokens(), -numbers()).logits - whole).abs().max() > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_gradients_reach_the_encoder_through_z(way: str) -> None:
    model = make(way)
    out = model(
        tokens()[:, :-1], noise=torch.rand(2, 8, DIMS).double(), targets_BT=tokens()[:, 1:], weights=ObjectiveWeights(9.9, 0.0, 0.0)
    )
    out.losses.ce.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gaussian(model).parameters())


def test_attention_to_a_memory_is_the_literal_formula() -> None:
    config = ModelConfig(layers=2, width=24, heads=4, kv_heads=2, vocab=VOCAB)
    attention, x = Attention(config).double(), torch.randn(2, 5, 24).double()
    memory = Memory(torch.randn(2, 2, 1, 6).double(), torch.randn(2, 2, 1, 6).double())
    ctx = make_context(5, 6, config.rope_theta, x.device).with_memory(1)
    ctx = ctx.__class__(**{**vars(ctx), "rotary": tuple(part.double() for part in ctx.rotary)})
    got = attention(x, x, ctx, memory)
    q, k, v = (part.transpose(1, 2) for part in attention._project(x, x, ctx.rotary))
    want = torch.zeros(2, 4, 5, 6).double()
    for b in range(2):
        for head in range(4):
            group = head // 2
            for t in range(5):
                keys = torch.cat((memory.k[b, group], k[b, group, : t + 1]))
                weights = torch.softmax(keys @ q[b, head, t] / math.sqrt(6), 0)
                want[b, head, t] = weights @ torch.cat((memory.v[b, group], v[b, group, : t + 1]))
    assert (got - attention.out(want.transpose(1, 2).flatten(2))).abs().max() < 1e-12


def test_softmax_adds_to_the_logits_and_embedding_to_the_embeddings() -> None:
    model = make("softmax")
    added = F.linear(gaussian(model).project(numbers()), model.lm_head_weight)
    assert (model(tokens(), numbers()).logits - model(tokens(), 0 * numbers()).logits - added).abs().max() < 1e-12
    model = make("embedding")
    x, ctx = model.embedding(tokens()) + gaussian(model).project(numbers()), model.context(tokens())
    for block in model.blocks:
        x = block(x, ctx)
    assert (model.logits(model.norm(x)) - model(tokens(), numbers()).logits).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("way", "encoder", "depth"), [("memory", "shared", 2), ("memory", "full", 0), ("attention", "full", 0), ("kv", "full", 2)]
)
def test_with_an_encoder_of_its_own_z_reaches_every_block(way: str, encoder: str, depth: int) -> None:
    model = make(way, encoder=encoder)
    assert (model.depth, len(gaussian(model).encoder.blocks)) == (depth, 2 if encoder == "full" else 0)
    parts = {"memory": 1, "attention": 2}.get(way, 0)
    assert gaussian(model).project.weight.shape == (parts * (4 - depth) * 2 * 8 or 32, DIMS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"options": {"dims": 0}}, "latent.options.dims = 0 is not a whole number"),
        ({"options": {"inject": "memroy"}}, "did you mean 'memory'"),
        ({"options": {"size": 3}}, "are dims and inject, not size"),
        ({"options": {"inject": "embedding"}}, 'latent.encoder = "full"'),
        ({"options": {"inject": "memory"}}, "needs one Z a sequence"),
        ({"window": 2}, "need a latent of bits"),
        ({"objective": {"mismatch": 1.0}}, "need a latent of bits"),
        ({"objective": {"credit_from": 4}}, "need a latent of bits"),
        ({"numerics": {"gradient": "heun"}}, "is of the gradient of bits"),
    ],
)
def test_what_it_does_not_have_is_refused(settings: dict[str, Any], words: str) -> None:
    config = LatentConfig.model_validate({"kind": "gaussian", "kappa": 0.5, **settings})
    with pytest.raises(InputError) as caught:
        build_model(ModelConfig(layers=4, width=32, heads=4, vocab=VOCAB), config)
    assert words in str(caught.value)


def test_the_weight_of_all_terms() -> None:
    model, noise = make("kv"), torch.rand(2, LENGTH, DIMS).double()
    lost = [
        model(tokens(), noise=noise, targets_BT=tokens(1), weights=ObjectiveWeights(0.0, 0.0, 0.0, beta)).losses.objective
        for beta in (0.0, 0.5, 1.0)
    ]
    assert (lost[1] - (lost[0] + lost[2]) / 2).abs() < 1e-9 < (lost[2] - lost[0]) / 100


def test_pairs_masks_and_units_equal_their_definitions() -> None:
    """Of 5 distributions with sure and unsure numbers; the method that any kind inherits gives the same pairs."""
    torch.manual_seed(0)
    mean, log_var, z = (torch.randn(5, 4, DIMS).double() * scale for scale in (2.0, 3.0, 1.0))
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]])
    ours = GaussianDistribution(mean, log_var).within(mask)
    literal = torch.zeros(5, 5).double()
    for i, j in itertools.product(range(5), repeat=2):
        for t in range(4):
            own = Normal(mean[j, t], torch.exp(log_var[j, t] / 2)) if mask[j, t] else Normal(torch.zeros(DIMS).double(), 1.0)
            literal[i, j] += own.log_prob(z[i, t]).sum()
    for method in (GaussianDistribution.log_prob_pairs, Distribution.log_prob_pairs):
        assert torch.allclose(torch.cat(list(method(ours, z, 2))), literal, atol=1e-9)
    units = ours.units()
    want = kl_divergence(Normal(mean, torch.exp(log_var / 2)), Normal(0.0, 1.0)) * mask[..., None]
    assert (units.name, units.kl.shape) == ("dimension", (5, 4, DIMS))
    assert torch.allclose(units.kl, want, atol=1e-12) and torch.allclose(units.mean, mean * mask[..., None])
    again = joined([ours.rows(torch.tensor([0, 1])), ours.rows(torch.tensor([2, 3, 4]))])
    assert torch.equal(again.kl(), ours.kl()) and again.starts_BT is None


@pytest.mark.parametrize("way", WAYS)
def test_left_padding_changes_nothing(way: str) -> None:
    """Prompts of different lengths in one batch, with an inferred or given Z: the logits are those of each prompt alone."""
    model = make(way)
    z, pad = numbers(), 3
    alone = model(tokens(), z).logits
    padded = torch.cat([torch.zeros(2, pad, dtype=torch.long), tokens()], 1)
    cache = model.new_cache(2, LENGTH + pad, padding=torch.full((2,), pad))
    zs = torch.cat([torch.zeros(2, pad, DIMS).double(), z], 1)
    assert (model(padded, zs, cache=cache).logits[:, pad:] - alone).abs().max() < 1e-12
