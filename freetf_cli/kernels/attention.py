"""Rotary attention over short sequences, from the packed projections to the input of the output projection.

    y = softmax(rotate(q) · rotate(k)ᵀ / √E) · v

Shapes: B sequences, T positions, M heads, E head width, F = M · E, P = 3 F or 2 F.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.kernels.rotary import Rotary, rotate
from freetf_cli.kernels.support import product_dtype, runs_kernels


def takes_short_attention(x_BTD: Tensor, head_width: int) -> bool:
    """Whether the kernel can attend over the positions of x: products are in bfloat16, and one tile holds all keys of a head."""
    return 2 <= x_BTD.shape[1] <= 128 and head_width in (32, 64) and product_dtype(x_BTD) == torch.bfloat16 and runs_kernels(x_BTD.device)


def short_attention(packed_BTP: Tensor, q_BTF: Tensor | None, rotary: Rotary, heads: int, causal: bool) -> Tensor:
    """Self-attention of each sequence by the kernel, [B, T, F]. Call it only where `takes_short_attention` holds.

    packed_BTP: queries, keys and values side by side (P = 3 F), or keys and values only (P = 2 F) where the queries q_BTF come from
    another stream.
    """
    from freetf_cli.kernels.attention_triton import attend

    return attend(packed_BTP, q_BTF, *rotary, heads, causal)


def reference_short_attention(packed_BTP: Tensor, q_BTF: Tensor | None, rotary: Rotary, heads: int, causal: bool) -> Tensor:
    parts = packed_BTP.chunk(3, -1) if q_BTF is None else (q_BTF, *packed_BTP.chunk(2, -1))
    q_BTME, k_BTME, v_BTME = (part.reshape(*part.shape[:2], heads, -1) for part in parts)
    q_BMTE, k_BMTE, v_BMTE = (part.transpose(1, 2) for part in (rotate(q_BTME, rotary), rotate(k_BTME, rotary), v_BTME))
    return F.scaled_dot_product_attention(q_BMTE, k_BMTE, v_BMTE, is_causal=causal).transpose(1, 2).flatten(2)
