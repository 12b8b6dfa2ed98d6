"""The latent Z: binary mapper with its exact gradient, post-sampler, KL divergence and free bits (paper §3.3–3.4).

Z_t has H independent bits with P(B_h = 1) = sigmoid(L_h) (eq. 6); its code is the number whose bit h is B_h, and the mapper's
output Y is the one-hot vector of the code (eq. 7). The paper passes gradients by Y + G − detach(G) with G_d = P(code = d)
(eq. 8): forward the one-hot, backward the gradient of all C = 2^H probabilities. Here neither Y nor G is ever made, since
[tokens, C] tensors are gigabytes at H = 16; the same numbers come from

    forward    r = W[code]                                          one row of the post-sampler's table W [C, D]
    backward   s = W · dr                                           in chunks of tokens
               dL_h = Σ_d G_d (U_h(d) − p_h) s_d = Cov_G(U_h, s)    U_h(d): bit h of d

and G factorises over the low and the high half of the bits, so that the covariance of a token costs two products of s,
seen as a [2^(H − H/2), 2^(H/2)] matrix, with a vector.

That is exact for eq. 8, and eq. 8 is an estimate: it takes the loss for a straight line from the code drawn to every other one. A bit
that the decoder relies on lies where the loss is flat already, so that what the bit is worth is told much too low, and the more so the
surer the bit. `gradient = "heun"` divides dL_h by 2 P(B_h as drawn): in the mean over draws, the slope at the bit drawn becomes the
mean of the slopes at both its values, the trapezoid rule for the difference that the true gradient has (Liu et al., arXiv 2304.08612).
It is not the paper's.

Shapes: N tokens, B sequences, T positions, H bits, C codes, D width. KL is in nats.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli import kernels

LN2 = math.log(2.0)


def sample_codes(bit_logits_BTH: Tensor, noise_BTH: Tensor) -> Tensor:
    """Codes [B, T] (int64) of Z ~ Q(Z | S), from uniform noise in [0, 1): bit h is set where noise < sigmoid(logit)."""
    bits_BTH = noise_BTH < torch.sigmoid(bit_logits_BTH.to(noise_BTH.dtype))
    weights_H = 2 ** torch.arange(bits_BTH.shape[-1], device=bits_BTH.device)
    return (bits_BTH * weights_H).sum(-1)


def code_bits(codes: Tensor, bits: int) -> Tensor:
    """The bits of codes, [..., H] in {0, 1}, lowest first."""
    return (codes[..., None] >> torch.arange(bits, device=codes.device)) & 1


def kl_per_token(bit_logits_BTH: Tensor) -> Tensor:
    """KL(Q(Z_t | S) ‖ uniform) in nats, [B, T]: H ln 2 − Σ_h entropy(sigmoid(L_h)), eq. 4 in closed form."""
    entropy_BTH = F.softplus(bit_logits_BTH) - bit_logits_BTH * torch.sigmoid(bit_logits_BTH)
    return (LN2 - entropy_BTH).sum(-1)


def free_bits_penalty(
    kl_BT: Tensor, counted_BT: Tensor, kappa: float | Tensor, pool: Literal["token", "sequence"], slope: float | Tensor = 0.0
) -> Tensor:
    """The part of the KL above the threshold, and `slope` times the part below it, summed over the batch, in nats.

    kappa: nats per token. "token" is the paper's eq. 5, Σ_t max(0, KL_t − κ); "sequence" pools the same allowance over a
    sequence, max(0, Σ_t KL_t − κ·n), so that a rare event may pay for itself at one token. A slope above 0 is not the paper's: it
    presses out what costs KL and saves little.
    """
    kl_BT = kl_BT * counted_BT
    used, allowed = (kl_BT, kappa * counted_BT) if pool == "token" else (kl_BT.sum(-1), kappa * counted_BT.sum(-1))
    return (F.relu(used - allowed) + slope * torch.minimum(used, allowed)).sum()


def aggregate_mismatch(bit_logits_BTH: Tensor, counted_BT: Tensor, over: Literal["sequence", "token"] = "sequence") -> Tensor:
    """D₂(aggregate posterior ‖ uniform), in nats per sequence, estimated from a batch (0 of a single sequence).

    over: all bits of a sequence together, or those of each token by themselves and the sum over tokens, which asks nothing of how the
    codes of two tokens go together. Each token's estimate is held at 0 before the sum, so that chance adds to it: 65 tokens of k sure,
    even and independent bits, whose divergence is 0, come to 0.3, 0.5 and 1.5 nats for k = 1, 2 and 4 in a batch of 128.

    Over sequences, KL(Q(Z|S) ‖ P) = I(S; Z) + KL(Q(Z) ‖ P) with Q(Z) the mean of Q(Z|S): the second part tells nothing, and
    generation from the prior does not know it. Rényi's divergence of order 2, ln 2ⁿ Σ_z Q(z)², is no less than that KL, 0 where it is 0,
    and needs no sum over the 2ⁿ values of the n = T·H bits: with s_i = 2 p_i − 1, two sequences a and b have
    2ⁿ Σ_z Q(z|a) Q(z|b) = Π_i (1 + s_i^a s_i^b), and D₂ is the logarithm of its mean over pairs. So it sees single bits that are not
    balanced, bits that tell the same, and every dependence of more of them, at one token or across tokens.

    Pairs are of a sequence of the batch's first half and one of its second, never of a sequence with itself. Where Z tells more than
    ln(B²/4) nats, alike pairs are too rare to be seen and the estimate comes out below 0: then it is 0, and presses on nothing.
    Memory: some tensors of B²/4 · T · H numbers.
    """
    half = len(bit_logits_BTH) // 2
    if half == 0:
        return bit_logits_BTH.new_zeros(())  # one sequence says nothing: a rest of held-out rows
    signs_BTH = torch.tanh(bit_logits_BTH / 2) * counted_BT[..., None]
    products_bbTH = signs_BTH[:half, None] * signs_BTH[None, half : 2 * half]
    alike_bbT = torch.log1p(products_bbTH.clamp(min=-1 + 1e-6)).sum(-1)
    alike_bbK = alike_bbT if over == "token" else alike_bbT.sum(-1, keepdim=True)
    return F.relu(torch.logsumexp(alike_bbK.flatten(0, 1), 0) - 2 * math.log(half)).sum()


class PostSampler(nn.Module):
    """The linear map of the one-hot Z to R (Algorithm 2, line 13): a table W [C, D], no bias."""

    def __init__(self, bits: int, width: int, gradient: Literal["paper", "heun"] = "paper", float8: bool = False) -> None:
        super().__init__()
        self.bits, self.gradient, self.float8 = bits, gradient, float8
        self.weight = nn.Parameter(torch.empty(2**bits, width))

    def forward(self, codes_BT: Tensor, bit_logits_BTH: Tensor | None = None) -> Tensor:
        """R [B, T, D] for given codes; with the logits that they were drawn from, gradients flow to the logits too."""
        r_BTD = F.embedding(codes_BT, self.weight)
        if bit_logits_BTH is None:
            return r_BTD
        drawn_BT = codes_BT if self.gradient == "heun" else None
        return _MapperGradient.apply(r_BTD, bit_logits_BTH, self.weight, drawn_BT, self.float8)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def initialise(self, kind: Literal["bits", "independent"], std: float, generator: torch.Generator) -> None:
        """ "independent": every row by itself. "bits": W_z = Σ_h ±a_h with the sign of bit h of z, so that each bit means the
        same in every code and one visit to a row teaches all the others. Entries have deviation `std` either way."""
        codes, width = self.weight.shape
        if kind == "independent":
            self.weight.copy_(torch.randn(codes, width, generator=generator) * std)
            return
        directions_HD = torch.randn(self.bits, width, generator=generator) * std / self.bits**0.5
        signs_CH = 2.0 * code_bits(torch.arange(codes), self.bits) - 1.0
        self.weight.copy_(signs_CH @ directions_HD)


class _MapperGradient(torch.autograd.Function):
    """The identity on R; backward also gives the logits the gradient that Y + G − detach(G) would, or with the codes drawn, Heun's."""

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


def twice_drawn(codes_BT: Tensor, bit_logits_BTH: Tensor) -> Tensor:
    """2 P(B_h as drawn), [B, T, H]; at least 0.002, since what is left of dL_h's factor p (1 − p) there is rounding."""
    signs_BTH = 2.0 * code_bits(codes_BT, bit_logits_BTH.shape[-1]) - 1.0
    wide = torch.promote_types(bit_logits_BTH.dtype, torch.float32)
    return 2.0 * torch.sigmoid(signs_BTH * bit_logits_BTH.to(wide)).clamp(min=1e-3)
