"""The objective of `Decoder.forward` against its formula, written out."""

import math

import pytest
import torch

from freetf_cli.config.recipe import LatentConfig, ModelConfig, ObjectiveConfig
from freetf_cli.data.batches import IGNORE
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.latent.objective import aggregate_mismatch
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.model.loss import latent_mask

CONFIG = ModelConfig(layers=2, width=16, heads=2, vocab=7, context=6)
LATENT = LatentConfig(kappa=0.25, bits=3)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 7, (3, 7), generator=generator)
    targets = rows[:, 1:].clone()
    targets[1, 4:] = IGNORE  # a padded row
    targets[2, :3] = IGNORE  # a question that does not count
    return rows[:, :-1], targets, torch.rand(3, 6, 3, generator=generator)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("mismatch", "over"), [(0.0, "sequence"), (0.7, "sequence"), (0.7, "token")])
@pytest.mark.parametrize("slope", [0.0, 0.3])
@pytest.mark.parametrize("pool", ["token", "sequence"])
def test_free_terms_are_the_formula(pool: str, slope: float, mismatch: float, over: str, window: int | None) -> None:
    latent = LATENT.model_copy(
        update={"objective": ObjectiveConfig(free_bits=pool, mismatch=mismatch, mismatch_over=over), "window": window}  # type: ignore[arg-type]
    )
    model = build_model(CONFIG, latent)
    initialise_model(model, 1)
    inputs, targets, noise = batch()
    kappa = 0.25 * math.log(2)
    weights = ObjectiveWeights(*torch.tensor([kappa, slope, mismatch]))
    terms = model(inputs, noise=noise, targets_BT=targets, weights=weights).losses

    out = model(inputs, noise=noise)
    logp = torch.log_softmax(out.logits, -1)
    p = torch.sigmoid(out.posterior.bit_logits)
    kl = (p * (2 * p).log() + (1 - p) * (2 * (1 - p)).log()).sum(-1)
    last = [6, 4, 6]  # Z after a row's last counted target cannot matter
    ce = -sum(logp[b, t, targets[b, t]] for b in range(3) for t in range(6) if targets[b, t] != IGNORE)
    kls = [[kl[b, t] for t in range(last[b])] for b in range(3)]
    if pool == "token":
        penalty = sum(max(0.0, k.item() - kappa) + slope * min(k.item(), kappa) for row in kls for k in row)
    else:
        sums = [(sum(k.item() for k in row), kappa * len(row)) for row in kls]
        penalty = sum(max(0.0, used - allowed) + slope * min(used, allowed) for used, allowed in sums)
    counted = torch.tensor([[float(t < last[b]) for t in range(6)] for b in range(3)])
    divergence = aggregate_mismatch(out.posterior.bit_logits, counted, over).item()  # type: ignore[arg-type]
    assert divergence > 0.1  # at 0 the next line would test nothing
    penalty += mismatch * 3 * divergence
    assert terms.ce.item() == pytest.approx(ce.item(), rel=1e-5)
    assert terms.kl.item() == pytest.approx(sum(k.item() for row in kls for k in row), rel=1e-5)
    assert terms.penalty.item() == pytest.approx(float(penalty), rel=1e-4)
    assert terms.latents.item() == 16
    assert terms.above.item() == sum(k.item() > kappa for row in kls for k in row)
    assert terms.objective.item() == pytest.approx(ce.item() + float(penalty), rel=1e-5)


def test_the_latent_mask_ends_with_the_last_counted_target() -> None:
    targets = torch.tensor([[IGNORE, 3, IGNORE, 2, IGNORE, IGNORE], [IGNORE] * 6])
    assert latent_mask(targets).tolist() == [[1, 1, 1, 1, 0, 0], [0] * 6]


def test_a_baseline_has_cross_entropy_only() -> None:
    model = build_model(CONFIG, None)
    initialise_model(model, 0)
    inputs, targets, noise = batch()
    terms = model(inputs, noise=noise, targets_BT=targets, weights=ObjectiveWeights(*torch.zeros(3))).losses
    assert terms.objective.item() == terms.ce.item() > 0
    assert terms.kl.item() == terms.penalty.item() == terms.above.item() == 0
