"""The mix of attention weights over the heads of a group (Talking-Heads, arXiv 2003.02436; Multi-Token Attention, arXiv 2504.00927).

    y[o] = Σ_h mix[g, o, h] · x[h]  within each group g

Shapes: B sequences, G groups of C heads, M = G · C heads, T queries, S keys.
"""

import torch
from torch import Tensor

from freetf_cli.kernels.support import runs_kernels

MOST_MIXED = 64  # heads of a group, at most, that a tile holds


def mix_heads(x_BMTS: Tensor, mix_GCC: Tensor, causal: bool) -> Tensor:
    """The mixed weights, [B, M, T, S].

    causal: T = S, and nobody reads y after each query (j > i), where the kernel writes zeros.
    """
    if causal and mix_GCC.shape[1] <= MOST_MIXED and x_BMTS.dtype != torch.float64 and runs_kernels(x_BMTS.device):
        from freetf_cli.kernels.head_mix_triton import causal_mix

        return causal_mix(x_BMTS, mix_GCC)
    return reference_mix(x_BMTS, mix_GCC)


def reference_mix(x_BMTS: Tensor, mix_GCC: Tensor) -> Tensor:
    groups, size, _ = mix_GCC.shape
    return (mix_GCC @ x_BMTS.reshape(len(x_BMTS), groups, size, -1)).view_as(x_BMTS)
