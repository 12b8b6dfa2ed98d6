"""The convolution of attention weights over queries and keys (Multi-Token Attention, arXiv 2504.00927).

    y[i, j] = Σ_{a, b} kernel[a, b] · x[i − (Q − 1) + a, j − left + b],  left = (W − 1) // 2

Shapes: B sequences, M heads, C heads of a group, T queries, R = T + Q − 1 − missing rows of x, S keys; Q rows, W columns of a kernel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.kernels.support import runs_kernels

WIDEST = 33  # rows and columns of a kernel: the Triton kernel's tiles hold no more, and it unrolls the rows
MOST_MAPS = 1 << 16  # B · M, at most: the limit of a CUDA grid


def convolve_weights(x_BMRS: Tensor, kernel_MCQW: Tensor, missing: int, causal: bool) -> Tensor:
    """The convolution of all heads, [B, M, T, S]; a head's kernel reads the C heads of its group.

    missing: how many of the Q − 1 rows above the first query x lacks. They are zeros, as is everything beside the first and last key.
    causal: T = S, all rows above are missing, x is 0 after each query (j > i), and nobody reads y there.
    """
    high, wide = kernel_MCQW.shape[2:]
    fits = causal and kernel_MCQW.shape[1] == 1 and max(high, wide) <= WIDEST and x_BMRS.shape[:2].numel() < MOST_MAPS
    if fits and x_BMRS.dtype != torch.float64 and runs_kernels(x_BMRS.device):
        from freetf_cli.kernels.convolution_triton import causal_convolution

        return causal_convolution(x_BMRS.flatten(0, 1), kernel_MCQW[:, 0]).view_as(x_BMRS)
    return reference_convolution(x_BMRS, kernel_MCQW, missing)


def reference_convolution(x_BMRS: Tensor, kernel_MCQW: Tensor, missing: int) -> Tensor:
    wide, groups = kernel_MCQW.shape[3], len(kernel_MCQW) // kernel_MCQW.shape[1]
    return F.conv2d(F.pad(x_BMRS, ((wide - 1) // 2, wide // 2, missing, 0)), kernel_MCQW, groups=groups)
