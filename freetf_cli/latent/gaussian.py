"""A Gaussian latent, as in earlier language models with a latent variable (§5 of Fleuret, arXiv 2510.17558): not the paper's.

    μ, log σ² = encoder(x)                        the encoder block of the paper's Algorithm 2
    z = μ + σ ε,  ε = √2 erfinv(2 u − 1)          reparametrised: gradients flow through z; u is uniform noise
    KL = ½ Σ_k (μ_k² + σ_k² − log σ_k² − 1)       nats per Z; the prior is standard normal

`latent.options.dims` is K (32), and `latent.options.inject` says how the decoder reads z:

    "kv"          keys and values of block `depth` come from x + A z, as in the Free Transformer                          the default
    "embedding"   A z is added to every input embedding                             OPTIMUS (Li et al., arXiv 2004.04092), Fang et al.
    "memory"      every block has one more key, which is also its value: M_l z                                            OPTIMUS
    "attention"   pseudo-self-attention: every block has one more key U_l z and value V_l z    Fang et al. (arXiv 2101.00828), AdaVAE
    "softmax"     A z is added to what lm_head reads, so that the logits get E A z                                        Fang et al.

Fang et al. add V z to the logits with a free matrix V; here V = E A has the rank and the columns of lm_head's E. AdaVAE (Tu et al., arXiv
2205.05862) trains adapters in a pretrained decoder; here everything is trained. With `latent.encoder = "full"` the encoder reads the
embeddings through blocks of its own, as in these models, and "embedding", "memory" and "attention" then reach every block. With "shared" it
reads the decoder's lower half, and Z reaches the blocks above it. The models of §5 have one Z a sequence: `latent.every = "sequence"`.
Their annealing of the KL is `latent.objective.schedule.beta`, their free bits `latent.kappa`.

Shapes: B sequences, T positions, K numbers, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.errors import InputError, nearest
from freetf_cli.latent.binary import ZETA_STD, Encoder, ResidualInjection
from freetf_cli.latent.bits import at_least_float32
from freetf_cli.latent.objective import free_bits_penalty
from freetf_cli.model.context import Context, Memory
from freetf_cli.model.decoder import initialise
from freetf_cli.model.latent import Distribution, Injection, Latent, ObjectiveWeights, Units, gather, shared
from freetf_cli.model.weights import Draws

DIMS = 32
WAYS = ("kv", "embedding", "memory", "attention", "softmax")
LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class GaussianDistribution(Distribution):
    """Independent normal numbers, Z [B, T, K], from means and log-variances [B, T, K]. starts_BT: as in `BinaryDistribution`."""

    mean: Tensor
    log_var: Tensor
    starts_BT: Tensor | None = None

    def sample(self, noise: Tensor) -> Tensor:
        """Z from uniform noise [B, T, K]."""
        normal = math.sqrt(2) * torch.erfinv(2 * noise.clamp(1e-6, 1 - 1e-6) - 1)
        return gather(self.mean + torch.exp(self.log_var / 2) * normal, self.starts_BT)

    def kl(self) -> Tensor:
        return self.units().kl.sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        mean, log_var = at_least_float32(self.mean), at_least_float32(self.log_var)
        return -0.5 * ((z - mean).square() / log_var.exp() + log_var + LOG_2PI).sum(-1)

    def rows(self, index: Tensor) -> GaussianDistribution:
        return GaussianDistribution(self.mean[index], self.log_var[index], None if self.starts_BT is None else self.starts_BT[index])

    def within(self, mask_BT: Tensor) -> GaussianDistribution:
        mask_BT1 = mask_BT[..., None]
        return replace(self, mean=at_least_float32(self.mean) * mask_BT1, log_var=at_least_float32(self.log_var) * mask_BT1)

    def log_prob_pairs(self, z: Tensor, at_once: int) -> Iterator[Tensor]:
        """As matrix products over the numbers of all positions: Σ (z_a − μ_b)² / σ_b² = Σ (z_a² − 2 z_a μ_b) / σ_b² + Σ μ_b² / σ_b²."""
        mean_BF, log_var_BF = (part.flatten(1).double() for part in (self.mean, self.log_var))
        precision_BF = torch.exp(-log_var_BF)
        own_B = (mean_BF.square() * precision_BF + log_var_BF + LOG_2PI).sum(1)
        for part in torch.split(z, at_once):
            z_AF = part.flatten(1).double()
            yield -0.5 * (z_AF.square() @ precision_BF.T - 2 * z_AF @ (mean_BF * precision_BF).T + own_B)

    def units(self) -> Units:
        """The K numbers; their means are μ."""
        mean, log_var = at_least_float32(self.mean), at_least_float32(self.log_var)
        return Units("dimension", 0.5 * (mean.square() + log_var.exp() - log_var - 1), mean)


class GaussianLatent(Latent):
    """K normal numbers per Z, inferred by one non-causal block, and read by the decoder in one of several ways."""

    def __init__(self, model: ModelConfig, config: LatentConfig) -> None:
        super().__init__()
        self.dims, self.way = _options(config.options)
        _refuse(model, config, self.way)
        self.config, self.kappa, self.every = config, config.kappa, config.every
        self.reads_embeddings = config.encoder == "full"
        half = config.depth or model.layers // 2
        self.depth = 0 if self.reads_embeddings and self.way in ("embedding", "memory", "attention") else half
        self.encoder = Encoder(model, 2 * self.dims, own_blocks=half if self.reads_embeddings else 0)
        self.layers, self.key_heads, self.head_width = model.layers - self.depth, model.key_heads, model.head_width
        keys = self.layers * model.key_heads * model.head_width
        self.project = nn.Linear(self.dims, {"memory": keys, "attention": 2 * keys}.get(self.way, model.width), bias=False)

    def posterior(self, x_BTD: Tensor, embedded_BTD: Tensor, ctx: Context) -> GaussianDistribution:
        """Means and log-variances from the encoder; the prior at positions that read the Z of an earlier one."""
        stream_BTD, starts = embedded_BTD if self.reads_embeddings else x_BTD, self.starts(ctx)
        mean_BTK, log_var_BTK = self.encoder(stream_BTD, ctx).chunk(2, dim=-1)
        if starts is None:
            return GaussianDistribution(mean_BTK, log_var_BTK)
        infers = (starts == ctx.positions_T)[..., None]
        return GaussianDistribution(mean_BTK * infers, log_var_BTK * infers, starts.expand(mean_BTK.shape[:2]))

    def inject(self, z: Tensor, posterior: Distribution | None = None) -> Injection:
        """How the decoder reads z, by `latent.options.inject`. Gradients reach the encoder through z itself."""
        z_BTK = z.to(self.project.weight.dtype)
        if self.way == "kv":
            return ResidualInjection(self.project(z_BTK), self.depth)
        if self.way == "embedding":
            return EmbeddingInjection(self.project(z_BTK))
        if self.way == "softmax":
            return HiddenInjection(self.project(z_BTK))
        # the last position is never padding, and has the Z of its sequence
        return MemoryInjection(self.project(z_BTK[:, -1]).view(len(z), self.layers, -1, self.key_heads, 1, self.head_width), self.depth)

    def prior(self, stream: np.random.Generator, length: int) -> np.ndarray:
        """Standard normal numbers [T, K] float32."""
        return shared(stream.standard_normal((length, self.dims), dtype=np.float32), self.every)

    def prior_log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_2PI).sum(-1)

    def check_record(self, values: list[Any]) -> None:
        """A list of K finite numbers for each token, the same where tokens share a Z."""
        for row in values:
            if not isinstance(row, list) or len(row) != self.dims or not all(_is_finite(x) for x in row):
                raise ValueError(f"a record needs a list named 'z' with {self.dims} numbers for each token")
        self.check_shared(values)

    def noise_shape(self, length: int) -> tuple[int, ...]:
        """[T, K]: a uniform number for each normal one."""
        return length, self.dims

    def penalty(self, posterior: Distribution, kl_BT: Tensor, latent_mask_BT: Tensor, weights: ObjectiveWeights) -> Tensor:
        """The KL above the free bits, as for the paper's latent."""
        return free_bits_penalty(kl_BT, latent_mask_BT, weights.kappa, self.config.objective.free_bits, weights.slope)

    @torch.no_grad()
    def initialise(self, draws: Draws) -> None:
        """Encoder as the decoder's blocks, ζ small; projections with entries of deviation `latent.table_std` from a z of the prior."""
        initialise(self.encoder, self.encoder.layers, draws.within("encoder"))
        draws.normal("encoder.zeta", self.encoder.zeta, ZETA_STD)
        draws.normal("project.weight", self.project.weight, self.config.table_std * self.dims**-0.5)

    def parts(self) -> dict[str, nn.Module]:
        return {"encoder (training only)": self.encoder, f"projection of {self.dims} numbers": self.project}


@dataclass(frozen=True)
class EmbeddingInjection(Injection):
    """Block 0 reads x + r."""

    r_BTD: Tensor

    def stream(self, index: int, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.r_BTD if index == 0 else x_BTD


@dataclass(frozen=True)
class HiddenInjection(Injection):
    """lm_head reads norm(x) + r."""

    r_BTD: Tensor

    def hidden(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD + self.r_BTD


@dataclass(frozen=True)
class MemoryInjection(Injection):
    """A further key and value for each block from `depth` on. parts: [B, blocks, 1 or 2, key heads, 1, head width]; one part is both."""

    memory_size: ClassVar[int] = 1
    parts: Tensor
    depth: int

    def memory(self, index: int) -> Memory:
        own = self.parts[:, index - self.depth]
        return Memory(own[:, 0], own[:, -1])


def _options(given: Mapping[str, Any]) -> tuple[int, str]:
    """`dims` and `inject` of `latent.options`, checked."""
    if unknown := set(given) - {"dims", "inject"}:
        raise InputError(f"latent.options of a Gaussian latent are dims and inject, not {', '.join(sorted(unknown))}")
    dims, way = given.get("dims", DIMS), given.get("inject", WAYS[0])
    if type(dims) is not int or not 1 <= dims <= 4096:
        raise InputError(f"latent.options.dims = {dims!r} is not a whole number from 1 to 4096")
    if way not in WAYS:
        raise InputError(f"latent.options.inject = {way!r} is not a way to read Z", hint=nearest(str(way), WAYS))
    return dims, way


def _refuse(model: ModelConfig, latent: LatentConfig, way: str) -> None:
    """Raise InputError for settings that this kind, or this way of reading z, does not have."""
    objective, numerics = latent.objective, latent.numerics
    if latent.window is not None or latent.table.order is not None or objective.has_mismatch or objective.credit_from:
        raise InputError("latent.window, latent.table and latent.objective's mismatch and credit_from need a latent of bits")
    if numerics.gradient != "paper" or numerics.float8:
        raise InputError("latent.numerics is of the gradient of bits, and a Gaussian latent's flows through Z itself")
    if way == "embedding" and latent.encoder != "full":
        raise InputError("Z is added to the embeddings below an encoder that reads the lower half", hint='latent.encoder = "full"')
    if way in ("memory", "attention"):
        if latent.every != "sequence":
            raise InputError(f"latent.options.inject = {way!r} needs one Z a sequence", hint='latent.every = "sequence"')
        if any(model.attention_of(index) != "softmax" for index in range(model.layers)):
            raise InputError(f"latent.options.inject = {way!r} needs softmax attention in every block")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


Kind = GaussianLatent  # what `latent.kind = "gaussian"` builds
