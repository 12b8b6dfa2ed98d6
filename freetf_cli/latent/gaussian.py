"""A Gaussian latent: K independent normal numbers per token, with a standard normal prior (Kingma and Welling, arXiv 1312.6114).

    μ, log σ² = encoder(x)                     the encoder block of the paper's Algorithm 2
    z = μ + σ ε,  ε = √2 erfinv(2u − 1)        reparametrised: gradients flow through z; u is uniform noise
    r = to_r(z)                                keys and values of block L/2 + 1 from x + r, as in line 14
    KL = ½ Σ (μ² + σ² − log σ² − 1)            nats per token

    [latent]
    kind = "gaussian"
    kappa = 1.0
    options = { dims = 8 }                     # K

Shapes: B sequences, T positions, K numbers per token, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.errors import InputError
from freetf_cli.latent.binary import ZETA_STD, Encoder, ResidualInjection
from freetf_cli.latent.objective import free_bits_penalty
from freetf_cli.model.context import Context
from freetf_cli.model.decoder import initialise
from freetf_cli.model.latent import Distribution, Injection, Latent, ObjectiveWeights

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class GaussianDistribution(Distribution):
    """Independent normal numbers at every position; Z is [B, T, K]."""

    mean: Tensor
    log_var: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        normal = math.sqrt(2) * torch.erfinv(2 * noise.clamp(1e-6, 1 - 1e-6) - 1)
        return self.mean + torch.exp(self.log_var / 2) * normal

    def kl(self) -> Tensor:
        mean, log_var = self.mean.float(), self.log_var.float()
        return 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * ((z - self.mean).square() / self.log_var.exp() + self.log_var + LOG_2PI).sum(-1)

    def rows(self, index: Tensor) -> GaussianDistribution:
        return GaussianDistribution(self.mean[index], self.log_var[index])


class GaussianLatent(Latent):
    """K normal numbers per token, inferred by one non-causal block, injected into the keys and values of block `depth`."""

    def __init__(self, model: ModelConfig, config: LatentConfig) -> None:
        super().__init__()
        self.dims = config.options.get("dims", 8)
        if type(self.dims) is not int or self.dims < 1 or set(config.options) - {"dims"}:
            raise InputError(f"latent.options = {config.options!r}: a Gaussian latent has one option, 'dims', a number from 1")
        if config.window is not None or config.objective.has_mismatch:
            raise InputError("latent.window and latent.objective.mismatch need a latent of bits")
        self.config, self.kappa, self.depth = config, config.kappa, config.depth or model.layers // 2
        self.encoder = Encoder(model, 2 * self.dims)
        self.to_r = nn.Linear(self.dims, model.width, bias=False)

    def posterior(self, x_BTD: Tensor, embedded_BTD: Tensor, ctx: Context) -> GaussianDistribution:
        return GaussianDistribution(*self.encoder(x_BTD, ctx).chunk(2, dim=-1))

    def inject(self, z: Tensor, posterior: Distribution | None = None) -> Injection:
        return ResidualInjection(self.to_r(z.to(self.to_r.weight.dtype)), self.depth)

    def prior(self, stream: np.random.Generator, length: int) -> np.ndarray:
        return stream.standard_normal((length, self.dims), dtype=np.float32)

    def prior_log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_2PI).sum(-1)

    def check_record(self, values: list[Any]) -> None:
        for row in values:
            if not isinstance(row, list) or len(row) != self.dims or not all(isinstance(x, int | float) and math.isfinite(x) for x in row):
                raise ValueError(f"a record needs a list named 'z' with {self.dims} numbers for each token")

    def noise_shape(self, length: int) -> tuple[int, ...]:
        return length, self.dims

    def penalty(self, posterior: Distribution, kl_BT: Tensor, latent_mask_BT: Tensor, weights: ObjectiveWeights) -> Tensor:
        return free_bits_penalty(kl_BT, latent_mask_BT, weights.kappa, self.config.objective.free_bits, weights.slope)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        initialise(self.encoder, self.encoder.layers, generator)
        self.encoder.zeta.copy_(torch.randn(len(self.encoder.zeta), generator=generator) * ZETA_STD)
        self.to_r.weight.copy_(torch.randn(self.to_r.weight.shape, generator=generator) * self.dims**-0.5)

    def parts(self) -> dict[str, nn.Module]:
        return {"encoder (training only)": self.encoder, "to_r": self.to_r}


Kind = GaussianLatent
