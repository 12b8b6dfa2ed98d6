"""Cross-entropy of a read-out whose logits are never all in memory.

32,768 tokens of a vocabulary of 131,072 have 17 GB of logits in float32, and their gradient as many. Here the logits of some tokens at
a time are made, the loss and its gradient taken, and both products of the gradient done before the next; what is kept for the backward
has the size of the stream and of the weight. They are the three products of any read-out, none of them twice.

PyTorch has `F.linear_cross_entropy` in chunks from 2.13 on: 2.11 lacks it, and torch.compile leaves it out of its graph.

Shapes: N tokens, n of them at a time, D width, V vocabulary.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_LOGITS = 1 << 28  # at once; of up to so many all are made, by PyTorch's own functions


def readout_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore: int) -> Tensor:
    """Σ −log softmax(W h)[target] over the targets that are not `ignore`, in nats; products in autocast's type where it is on."""
    if hidden_ND.shape[0] * weight_VD.shape[0] <= MOST_LOGITS or not torch.is_grad_enabled():
        return sum_of_parts(hidden_ND, weight_VD, targets_N, ignore)
    kind = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
    cost: Tensor = _InChunks.apply(hidden_ND, weight_VD, targets_N, ignore, dtype)  # type: ignore[no-untyped-call]
    return cost


def sum_of_parts(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore: int) -> Tensor:
    """The same by PyTorch's functions, whose backward wants all logits of a part; without a backward there may be many parts."""
    cost = hidden_ND.new_zeros((), dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
    for part in chunks(hidden_ND.shape[0], weight_VD.shape[0]):
        logits_nV = F.linear(hidden_ND[part], weight_VD).to(cost.dtype)
        cost = cost + F.cross_entropy(logits_nV, targets_N[part], ignore_index=ignore, reduction="sum")
    return cost


def chunks(tokens: int, vocabulary: int) -> list[slice]:
    """Parts of the tokens, as equal as can be, whose logits are not more than MOST_LOGITS (or those of one token)."""
    count = min(tokens, max(1, -(-tokens * vocabulary // MOST_LOGITS)))
    ends = [tokens * part // count for part in range(count + 1)] if count else []
    return [slice(*pair) for pair in pairwise(ends)]


class _InChunks(torch.autograd.Function):
    """The gradient is made in the forward, where the logits are; the backward scales it."""

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore: int, dtype: torch.dtype) -> Tensor:  # type: ignore[no-untyped-def]
        wide = torch.promote_types(dtype, torch.float32)
        codes_V = torch.arange(weight_VD.shape[0], device=weight_VD.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            w_VD = weight_VD.to(dtype)
            cost, dw_VD, dh_ND = hidden_ND.new_zeros((), dtype=wide), torch.zeros_like(weight_VD), []
            for part in chunks(hidden_ND.shape[0], weight_VD.shape[0]):
                h_nD, targets_n1 = hidden_ND[part].to(dtype), targets_N[part, None]
                counted_n1 = targets_n1 != ignore
                logits_nV = (h_nD @ w_VD.T).to(wide)
                lse_n1 = logits_nV.logsumexp(-1, keepdim=True)
                chosen_n1 = logits_nV.gather(-1, torch.where(counted_n1, targets_n1, 0))
                cost = cost + torch.where(counted_n1, lse_n1 - chosen_n1, 0.0).sum()
                d_nV = torch.exp(logits_nV - lse_n1) - (codes_V == targets_n1).to(wide)
                d_nV = torch.where(counted_n1, d_nV, 0.0).to(dtype)
                dh_ND.append(d_nV @ w_VD)
                dw_VD = dw_VD + (d_nV.T @ h_nD).to(dw_VD.dtype)
        ctx.save_for_backward(torch.cat(dh_ND).to(hidden_ND.dtype), dw_VD)
        return cost

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        dh_ND, dw_VD = ctx.saved_tensors
        return dh_ND * d.to(dh_ND.dtype), dw_VD * d.to(dw_VD.dtype), None, None, None
