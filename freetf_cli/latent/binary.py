"""The paper's latent: H independent bits per token (§3.3, §3.4 and Algorithm 2, A2, of Fleuret, arXiv 2510.17558).

    A2 line 7     y = block(q = ζ repeated T times, kv = x), non-causal     `Encoder`
    A2 line 8     l = to_bit_logits(norm(y)); p_h = P(B_h = 1) = σ(l_h)     equation 6
    A2 line 9     the code Σ_h 2^h B_h, whose one-hot vector is Y           the binary mapper, equation 7: `sample_codes`
    A2 line 13    r = Y W, the row W[code] of a table [C, D], C = 2^H       `PostSampler`
    A2 line 14    keys and values of block `depth` (from 0) from x + r      `ResidualInjection`

The paper passes gradients by Y + G − detach(G), where G_d = P(code = d) is a product over bits (equation 8): forward the one-hot,
backward the gradient of all C probabilities. Neither Y nor G is built here, since [tokens, C] tensors take gigabytes at H = 16.
The same numbers come from (`kernels.logit_gradient`)

    s = W · dr, [C] per token                       the loss's gradient for Y
    ∂loss/∂l_h = Σ_d G_d (U_h(d) − p_h) s_d         the covariance of U_h and s under G, where U_h(d) is bit h of d

This computes equation 8's gradient exactly. Equation 8 itself is a biased estimator: it extrapolates the loss linearly from the code
drawn to every other code. Once the decoder relies on a bit, the slope at its drawn value is small, so equation 8 underestimates what
the bit is worth, most of all when the bit is nearly certain. `gradient = "heun"`, which is not the paper's, divides ∂loss/∂l_h by
2 P(B_h as drawn). Let g(b) be the slope of the loss in bit h if b was drawn. Equation 8 gives p (1 − p) g(b). Divided by 2 P(b), its mean
over the draws of b is p (1 − p) (g(0) + g(1)) / 2: the trapezoid rule for the true difference (Liu et al., arXiv 2304.08612).

Shapes: N tokens, B sequences, T positions, H bits, C codes, D width. KL is in nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli import kernels
from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.errors import InputError
from freetf_cli.latent.bits import at_least_float32, bit_directions, code_bits, code_of, signs, twice_drawn
from freetf_cli.latent.low_order import LowOrderTable
from freetf_cli.latent.objective import aggregate_mismatch, free_bits_penalty, without_early_targets
from freetf_cli.model.block import Block
from freetf_cli.model.context import Context
from freetf_cli.model.decoder import initialise
from freetf_cli.model.latent import Distribution, Injection, Latent, ObjectiveWeights, Units, gather
from freetf_cli.model.weights import Draws, fill
from freetf_cli.records import LN2

ZETA_STD = 0.02


class BinaryLatent(Latent):
    """H uniform bits per token, inferred by one non-causal block, injected into the keys and values of block `depth`."""

    no_weight_decay: tuple[str, ...] = ("post_sampler.weight",)

    def __init__(self, model: ModelConfig, config: LatentConfig) -> None:
        super().__init__()
        if config.options:
            raise InputError(f"latent.options = {config.options}: the binary latent has no further options")
        self.config, self.bits, self.kappa = config, config.bits, config.kappa
        self.depth, self.window, self.every = config.depth or model.layers // 2, config.window, config.every
        self.reach = config.window if config.beyond == "nothing" else None
        self.reads_embeddings = config.encoder == "full"
        self.encoder = Encoder(model, config.bits, own_blocks=self.depth if self.reads_embeddings else 0)
        gradient, order = config.numerics.gradient, config.table.order
        self.post_sampler: PostSampler | LowOrderTable
        if order is None:
            self.post_sampler = PostSampler(config.bits, model.width, gradient, config.numerics.float8)
        else:
            self.post_sampler = LowOrderTable(config.bits, model.width, order, gradient)

    def posterior(self, x_BTD: Tensor, embedded_BTD: Tensor, ctx: Context) -> BinaryDistribution:
        """Bernoulli bits from the encoder.

        With `latent.window` and `latent.every`, which are not the paper's, the logits of positions that infer nothing are 0: Q equals the
        prior there.
        """
        bit_logits_BTH, starts = self.encoder(embedded_BTD if self.reads_embeddings else x_BTD, ctx), self.starts(ctx)
        if self.window is not None:
            bit_logits_BTH = bit_logits_BTH * (ctx.token_positions < self.window)[..., None]
        if starts is not None:
            bit_logits_BTH = bit_logits_BTH * (starts == ctx.positions_T)[..., None]
        return BinaryDistribution(bit_logits_BTH, None if starts is None else starts.expand(bit_logits_BTH.shape[:2]))

    def credited(self, posterior: Distribution, targets_BT: Tensor) -> tuple[Distribution, Tensor]:
        """With `latent.objective.credit_from`, which is not the paper's: half of the sequences teach the encoder, by their later targets
        alone, and the other half the decoder, by all of theirs. `penalty`, of all sequences, has half of its weight beside this credit."""
        assert isinstance(posterior, BinaryDistribution)
        if not self.config.objective.credit_from:
            return posterior, targets_BT
        half, logits_BTH = len(targets_BT) // 2, posterior.bit_logits
        told = replace(posterior, bit_logits=torch.cat([logits_BTH[:half].detach(), logits_BTH[half:]]))
        return told, without_early_targets(targets_BT, half, self.config.objective.credit_from)

    def inject(self, z: Tensor, posterior: Distribution | None = None) -> Injection:
        """r = W[z]; with the posterior, the gradient of equation 8 flows to the bit logits: those of the token that infers a shared Z."""
        if isinstance(posterior, BinaryDistribution) and torch.is_grad_enabled():
            return ResidualInjection(self._mapped(z, posterior.bit_logits), self.depth)
        return ResidualInjection(self.post_sampler(z), self.depth)

    def _mapped(self, z_BT: Tensor, bit_logits_BTH: Tensor) -> Tensor:
        """r [B, T, D] with the gradient of the bit logits, of rows without padding. Each Z that is inferred is mapped once, whatever the
        number of tokens that share it: the gradient is linear in dr, so theirs are added first."""
        length, mapped = z_BT.shape[1], self.mapped(z_BT.shape[1])
        z_BZ, logits_BZH = z_BT[:, self.own], bit_logits_BTH[:, self.own]
        r_BZD = self.post_sampler(z_BZ[:, :mapped], logits_BZH[:, :mapped])
        if mapped < z_BZ.shape[1]:
            r_BZD = torch.cat([r_BZD, self.post_sampler(z_BZ[:, mapped:])], dim=1)
        if self.every == "sequence":
            return r_BZD.expand(-1, length, -1)
        return r_BZD if self.every == 1 else r_BZD.repeat_interleave(self.every, dim=1)[:, :length]

    def mapped(self, length: int) -> int:
        """How many Zs of a row are inferred: all, or those of the window."""
        return len(range(min(self.window or length, length))[self.own])

    def prior(self, stream: np.random.Generator, length: int) -> np.ndarray:
        """Uniform codes [T] int64."""
        return self.agreed(stream.integers(0, 2**self.bits, length))

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """−H ln 2 for every token."""
        return torch.full(z.shape, -self.bits * LN2, device=z.device)

    def check_record(self, values: list[Any]) -> None:
        """Codes are whole numbers in [0, 2^H), the same where tokens share a Z."""
        if any(type(code) is not int for code in values):
            raise ValueError("a record needs a list of whole numbers named 'z'")
        wrong = next((code for code in values if not 0 <= code < 2**self.bits), None)
        if wrong is not None:
            raise ValueError(f"code {str(wrong)[:30]} is outside 0 … {2**self.bits - 1}: this model has {self.bits} bits of Z per token")
        self.check_shared(values)

    def numbers(self, z: Tensor) -> Tensor:
        """The bits of the codes as −1 and 1, [B, T, H]."""
        return signs(z, self.bits)

    def noise_shape(self, length: int) -> tuple[int, ...]:
        """[T, H]: a uniform number for every bit."""
        return length, self.bits

    def penalty(self, posterior: Distribution, kl_BT: Tensor, latent_mask_BT: Tensor, weights: ObjectiveWeights) -> Tensor:
        """The KL above the free bits (equation 5), and what `latent.objective` adds to it."""
        assert isinstance(posterior, BinaryDistribution)
        config = self.config.objective
        penalty = free_bits_penalty(kl_BT, latent_mask_BT, weights.kappa, config.free_bits, weights.slope)
        if config.has_mismatch:
            logits_BTH, mask_BT = posterior.bit_logits[:, : self.window], latent_mask_BT[:, : self.window]
            penalty = penalty + weights.mismatch * self.mismatch(logits_BTH, mask_BT, config.mismatch_over)
        return penalty * self.credited_share(len(kl_BT))

    def credited_share(self, sequences: int) -> float:
        """The share of sequences that give credit, which the penalty of all is weighed by: CE and KL weigh the same for the encoder."""
        return (sequences - sequences // 2) / sequences if self.training and self.config.objective.credit_from else 1.0

    def mismatch(self, bit_logits_BTH: Tensor, counted_BT: Tensor, over: Literal["sequence", "token"]) -> Tensor:
        """The divergence of the batch's aggregate posterior from the prior, for each of this process's sequences, nats []."""
        whole_BTH = self.all_rows(bit_logits_BTH.float())
        divergence = aggregate_mismatch(whole_BTH, self.all_rows(counted_BT), over)
        share = divergence.detach() * len(bit_logits_BTH)  # this process's part of a term that is summed over the batch
        gradient = (divergence - divergence.detach()) * len(whole_BTH)  # of the whole term: no other process computes it for these rows
        return share + gradient

    def initialise(self, draws: Draws) -> None:
        """Encoder as the decoder's blocks, ζ small, the table by `latent.table_init`."""
        initialise(self.encoder, self.encoder.layers, draws.within("encoder"))
        with torch.no_grad():
            draws.normal("encoder.zeta", self.encoder.zeta, ZETA_STD)
        self.post_sampler.initialise(self.config.table_init, self.config.table_std, draws.within("post_sampler"))

    def parts(self) -> dict[str, nn.Module]:
        return {"encoder (training only)": self.encoder, f"post-sampler table, {self.post_sampler.rows}": self.post_sampler}


@dataclass(frozen=True)
class BinaryDistribution(Distribution):
    """Independent bits with P(B_h = 1) = σ(L_h) at every position; Z is their code, [B, T] int64. bit_logits: L, [B, T, H].

    starts_BT: where tokens share a Z, the position that infers it.
    """

    bit_logits: Tensor
    starts_BT: Tensor | None = None

    def sample(self, noise: Tensor) -> Tensor:
        """Codes [B, T] from uniform noise [B, T, H]: bit h is set where noise < σ(L_h)."""
        return gather(sample_codes(self.bit_logits.detach(), noise), self.starts_BT)

    def kl(self) -> Tensor:
        return kl_per_token(self.bit_logits)

    def log_prob(self, z: Tensor) -> Tensor:
        """log Q(Z_t | S), nats per token [..., T]."""
        logits_BTH = at_least_float32(self.bit_logits)
        return (code_bits(z, logits_BTH.shape[-1]) * logits_BTH - F.softplus(logits_BTH)).sum(-1)

    def rows(self, index: Tensor) -> BinaryDistribution:
        return BinaryDistribution(self.bit_logits[index], None if self.starts_BT is None else self.starts_BT[index])

    def within(self, mask_BT: Tensor) -> BinaryDistribution:
        return replace(self, bit_logits=at_least_float32(self.bit_logits) * mask_BT[..., None])

    def log_prob_pairs(self, z: Tensor, at_once: int) -> Iterator[Tensor]:
        """log Q(Z_a | S_b) = Σ B_a L_b − Σ softplus(L_b), summed over the bits of all positions, for all a and b by one matrix product."""
        logits_BF = self.bit_logits.flatten(1).double()
        normaliser_B = F.softplus(logits_BF).sum(1)
        for part in torch.split(z, at_once):
            yield code_bits(part, self.bit_logits.shape[-1]).flatten(1).double() @ logits_BF.T - normaliser_B

    def units(self) -> Units:
        """The bits; their means are P(B_h = 1), float64."""
        return Units("bit", kl_per_token(self.bit_logits[..., None]), torch.sigmoid(self.bit_logits.double()))


@dataclass(frozen=True)
class ResidualInjection(Injection):
    """Keys and values of block `depth` come from x + r; queries and the residual stream from x (A2 line 14)."""

    r_BTD: Tensor
    depth: int

    def kv(self, index: int, x_BTD: Tensor) -> Tensor | None:
        return x_BTD + self.r_BTD if index == self.depth else None


class Encoder(nn.Module):
    """One non-causal block whose query and residual stream start at the learned vector ζ, then RMSNorm and H logits (A2 lines 7–8).

    ζ is the same at every position; the rotary embedding tells positions apart. It has softmax attention whatever the decoder has: other
    kinds mix the attention weights of neighbouring queries, and here all queries are ζ. With `own_blocks` it is the encoder of a classic
    conditional VAE (Figure 1b): a non-causal stack of its own over the token embeddings.
    """

    def __init__(self, config: ModelConfig, bits: int, own_blocks: int = 0) -> None:
        super().__init__()
        self.layers = config.layers
        self.zeta = nn.Parameter(torch.empty(config.width))
        self.block = Block(config)
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.to_bit_logits = nn.Linear(config.width, bits, bias=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(own_blocks))

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        """Bit logits [B, T, H] from a stream [B, T, D]."""
        for block in self.blocks:
            x_BTD = block(x_BTD, ctx)
        y_BTD = self.block(self.zeta[None, None].to(x_BTD.dtype), ctx, x_BTD)
        return self.to_bit_logits(self.norm(y_BTD))


def bit_logits(posterior: Distribution) -> Tensor:
    """Logits of the bits [B, T, H]; InputError for a latent that has no bits."""
    if not isinstance(posterior, BinaryDistribution):
        raise InputError("this measurement needs a latent of bits", hint="latent.kind = 'binary'")
    return posterior.bit_logits


def sample_codes(bit_logits_BTH: Tensor, noise_BTH: Tensor) -> Tensor:
    """Codes [B, T] (int64) whose bit h is set where noise < σ(L_h); noise is uniform in [0, 1)."""
    return code_of(noise_BTH < torch.sigmoid(bit_logits_BTH.to(noise_BTH.dtype)))


def kl_per_token(bit_logits_BTH: Tensor) -> Tensor:
    """KL(Q(Z_t | S) ‖ uniform) in nats, [B, T], in float32 or wider: H ln 2 − Σ_h entropy(σ(L_h)), equation 4 in closed form."""
    logits_BTH = at_least_float32(bit_logits_BTH)
    entropy_BTH = F.softplus(logits_BTH) - logits_BTH * torch.sigmoid(logits_BTH)
    return (LN2 - entropy_BTH).sum(-1)


class PostSampler(nn.Module):
    """The linear map from the one-hot code to r (A2 line 13; the paper's name): a table W [C, D] without bias."""

    def __init__(self, bits: int, width: int, gradient: Literal["paper", "heun"] = "paper", float8: bool = False) -> None:
        super().__init__()
        self.bits, self.gradient, self.float8 = bits, gradient, float8
        self.weight, self.rows = nn.Parameter(torch.empty(2**bits, width)), f"2^{bits} rows"

    def forward(self, codes_BT: Tensor, bit_logits_BTH: Tensor | None = None) -> Tensor:
        """r [B, T, D] of codes; with the logits that they were sampled from, the gradient of equation 8, or Heun's, flows to the logits."""
        r_BTD = F.embedding(codes_BT, self.weight)
        if bit_logits_BTH is None:
            return r_BTD
        drawn_BT = codes_BT if self.gradient == "heun" else None  # the codes are needed for Heun's estimate only
        return _MapperGradient.apply(r_BTD, bit_logits_BTH, self.weight, drawn_BT, self.float8)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def initialise(self, kind: Literal["bits", "independent"], std: float, draws: Draws) -> None:
        """Set W, entries with deviation `std`. "independent": every row is drawn. "bits": W_z = Σ_h ±a_h, the sign being bit h of z.

        With "bits" each bit means the same in every code at the start: what the decoder learns from one code holds for the others.
        """
        if kind == "independent":
            draws.normal("weight", self.weight, std)
            return
        directions_HD = bit_directions(self.bits, self.weight.shape[1], std, draws)
        fill(self.weight, lambda rows: signs(torch.arange(rows.start, rows.stop), self.bits) @ directions_HD)


class _MapperGradient(torch.autograd.Function):
    """The identity on r, whose backward gives the bit logits the gradient of Y + G − detach(G); with `drawn_BT`, Heun's estimate."""

    @staticmethod
    def forward(ctx, r_BTD: Tensor, bit_logits_BTH: Tensor, table_CD: Tensor, drawn_BT: Tensor | None, float8: bool) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(bit_logits_BTH, table_CD, drawn_BT)
        ctx.float8 = float8
        return r_BTD.view_as(r_BTD)

    @staticmethod
    def backward(ctx, dr_BTD: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        bit_logits_BTH, table_CD, drawn_BT = ctx.saved_tensors
        dr_ND, logits_NH = dr_BTD.reshape(-1, dr_BTD.shape[-1]), bit_logits_BTH.reshape(-1, bit_logits_BTH.shape[-1])
        dl_BTH = kernels.logit_gradient(dr_ND, logits_NH, table_CD, ctx.float8).view_as(bit_logits_BTH)
        if drawn_BT is not None:
            dl_BTH = dl_BTH / twice_drawn(drawn_BT, bit_logits_BTH).to(dl_BTH.dtype)
        return dr_BTD, dl_BTH, None, None, None


Kind = BinaryLatent  # what `latent.kind = "binary"` builds
