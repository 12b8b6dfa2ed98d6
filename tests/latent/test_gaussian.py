"""The Gaussian latent against torch.distributions, and the whole model with it."""

import math

import torch
from torch.distributions import Normal, kl_divergence

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.latent.build import build_model, initialise_model
from freetf_cli.latent.gaussian import GaussianDistribution
from freetf_cli.model.latent import ObjectiveWeights


def test_distribution_equals_torchs() -> None:
    torch.manual_seed(0)
    mean, log_var = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    ours, theirs = GaussianDistribution(mean, log_var), Normal(mean, torch.exp(log_var / 2))
    u = torch.rand(2, 3, 4)
    z = ours.sample(u)
    assert torch.allclose(z, theirs.icdf(u), atol=1e-4)
    assert torch.allclose(ours.log_prob(z), theirs.log_prob(z).sum(-1), atol=1e-5)
    assert torch.allclose(ours.kl(), kl_divergence(theirs, Normal(0.0, 1.0)).sum(-1), atol=1e-5)


def test_gradient_reaches_the_encoder_through_z() -> None:
    config = ModelConfig(layers=4, width=32, heads=4, vocab=11)
    model = build_model(config, LatentConfig(kind="gaussian", kappa=0.5, options={"dims": 3}))
    initialise_model(model, seed=0)
    tokens = torch.randint(11, (2, 9))
    out = model(tokens[:, :-1], noise=torch.rand(2, 8, 3), targets_BT=tokens[:, 1:], weights=ObjectiveWeights(math.log(2) / 2, 0.0, 0.0))
    out.losses.objective.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.latent.parameters())
