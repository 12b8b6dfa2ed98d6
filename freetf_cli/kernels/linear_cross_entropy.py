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

from freetf_cli.kernels.support import runs_kernels_compiled

# In memory together. Every part of the tokens reads and writes the whole gradient of the weight, 1 ms a part for 131,072 × 1536 on an
# H200: few parts where there is memory for them.
MOST_LOGITS = {"cpu": 1 << 28, "cuda": 1 << 30}
FEW_LOGITS = {"cpu": 1 << 28, "cuda": 1 << 24}  # of up to so many PyTorch's own functions make all


def readout_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore: int) -> Tensor:
    """Σ −log softmax(W h)[target] over the targets that are not `ignore`, in nats; products in autocast's type where it is on."""
    kind = hidden_ND.device.type
    few = hidden_ND.shape[0] * weight_VD.shape[0] <= FEW_LOGITS.get(kind, FEW_LOGITS["cpu"])
    if few or not torch.is_grad_enabled():
        return sum_of_parts(hidden_ND, weight_VD, targets_N, ignore)
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
    cost: Tensor = _InChunks.apply(hidden_ND, weight_VD, targets_N, ignore, dtype)  # type: ignore[no-untyped-call]
    return cost


def sum_of_parts(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore: int) -> Tensor:
    """The same by PyTorch's functions, whose backward wants all logits of a part; without a backward there may be many parts."""
    cost = hidden_ND.new_zeros((), dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
    for part in chunks(hidden_ND.shape[0], weight_VD.shape[0], most_logits(hidden_ND.device.type)):
        logits_nV = F.linear(hidden_ND[part], weight_VD).to(cost.dtype)
        cost = cost + F.cross_entropy(logits_nV, targets_N[part], ignore_index=ignore, reduction="sum")
    return cost


def most_logits(device_type: str) -> int:
    """How many logits are in memory together."""
    return MOST_LOGITS.get(device_type, MOST_LOGITS["cpu"])


def chunks(tokens: int, vocabulary: int, most: int) -> list[slice]:
    """Parts of the tokens, as equal as can be, that have at most `most` logits (or those of one token)."""
    count = min(tokens, max(1, -(-tokens * vocabulary // most)))
    ends = [tokens * part // count for part in range(count + 1)] if count else []
    return [slice(*pair) for pair in pairwise(ends)]


def cross_entropy_with_gradient(logits_nV: Tensor, targets_n: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    """Σ −log softmax(logits)[target] in nats, at least in float32, and its gradient [n, V] in the logits' type."""
    wide = torch.promote_types(logits_nV.dtype, torch.float32)
    counted_n1 = (targets_n != ignore)[:, None]
    x_nV = logits_nV.to(wide)
    lse_n1 = x_nV.logsumexp(-1, keepdim=True)
    chosen_n1 = x_nV.gather(-1, torch.where(counted_n1, targets_n[:, None], 0))
    cost = torch.where(counted_n1, lse_n1 - chosen_n1, 0.0).sum()
    codes_V = torch.arange(x_nV.shape[1], device=x_nV.device)
    d_nV = torch.exp(x_nV - lse_n1) - (codes_V == targets_n[:, None]).to(wide)
    return cost, torch.where(counted_n1, d_nV, 0.0).to(logits_nV.dtype)


@torch.library.custom_op("freetf::cross_entropy_in_place", mutates_args=("logits_nV",))
def _in_place(logits_nV: Tensor, targets_n: Tensor, ignore: int) -> Tensor:
    """The costs [n]; the logits become the gradient (kernels/cross_entropy.py)."""
    from freetf_cli.kernels.cross_entropy import cross_entropy_in_place

    with torch.cuda.device(logits_nV.device):  # Triton launches on the current device
        return cross_entropy_in_place(logits_nV, targets_n, ignore)


@_in_place.register_fake
def _(logits_nV: Tensor, targets_n: Tensor, ignore: int) -> Tensor:
    return logits_nV.new_empty(logits_nV.shape[0], dtype=torch.float32)


class _InChunks(torch.autograd.Function):
    """The gradient is made in the forward, where the logits are; the backward scales it."""

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore: int, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        in_place = dtype == torch.bfloat16 and runs_kernels_compiled(hidden_ND.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            w_VD = weight_VD.to(dtype)
            cost, dw_VD, dh_ND = hidden_ND.new_zeros((), dtype=wide), torch.zeros_like(weight_VD), []
            for part in chunks(hidden_ND.shape[0], weight_VD.shape[0], most_logits(hidden_ND.device.type)):
                h_nD = hidden_ND[part].to(dtype)
                d_nV = h_nD @ w_VD.T
                if in_place:
                    part_cost = _in_place(d_nV, targets_N[part], ignore).sum()
                else:
                    part_cost, d_nV = cross_entropy_with_gradient(d_nV, targets_N[part], ignore)
                cost = cost + part_cost
                dh_ND.append(d_nV @ w_VD)
                dw_VD = dw_VD + (d_nV.T @ h_nD).to(dw_VD.dtype)
        ctx.save_for_backward(torch.cat(dh_ND).to(hidden_ND.dtype), dw_VD)
        return cost

    @staticmethod
    def backward(ctx, d: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        dh_ND, dw_VD = ctx.saved_tensors
        return dh_ND * d.to(dh_ND.dtype), dw_VD * d.to(dw_VD.dtype), None, None, None
