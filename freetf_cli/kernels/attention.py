"""Rotary attention over short sequences, from the projections to what the output product reads.

    y = softmax(rotate(q) · rotate(k)ᵀ / √E) · v

Shapes: B sequences, T positions, M heads, E head width, F = M · E, P = 3 F or 2 F.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.kernels.rotary import Rotary, rotate
from freetf_cli.kernels.support import operator, product_dtype, runs_kernels


def takes_short_attention(x_BTD: Tensor, head_width: int) -> bool:
    """Whether the kernel computes attention over the positions of x: products are in bfloat16, and one tile holds all keys of a head."""
    return 2 <= x_BTD.shape[1] <= 128 and head_width in (32, 64) and product_dtype(x_BTD) == torch.bfloat16 and runs_kernels(x_BTD.device)


def reference_short_attention(packed_BTP: Tensor, q_BTF: Tensor | None, rotary: Rotary, heads: int, causal: bool) -> Tensor:
    parts = packed_BTP.chunk(3, -1) if q_BTF is None else (q_BTF, *packed_BTP.chunk(2, -1))
    q_BTME, k_BTME, v_BTME = (part.reshape(*part.shape[:2], heads, -1) for part in parts)
    q_BMTE, k_BMTE, v_BMTE = (part.transpose(1, 2) for part in (rotate(q_BTME, rotary), rotate(k_BTME, rotary), v_BTME))
    return F.scaled_dot_product_attention(q_BMTE, k_BMTE, v_BMTE, is_causal=causal).transpose(1, 2).flatten(2)


def short_attention(packed_BTP: Tensor, q_BTF: Tensor | None, rotary: Rotary, heads: int, causal: bool) -> Tensor:
    """Attention of each sequence to itself, [B, T, F], by the kernel: `takes_short_attention` says where it runs.

    packed_BTP: queries, keys and values side by side, P = 3 F. Keys and values alone, P = 2 F, where the queries q_BTF come from another
    stream.
    """
    return _short_attention(packed_BTP, q_BTF, *rotary, heads, causal)


def _fake_gradients(
    dy_BTF: Tensor, packed_BTP: Tensor, q_BTF: Tensor | None, cos_TE: Tensor, sin_TE: Tensor, heads: int, causal: bool
) -> tuple[Tensor, Tensor]:
    return packed_BTP.new_empty(packed_BTP.shape), dy_BTF.new_empty(0 if q_BTF is None else dy_BTF.shape)


@operator(_fake_gradients)
def _short_attention_backward(
    dy_BTF: Tensor, packed_BTP: Tensor, q_BTF: Tensor | None, cos_TE: Tensor, sin_TE: Tensor, heads: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of packed and q; an operator returns no None, so that q's is empty where there is no q."""
    from freetf_cli.kernels.attention_triton import attend_backward

    dpacked_BTP, dq_BTF = attend_backward(_with_dense_rows(dy_BTF), _with_dense_rows(packed_BTP), q_BTF, cos_TE, sin_TE, heads, causal)
    return dpacked_BTP, dy_BTF.new_empty(0) if dq_BTF is None else dq_BTF


def _fake_output(packed_BTP: Tensor, q_BTF: Tensor | None, cos_TE: Tensor, sin_TE: Tensor, heads: int, causal: bool) -> Tensor:
    return packed_BTP.new_empty(*packed_BTP.shape[:2], packed_BTP.shape[2] // (3 if q_BTF is None else 2))


@operator(_fake_output, backward=_short_attention_backward)
def _short_attention(packed_BTP: Tensor, q_BTF: Tensor | None, cos_TE: Tensor, sin_TE: Tensor, heads: int, causal: bool) -> Tensor:
    from freetf_cli.kernels.attention_triton import attend

    return attend(_with_dense_rows(packed_BTP), q_BTF, cos_TE, sin_TE, heads, causal)


def _with_dense_rows(x_BTF: Tensor) -> Tensor:
    """x, copied if the numbers of a row do not lie side by side."""
    return x_BTF if x_BTF.stride(-1) == 1 else x_BTF.contiguous()
