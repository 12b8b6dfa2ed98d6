"""A plan beside the paper's bits: P bits for the whole sequence, and H bits for each token. Not the paper's.

    A2 line 8     l = to_bit_logits(norm(y)), H + P logits; those of the plan count at the first position alone
    A2 line 13    r_t = W[code_t] + V[plan]         tables W [2^H, D] and V [2^P, D], both with the gradient of equation 8
    objective     Σ_t max(0, KL_t − κ) + max(0, KL_plan − κ_plan), the first with the options of `latent.objective`; the mismatch is
                  the plan's, and with `mismatch_over = "token"` that of each token's bits too

With one kind of bit, what lasts and what passes compete for the same free bits: at κ = 1 all positions copy the plan into theirs, and from
the prior the copies disagree. Here the plan has bits of its own. With `latent.objective.schedule.kappa` it can be learned first, so that
nothing is left to copy.

`latent.options.plan_bits` is P (8); `latent.options.plan_kappa` is κ_plan in bits a sequence, P by default. A code of Z is
plan · 2^H + code_t: the plan has the highest bits, the same at all positions of a sequence.

Shapes: B sequences, T positions, D width. KL is in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.errors import InputError
from freetf_cli.latent.binary import BinaryDistribution, BinaryLatent, Encoder, PostSampler, ResidualInjection, kl_per_token, sample_codes
from freetf_cli.latent.objective import free_bits_penalty
from freetf_cli.model.context import Context
from freetf_cli.model.latent import Distribution, Injection, ObjectiveWeights, gather
from freetf_cli.model.weights import Draws
from freetf_cli.records import LN2

BITS, MOST = 8, 24


@dataclass(frozen=True)
class PlanDistribution(BinaryDistribution):
    """Bits of tokens and, above them, those of the plan. plan_bits: P. plan_starts: the position that infers a sequence's plan."""

    plan_bits: int = 0
    plan_starts: Tensor | None = None

    def sample(self, noise: Tensor) -> Tensor:
        codes_BT, shift = sample_codes(self.bit_logits.detach(), noise), self.bit_logits.shape[-1] - self.plan_bits
        return with_plan(codes_BT, gather(codes_BT, self.plan_starts) >> shift, shift)

    def rows(self, index: Tensor) -> PlanDistribution:
        starts = self.plan_starts
        return PlanDistribution(self.bit_logits[index], None, self.plan_bits, None if starts is None else starts[index])


def with_plan(codes: Any, plan: Any, shift: int) -> Any:
    """Codes whose bits from number `shift` on are the plan's."""
    return (codes & (1 << shift) - 1) | (plan << shift)


class PlanLatent(BinaryLatent):
    """P bits a sequence and H bits a token, inferred by one non-causal block, injected into the keys and values of block `depth`."""

    no_weight_decay: tuple[str, ...] = ("post_sampler.weight", "plan_sampler.weight")

    def __init__(self, model: ModelConfig, config: LatentConfig) -> None:
        self.plan_bits, plan_kappa = _options(config)
        super().__init__(model, config.model_copy(update={"options": {}}))
        self.config, self.plan_kappa = config, plan_kappa * LN2
        self.token_bits, self.bits = config.bits, config.bits + self.plan_bits
        self.encoder = Encoder(model, self.bits, own_blocks=self.depth if self.reads_embeddings else 0)
        self.plan_sampler = PostSampler(self.plan_bits, model.width, config.numerics.gradient)

    def posterior(self, x_BTD: Tensor, embedded_BTD: Tensor, ctx: Context) -> PlanDistribution:
        logits_BTH = self.encoder(embedded_BTD if self.reads_embeddings else x_BTD, ctx)
        token_BTH, plan_BTP = self.split(logits_BTH)
        if self.window is not None:
            token_BTH = token_BTH * (ctx.token_positions < self.window)[..., None]
        starts = ctx.positions_T - ctx.token_positions
        plan_BTP = plan_BTP * (starts == ctx.positions_T)[..., None]
        return PlanDistribution(torch.cat([token_BTH, plan_BTP], -1), None, self.plan_bits, starts.expand(logits_BTH.shape[:2]))

    def split(self, bit_logits_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the tokens' bits and of the plan's."""
        return bit_logits_BTH[..., : self.token_bits], bit_logits_BTH[..., self.token_bits :]

    def inject(self, z: Tensor, posterior: Distribution | None = None) -> Injection:
        token_BTH = plan_BTP = None
        if isinstance(posterior, PlanDistribution):
            token_BTH, plan_BTP = self.split(posterior.bit_logits)
            plan_BTP = gather(plan_BTP, posterior.plan_starts)
        r_BTD = self.post_sampler(z & (1 << self.token_bits) - 1, token_BTH) + self.plan_sampler(z >> self.token_bits, plan_BTP)
        return ResidualInjection(r_BTD, self.depth)

    def prior(self, stream: np.random.Generator, length: int) -> np.ndarray:
        codes = stream.integers(0, 2**self.bits, length)
        return np.asarray(with_plan(codes, codes[0] >> self.token_bits, self.token_bits)) if length else codes

    def check_record(self, values: list[Any]) -> None:
        super().check_record(values)
        if len({code >> self.token_bits for code in values}) > 1:
            raise ValueError(
                f"the bits from number {self.token_bits} on are the plan's, the same at all positions, and the record has two plans"
            )

    def with_prefix(self, z: Tensor, prefix: Tensor, padding_B: Tensor | None = None) -> Tensor:
        z[:, : prefix.shape[1]] = prefix
        return with_plan(z, prefix[:, -1:] >> self.token_bits, self.token_bits) if prefix.shape[1] else z

    def penalty(self, posterior: Distribution, kl_BT: Tensor, latent_mask_BT: Tensor, weights: ObjectiveWeights) -> Tensor:
        assert isinstance(posterior, PlanDistribution)
        config = self.config.objective
        token_BTH, plan_BTP = self.split(posterior.bit_logits)
        plan_B = (kl_per_token(plan_BTP) * latent_mask_BT).sum(-1)
        token_BT = kl_per_token(token_BTH) * latent_mask_BT
        penalty = free_bits_penalty(token_BT, latent_mask_BT, weights.kappa, config.free_bits, weights.slope)
        penalty = penalty + torch.relu(plan_B - self.plan_kappa).sum()
        if config.has_mismatch:
            first_B1P, all_B1 = gather(plan_BTP, posterior.plan_starts)[:, -1:], torch.ones_like(plan_B[:, None])
            penalty = penalty + weights.mismatch * self.mismatch(first_B1P, all_B1, "sequence")
            if config.mismatch_over == "token":
                penalty = penalty + weights.mismatch * self.mismatch(token_BTH, latent_mask_BT, "token")
        return penalty

    def initialise(self, draws: Draws) -> None:
        super().initialise(draws)
        self.plan_sampler.initialise(self.config.table_init, self.config.table_std, draws.within("plan_sampler"))

    def parts(self) -> dict[str, nn.Module]:
        return {**super().parts(), f"table of plans, {self.plan_sampler.rows}": self.plan_sampler}


def _options(config: LatentConfig) -> tuple[int, float]:
    """`plan_bits` and `plan_kappa` of `latent.options`, checked. Raises InputError."""
    if unknown := set(config.options) - {"plan_bits", "plan_kappa"}:
        raise InputError(f"latent.options of a plan are plan_bits and plan_kappa, not {', '.join(sorted(unknown))}")
    bits = config.options.get("plan_bits", BITS)
    if type(bits) is not int or bits < 1:
        raise InputError(f"latent.options.plan_bits = {bits!r} is not a whole number from 1 on")
    if config.bits + bits > MOST:
        raise InputError(f"latent.bits and latent.options.plan_bits are {config.bits + bits} bits; a code of Z holds {MOST}")
    kappa = config.options.get("plan_kappa", bits)
    if isinstance(kappa, bool) or not isinstance(kappa, int | float) or not 0 <= kappa <= bits:
        raise InputError(f"latent.options.plan_kappa = {kappa!r} is not a number of bits from 0 to {bits}")
    if config.every != 1:
        raise InputError("a plan is shared by all tokens of a sequence, and latent.every would share their other bits too")
    return bits, float(kappa)


Kind = PlanLatent  # what `latent.kind = "plan"` builds
