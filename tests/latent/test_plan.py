"""A plan beside the bits of tokens, against literal sums over all codes, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.errors import InputError
from freetf_cli.latent.binary import BinaryDistribution
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.latent.plan import PlanDistribution, PlanLatent
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.streams import keyed

TOKEN, PLAN, LENGTH, VOCAB = 2, 3, 4, 11


def make(**latent: Any) -> Decoder:
    config = ModelConfig(layers=2, width=16, heads=2, vocab=VOCAB, context=8)
    options = {"plan_bits": PLAN, "plan_kappa": 1.0}
    model = build_model(config, LatentConfig(kind="plan", kappa=0.5, bits=TOKEN, options=options, **latent)).double()
    initialise_model(model, seed=0)
    return model.eval()


def latent_of(model: Decoder) -> PlanLatent:
    assert isinstance(model.latent, PlanLatent)
    return model.latent


def distribution(rows: int = 1, seed: int = 0) -> PlanDistribution:
    logits = torch.randn(rows, LENGTH, TOKEN + PLAN, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logits[:, 1:, TOKEN:] = 0
    return planned(logits)


def planned(logits: torch.Tensor) -> PlanDistribution:
    """Every token infers its own bits, the first one the plan."""
    starts = torch.arange(LENGTH)[None, :, None].repeat(len(logits), 1, TOKEN + PLAN)
    starts[..., TOKEN:] = 0
    return PlanDistribution(logits, None, starts)


def test_all_positions_have_the_plan_of_the_first() -> None:
    drawn = distribution(50).sample(torch.rand(50, LENGTH, TOKEN + PLAN, generator=torch.Generator().manual_seed(1)).double())
    assert (drawn >> TOKEN == drawn[:, :1] >> TOKEN).all() and len({*(drawn[:, 0] >> TOKEN).tolist()}) > 3
    assert len({*(drawn[:, 1:] & 3).flatten().tolist()}) == 4
    codes = latent_of(make()).prior(keyed(0, "test"), 400)
    assert len(np.unique(codes >> TOKEN)) == 1 and len(np.unique(codes & 3)) == 4


def test_kl_is_that_of_both_kinds_of_bits() -> None:
    """Summed literally over all codes; where a position infers no plan, the plan's bits add nothing."""
    ours = distribution()
    p = torch.sigmoid(ours.bit_logits[0])
    for t in range(LENGTH):
        literal = 0.0
        for bits in itertools.product(range(2), repeat=TOKEN + PLAN):
            q = math.prod(float(p[t, h] if bit else 1 - p[t, h]) for h, bit in enumerate(bits))
            literal += q * math.log(q * 2 ** (TOKEN + PLAN))
        assert ours.kl()[0, t].item() == pytest.approx(literal, abs=1e-12)


def test_the_gradient_of_both_is_that_of_equation_8() -> None:
    """The gradient ∂/∂l of Σ_t dr_t · E[W_code + V_plan], with an expectation over all codes. The rows of V get the sum over positions."""
    latent = latent_of(make())
    generator = torch.Generator().manual_seed(3)
    dr_TD = torch.randn(LENGTH, 16, dtype=torch.float64, generator=generator)
    logits = distribution(seed=2).bit_logits.requires_grad_()
    posterior = planned(logits)
    z = posterior.sample(torch.rand(1, LENGTH, TOKEN + PLAN, generator=generator).double())
    kv = latent.inject(z, posterior).kv(latent.depth, torch.zeros(1, LENGTH, 16).double())
    assert kv is not None
    torch.autograd.backward((kv[0] * dr_TD).sum())
    expected = logits.detach().clone().requires_grad_()
    p = torch.sigmoid(expected[0])
    total = torch.zeros((), dtype=torch.float64)
    for t in range(LENGTH):
        for table, low, bits, at in ((latent.post_sampler.weight, 0, TOKEN, t), (latent.plan_sampler.weight, TOKEN, PLAN, 0)):
            for code, row in enumerate(table):
                share = math.prod(p[at, low + h] if code >> h & 1 else 1 - p[at, low + h] for h in range(bits))
                total = total + share * (row.detach() @ dr_TD[t])
    torch.autograd.backward(total)
    assert logits.grad is not None and expected.grad is not None
    assert (logits.grad - expected.grad).abs().max() < 1e-12
    for t in range(LENGTH):
        row = latent.post_sampler.weight[z[0, t] & 3] + latent.plan_sampler.weight[z[0, 0] >> TOKEN]
        assert torch.equal(kv[0, t], row)


@pytest.mark.parametrize("over", ["sequence", "token"])
def test_the_plan_has_free_bits_of_its_own(over: str) -> None:
    latent = latent_of(make(objective={"mismatch": 0.7, "mismatch_over": over}))
    posterior = distribution(6, seed=5)
    mask = torch.ones(6, LENGTH, dtype=torch.float64)
    p = torch.sigmoid(posterior.bit_logits)
    kl = p * (2 * p).log() + (1 - p) * (2 - 2 * p).log()
    literal = torch.relu(kl[..., :TOKEN].sum(-1) - 0.2).sum() + torch.relu(kl[:, 0, TOKEN:].sum(-1) - math.log(2)).sum()
    signs = torch.tanh(posterior.bit_logits / 2)

    def d2(part: torch.Tensor) -> float:
        pairs = [math.prod(1 + float(x) for x in (part[a] * part[b]).flatten()) for a in range(3) for b in range(3, 6)]
        return max(0.0, math.log(sum(pairs) / len(pairs)))

    mismatch = d2(signs[:, 0, TOKEN:]) + (sum(d2(signs[:, t, :TOKEN]) for t in range(LENGTH)) if over == "token" else 0.0)
    ours = latent.penalty(posterior, posterior.kl(), mask, ObjectiveWeights(0.2, 0.0, 0.7))
    assert ours.item() == pytest.approx(float(literal) + 0.7 * mismatch * 6, rel=1e-6)


def test_the_share_above_kappa_is_of_the_tokens_bits() -> None:
    """A plan that alone lifts the first token above κ does not count there; masked positions have none."""
    model, kappa = make(), 0.3
    logits = torch.full((2, LENGTH, TOKEN + PLAN), 0.2, dtype=torch.float64)
    logits[:, 1:, TOKEN:] = 0
    logits[:, 0, TOKEN:] = 5.0
    logits[1, 2, :TOKEN] = 4.0
    posterior, targets = planned(logits), torch.ones(2, LENGTH, dtype=torch.long)
    weights = ObjectiveWeights(torch.tensor(kappa), *(torch.ones(()) for _ in ObjectiveWeights._fields[1:]))
    found = model.losses(torch.zeros(2, LENGTH, 16, dtype=torch.float64), targets, posterior, weights)
    assert (posterior.kl()[:, 0] > kappa).all() and (found.above, found.latents) == (1, 2 * LENGTH)
    limited = latent_of(model).limited_kl(posterior, posterior.kl() * torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]))
    alone = BinaryDistribution(logits[..., :TOKEN]).kl()
    assert limited[0].tolist() == pytest.approx([*alone[0, :2].tolist(), 0, 0])
    assert limited[1].tolist() == pytest.approx(alone[1].tolist())


def test_a_prompts_plan_holds_for_what_is_written() -> None:
    latent = latent_of(make())
    z = torch.from_numpy(np.stack([latent.prior(keyed(0, row), 8) for row in range(3)]))
    prefix = torch.from_numpy(np.stack([latent.prior(keyed(1, row), 5) for row in range(3)]))
    late = z[:, 5:].clone()
    joined = latent.with_prefix(z, prefix)
    assert torch.equal(joined[:, :5], prefix) and torch.equal(joined[:, 5:] & 3, late & 3)
    assert (joined >> TOKEN == prefix[:, :1] >> TOKEN).all()


def test_a_record_has_one_plan() -> None:
    latent = latent_of(make())
    latent.check_record([5, 6, 7])
    with pytest.raises(ValueError, match="has several"):
        latent.check_record([5, 9])
    with pytest.raises(ValueError, match="outside"):
        latent.check_record([32])


def test_the_posterior_infers_the_plan_at_the_first_token() -> None:
    model = make()
    tokens = torch.randint(VOCAB, (1, LENGTH), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        found = model(tokens, noise=torch.rand(1, LENGTH, TOKEN + PLAN).double()).posterior
    assert isinstance(found, PlanDistribution) and found.bit_starts_BTH is not None
    assert (found.bit_logits[:, 1:, TOKEN:] == 0).all() and (found.bit_logits[:, 0] != 0).all()
    assert torch.equal(found.bit_starts_BTH, planned(found.bit_logits).bit_starts_BTH)


def test_flipping_a_bit_of_the_plan_flips_it_everywhere() -> None:
    latent = latent_of(make())
    assert latent.sharing(2, TOKEN, 5).tolist() == [0, 1, 2, 3, 4] and latent.sharing(2, TOKEN - 1, 5).tolist() == [2]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"options": {"plans": 3}}, "plan_bits and plan_kappa"),
        ({"options": {"plan_bits": 0}}, "plan_bits = 0"),
        ({"options": {"plan_bits": 23}}, "25 bits"),
        ({"options": {"plan_kappa": 9}}, "plan_kappa = 9"),
        ({"every": "sequence"}, "by all tokens"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        build_model(ModelConfig(layers=2, width=16, heads=2, vocab=VOCAB), LatentConfig(kind="plan", kappa=0.5, bits=TOKEN, **settings))
