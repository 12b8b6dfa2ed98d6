"""The mix of attention weights over the heads of a group (Talking-Heads, arXiv 2003.02436; Multi-Token Attention, arXiv 2504.00927).

    y[o] = Σ_h mix[g, o, h] · x[h]  within each group g

Shapes: B sequences, G groups of C heads, M = G · C heads, T queries, S keys.
"""

import torch
from torch import Tensor

from freetf_cli.kernels.support import operator, runs_kernels

MOST_MIXED = 64  # heads of a group that a tile has room for


def mix_heads(x_BMTS: Tensor, mix_GCC: Tensor, causal: bool) -> Tensor:
    """The mixed weights, [B, M, T, S].

    causal: T = S, and nobody reads y after each query (j > i), where the kernel then writes zeros.
    """
    if causal and mix_GCC.shape[1] <= MOST_MIXED and x_BMTS.dtype != torch.float64 and runs_kernels(x_BMTS.device):
        return causal_mix(x_BMTS, mix_GCC)
    return reference_mix(x_BMTS, mix_GCC)


def reference_mix(x_BMTS: Tensor, mix_GCC: Tensor) -> Tensor:
    groups, size, _ = mix_GCC.shape
    return (mix_GCC @ x_BMTS.reshape(len(x_BMTS), groups, size, -1)).view_as(x_BMTS)


@operator(lambda dy, x, mix: (x.new_empty(x.shape), mix.new_empty(mix.shape, dtype=torch.float32)))
def causal_mix_backward(dy_BMTS: Tensor, x_BMTS: Tensor, mix_GCC: Tensor) -> tuple[Tensor, Tensor]:
    from freetf_cli.kernels import head_mix_triton

    return head_mix_triton.mix_gradients(dy_BMTS, x_BMTS, mix_GCC)


@operator(lambda x, mix: x.new_empty(x.shape), backward=causal_mix_backward)
def causal_mix(x_BMTS: Tensor, mix_GCC: Tensor) -> Tensor:
    """tril(mix(tril(x))), in x's dtype, summed in float32."""
    from freetf_cli.kernels import head_mix_triton

    return head_mix_triton.mix(x_BMTS, mix_GCC)
