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

Shapes: B sequences, T positions, H bits (with the plan's), D width. KL is in nats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.errors import InputError
from freetf_cli.latent.binary import BinaryDistribution, BinaryLatent, Encoder, PostSampler, ResidualInjection, kl_per_token
from freetf_cli.latent.bits import code_of
from freetf_cli.latent.objective import free_bits_penalty
from freetf_cli.model.context import Context
from freetf_cli.model.latent import Distribution, Injection, ObjectiveWeights
from freetf_cli.model.weights import Draws
from freetf_cli.records import LN2

BITS, MOST = 8, 24


@dataclass(frozen=True)
class PlanDistribution(BinaryDistribution):
    """Bits of tokens and, above them, those of the plan. bit_starts_BTH: the position that infers each bit."""

    bit_starts_BTH: Tensor | None = None

    def sample(self, noise: Tensor) -> Tensor:
        assert self.bit_starts_BTH is not None
        bits_BTH = noise < torch.sigmoid(self.bit_logits.detach().to(noise.dtype))
        return code_of(bits_BTH.gather(1, self.bit_starts_BTH))

    def rows(self, index: Tensor) -> PlanDistribution:
        starts = self.bit_starts_BTH
        return replace(self, bit_logits=self.bit_logits[index], bit_starts_BTH=None if starts is None else starts[index])


class PlanLatent(BinaryLatent):
    """P bits a sequence and H bits a token, inferred by one non-causal block, injected into the keys and values of block `depth`."""

    no_weight_decay: tuple[str, ...] = ("post_sampler.weight", "plan_sampler.weight")

    def __init__(self, model: ModelConfig, config: LatentConfig) -> None:
        plan_bits, plan_kappa = _options(config)
        super().__init__(model, config.model_copy(update={"options": {}}))
        self.config, self.plan_kappa = config, plan_kappa * LN2
        self.token_bits, self.bits, self.row_bits = config.bits, config.bits + plan_bits, plan_bits
        self.encoder = Encoder(model, self.bits, own_blocks=self.depth if self.reads_embeddings else 0)
        self.plan_sampler = PostSampler(plan_bits, model.width, config.numerics.gradient)

    def posterior(self, x_BTD: Tensor, embedded_BTD: Tensor, ctx: Context) -> PlanDistribution:
        token_BTH, plan_BTH = self.split(super().posterior(x_BTD, embedded_BTD, ctx).bit_logits)
        own_T, begins = ctx.positions_T, ctx.positions_T - ctx.token_positions  # begins: [T], or [B, T] with padding
        plan_BTH = plan_BTH * (begins == own_T)[..., None]
        starts = [own_T.expand(token_BTH.shape[:2])] * self.token_bits + [begins.expand(token_BTH.shape[:2])] * plan_BTH.shape[-1]
        return PlanDistribution(torch.cat([token_BTH, plan_BTH], -1), None, torch.stack(starts, -1))

    def split(self, bit_logits_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the tokens' bits and of the plan's."""
        return bit_logits_BTH[..., : self.token_bits], bit_logits_BTH[..., self.token_bits :]

    def inject(self, z: Tensor, posterior: Distribution | None = None) -> Injection:
        """r = W[code] + V[plan]; with the posterior, of rows without padding, the gradient of equation 8 flows to both kinds of bits."""
        codes_BT, plans_BT = z & (1 << self.token_bits) - 1, z >> self.token_bits
        if isinstance(posterior, PlanDistribution) and torch.is_grad_enabled():
            token_BTH, plan_BTH = self.split(posterior.bit_logits)
            r_BTD = self._mapped(codes_BT, token_BTH) + self.plan_sampler(plans_BT[:, :1], plan_BTH[:, :1])
        else:
            r_BTD = self.post_sampler(codes_BT) + self.plan_sampler(plans_BT)
        return ResidualInjection(r_BTD, self.depth)

    def limited_kl(self, posterior: Distribution, kl_BT: Tensor) -> Tensor:
        """That of the tokens' bits: κ_plan limits the plan's."""
        assert isinstance(posterior, PlanDistribution)
        return torch.minimum(kl_BT, kl_per_token(self.split(posterior.bit_logits)[0]))  # the mask has made some of kl_BT 0

    @property
    def is_shared(self) -> bool:
        return True

    def agreed(self, z: np.ndarray) -> np.ndarray:
        return np.asarray(self._with_plan(z, z[:1]))

    def _with_plan(self, codes: Any, of: Any) -> Any:
        """The codes, with the plan of other codes."""
        return (codes & (1 << self.token_bits) - 1) | (of >> self.token_bits << self.token_bits)

    def check_record(self, values: list[Any]) -> None:
        """As for the paper's bits; and a sequence has one plan."""
        super().check_record(values)
        if len({code >> self.token_bits for code in values}) > 1:
            raise ValueError(
                f"bits from number {self.token_bits} on are the plan's, one for the sequence, and the record has several plans"
            )

    def with_prefix(self, z: Tensor, prefix: Tensor, padding_B: Tensor | None = None) -> Tensor:
        z[:, : prefix.shape[1]] = prefix
        return self._with_plan(z, prefix[:, -1:]) if prefix.shape[1] else z

    def sharing(self, position: int, bit: int, length: int) -> np.ndarray:
        return np.arange(length) if bit >= self.token_bits else super().sharing(position, bit, length)

    def penalty(self, posterior: Distribution, kl_BT: Tensor, latent_mask_BT: Tensor, weights: ObjectiveWeights) -> Tensor:
        """The tokens' KL above κ and the plan's above κ_plan, and what `latent.objective` adds."""
        assert isinstance(posterior, PlanDistribution)
        config, (token_BTH, plan_BTH) = self.config.objective, self.split(posterior.bit_logits)
        plan_B = (kl_per_token(plan_BTH) * latent_mask_BT).sum(-1)  # at the other positions it is 0
        token_BT = kl_per_token(token_BTH) * latent_mask_BT
        penalty = free_bits_penalty(token_BT, latent_mask_BT, weights.kappa, config.free_bits, weights.slope)
        penalty = penalty + F.relu(plan_B - self.plan_kappa).sum()
        if config.has_mismatch:
            penalty = penalty + weights.mismatch * self.mismatch(
                plan_BTH.sum(1, keepdim=True), torch.ones_like(plan_B[:, None]), "sequence"
            )
            if config.mismatch_over == "token":
                penalty = penalty + weights.mismatch * self.mismatch(token_BTH, latent_mask_BT, "token")
        return penalty * self.credited_share(len(kl_BT))

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
    if config.every != 1 or config.beyond == "nothing":
        raise InputError("a plan is read by all tokens, each with bits of its own", hint="leave latent.every and latent.beyond out")
    return bits, float(kappa)


Kind = PlanLatent  # what `latent.kind = "plan"` builds
