"""Sliding-window attention (Longformer, Beltagy et al., arXiv 2004.05150): each query attends to the last WINDOW keys only.

    softmax(Q Kᵀ / √E + M) V,   M_ij = 0 for i − WINDOW < j ≤ i, else −∞

Shapes: B sequences, T positions, S cached and new positions, M query heads, K key/value heads, E head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.context import Context, LayerCache

WINDOW = 8  # positions, the query's own among them


class SlidingWindow(Attention):
    """Softmax attention with a mask of its own; it has the parameters of softmax attention."""

    softmax = False  # the kernels of softmax attention do not know this mask

    def attend(self, q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        """What each head returns, [B, M, T, E]."""
        key_S = torch.arange(ctx.keys, device=q_BMTE.device)
        near_TS = key_S > ctx.positions_T[:, None] - WINDOW
        mask = ctx.visible(ctx.positions_T) & near_TS
        grouped = q_BMTE.shape[1] != k_BKSE.shape[1]
        return F.scaled_dot_product_attention(q_BMTE, k_BKSE, v_BKSE, attn_mask=mask, enable_gqa=grouped)
