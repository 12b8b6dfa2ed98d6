"""Cross-entropy of a linear layer's logits without all logits in memory.

    Σ_i −log softmax(W h_i)[target_i]

32,768 tokens and a vocabulary of 131,072 have 17 GB of logits in float32, and as much gradient. Here the forward computes, chunk of
tokens by chunk, the logits, the loss, its gradient, and the gradient's two products. These are the three products of any output layer;
none is done twice. What is kept for the backward has the size of the stream and of the weight.

`F.linear_cross_entropy` does so from torch 2.13 on, but torch 2.11 lacks it, and torch.compile leaves its chunks out of the graph.

Shapes: N tokens, n tokens of a chunk, D width, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.kernels.support import product_dtype, runs_kernels

# Logits of a chunk. Every chunk reads and writes the whole gradient of the weight: 1 ms a chunk for 131,072 × 1536 on an H200.
MOST_LOGITS = {"cpu": 1 << 28, "cuda": 1 << 30}
FEW_LOGITS = {"cpu": 1 << 28, "cuda": 1 << 24}  # up to so many, PyTorch's own functions compute all at once


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore: int) -> Tensor:
    """The sum over the targets that are not `ignore`, in nats []; products in autocast's dtype where it is on."""
    kind = hidden_ND.device.type
    few = hidden_ND.shape[0] * weight_VD.shape[0] <= FEW_LOGITS.get(kind, FEW_LOGITS["cpu"])
    if few or not torch.is_grad_enabled():
        return reference_cross_entropy(hidden_ND, weight_VD, targets_N, ignore)
    cost: Tensor = _InChunks.apply(hidden_ND, weight_VD, targets_N, ignore, product_dtype(hidden_ND))  # type: ignore[no-untyped-call]
    return cost


def reference_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore: int) -> Tensor:
    """The same by PyTorch's functions. Its backward needs all logits; without a backward, one chunk is in memory."""
    cost = hidden_ND.new_zeros((), dtype=torch.promote_types(hidden_ND.dtype, torch.float32))
    for h_nD, targets_n in _chunks(hidden_ND, weight_VD, targets_N):
        logits_nV = F.linear(h_nD, weight_VD).to(cost.dtype)
        cost = cost + F.cross_entropy(logits_nV, targets_n, ignore_index=ignore, reduction="sum")
    return cost


def most_logits(device_type: str) -> int:
    """Logits in memory at once."""
    return MOST_LOGITS.get(device_type, MOST_LOGITS["cpu"])


def _chunks(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of the stream and the targets of nearly equal length, each with at most `most_logits` logits, or of one token."""
    tokens = len(hidden_ND)
    count = max(1, min(tokens, -(-tokens * len(weight_VD) // most_logits(hidden_ND.device.type))))
    return zip(hidden_ND.tensor_split(count), targets_N.tensor_split(count), strict=True)


class _InChunks(torch.autograd.Function):
    """Computes the gradient in the forward, where the logits are; the backward scales it."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore: int, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            w_VD = weight_VD.to(dtype)
            cost, dw_VD, dh_ND = hidden_ND.new_zeros((), dtype=wide), torch.zeros_like(weight_VD), []
            for h_nD, targets_n in _chunks(hidden_ND, weight_VD, targets_N):
                h_nD = h_nD.to(dtype)
                part_cost, d_nV = _with_gradient(h_nD @ w_VD.T, targets_n, ignore)
                cost = cost + part_cost
                dh_ND.append(d_nV @ w_VD)
                dw_VD = dw_VD + (d_nV.T @ h_nD).to(dw_VD.dtype)
        ctx.save_for_backward(torch.cat(dh_ND).to(hidden_ND.dtype), dw_VD)
        return cost

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        dh_ND, dw_VD = ctx.saved_tensors
        return dh_ND * d.to(dh_ND.dtype), dw_VD * d.to(dw_VD.dtype), None, None, None


def _with_gradient(logits_nV: Tensor, targets_n: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    """`reference_with_gradient`, by the kernel where it runs. The logits may be overwritten."""
    if logits_nV.dtype == torch.bfloat16 and runs_kernels(logits_nV.device):
        from freetf_cli.kernels.cross_entropy_triton import cross_entropy_in_place

        return cross_entropy_in_place(logits_nV, targets_n, ignore).sum(), logits_nV
    return reference_with_gradient(logits_nV, targets_n, ignore)


def reference_with_gradient(logits_nV: Tensor, targets_n: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    """Σ −log softmax(logits)[target] in nats, at least in float32, and its gradient [n, V] in the logits' dtype."""
    wide = torch.promote_types(logits_nV.dtype, torch.float32)
    counted_n1 = (targets_n != ignore)[:, None]
    x_nV = logits_nV.to(wide)
    lse_n1 = x_nV.logsumexp(-1, keepdim=True)
    chosen_n1 = x_nV.gather(-1, torch.where(counted_n1, targets_n[:, None], 0))
    cost = torch.where(counted_n1, lse_n1 - chosen_n1, 0.0).sum()
    tokens_V = torch.arange(x_nV.shape[1], device=x_nV.device)
    d_nV = torch.exp(x_nV - lse_n1) - (tokens_V == targets_n[:, None]).to(wide)
    return cost, torch.where(counted_n1, d_nV, 0.0).to(logits_nV.dtype)
