"""What the objective adds to the cross-entropy: the KL above the free bits, and two additions that are not the paper's.

Shapes: B sequences, T positions, H bits. KL is in nats.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.model.loss import IGNORE


def free_bits_penalty(
    kl_BT: Tensor, counted_BT: Tensor, kappa: float | Tensor, pool: Literal["token", "sequence"], slope: float | Tensor = 0.0
) -> Tensor:
    """The KL above the free bits, plus `slope` times the KL below them, summed over the batch, nats [].

    kl_BT: nats per token. counted_BT: 1 where Z can reach a target. kappa: nats per token. pool "token" is equation 5 of the paper,
    Σ_t max(0, KL_t − κ); "sequence" pools the allowance over a sequence, max(0, Σ_t KL_t − κ n), so that one token may spend what
    the others do not use. A slope above 0 is not the paper's: it removes KL that saves little cross-entropy.
    """
    kl_BT = kl_BT * counted_BT
    used, allowed = (kl_BT, kappa * counted_BT) if pool == "token" else (kl_BT.sum(-1), kappa * counted_BT.sum(-1))
    return (F.relu(used - allowed) + slope * torch.minimum(used, allowed)).sum()


def aggregate_mismatch(bit_logits_BTH: Tensor, counted_BT: Tensor, over: Literal["sequence", "token"] = "sequence") -> Tensor:
    """Rényi divergence D₂ of the aggregate posterior from the uniform prior, estimated from a batch, nats per sequence []. Not the paper's.

    Averaged over sequences, KL(Q(Z|S) ‖ P) = I(S; Z) + KL(Q(Z) ‖ P), where Q(Z) is the mean of Q(Z|S). The second term carries no
    information about S, and samples from the prior do not reproduce it. D₂ = ln 2ⁿ Σ_z Q(z)² bounds that term from above, is 0 where
    it is 0, and needs no sum over the 2ⁿ values of the n = T · H bits: with s_i = 2 p_i − 1, two sequences a and b give
    2ⁿ Σ_z Q(z|a) Q(z|b) = Π_i (1 + s_i^a s_i^b), and D₂ is the logarithm of the mean over pairs. It therefore sees unbalanced bits,
    redundant bits, and any dependence among more bits, within a token or across tokens.

    over: "sequence", all bits of a sequence together; "token", each token's bits alone, summed over tokens, which ignores dependence
    across tokens. Each token's estimate is clamped at 0 before the sum, so chance adds to it: 65 tokens of k certain, balanced and
    independent bits (divergence 0) give 0.3, 0.5 and 1.5 nats for k = 1, 2 and 4 in a batch of 128.

    Pairs join the first half of the batch with the second; a batch of one sequence gives 0. Where Z carries more than ln(B²/4) nats,
    pairs that agree are too rare to be seen: the estimate is negative, is clamped to 0, and has no effect. Memory: a few tensors of
    B²/4 · T · H numbers.
    """
    half = len(bit_logits_BTH) // 2
    if half == 0:
        return bit_logits_BTH.new_zeros(())  # the last batch of held-out rows may hold one sequence
    signs_BTH = torch.tanh(bit_logits_BTH / 2) * counted_BT[..., None]
    products_bbTH = signs_BTH[:half, None] * signs_BTH[None, half : 2 * half]
    alike_bbT = torch.log1p(products_bbTH.clamp(min=-1 + 1e-6)).sum(-1)
    alike_bbK = alike_bbT if over == "token" else alike_bbT.sum(-1, keepdim=True)
    return F.relu(torch.logsumexp(alike_bbK.flatten(0, 1), 0) - 2 * math.log(half)).sum()


def without_early_targets(targets_BT: Tensor, half: int, credit_from: int) -> Tensor:
    """The targets, without those before `credit_from` in the sequences from number `half` on. Not the paper's.

    A bit about the next words saves as much as one about what lasts, and is found sooner, so that it takes the budget. If the encoder
    learns from later targets alone, it has no reason to tell it. The decoder must learn from all targets, so it has the other sequences.
    """
    early_T = torch.arange(targets_BT.shape[1], device=targets_BT.device) < credit_from
    later_B = torch.arange(len(targets_BT), device=targets_BT.device) >= half
    return targets_BT.masked_fill(later_B[:, None] & early_T, IGNORE)
