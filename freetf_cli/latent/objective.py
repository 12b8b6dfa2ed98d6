"""What the objective adds to the cross-entropy: the KL above the free bits, and two additions that are not the paper's.

Shapes: B sequences, T positions, H bits. KL is in nats.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


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
