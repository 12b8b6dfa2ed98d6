"""Grouped-query attention with rotary embedding, and its key/value cache.

Shapes: B sequences, T positions, S cached and new positions, D width, M query heads, K key/value heads, E head width.
The other kinds of attention are in the files beside this one; registry.py lists them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from freetf_cli import kernels
from freetf_cli.config.recipe import ModelConfig
from freetf_cli.kernels import Rotary
from freetf_cli.model.context import Context, LayerCache, Memory


class Attention(nn.Module):
    """Softmax attention with rotary embedding and grouped queries: softmax(Q Kᵀ / √E) V, then the output projection.

    Queries and keys/values may come from different streams. index: the block's place in the decoder; None in an encoder, which has
    no cache. Subclasses are the other kinds of attention: they override `attend` and what it costs.
    """

    softmax: ClassVar[bool] = True  # whether the kernels of softmax attention compute it

    def __init__(self, config: ModelConfig, index: int | None = None) -> None:
        super().__init__()
        self.index = index
        self.heads, self.key_heads, self.head_width = config.heads, config.key_heads, config.head_width
        self.q = nn.Linear(config.width, self.heads * self.head_width, bias=False)
        self.k = nn.Linear(config.width, self.key_heads * self.head_width, bias=False)
        self.v = nn.Linear(config.width, self.key_heads * self.head_width, bias=False)
        self.out = nn.Linear(self.heads * self.head_width, config.width, bias=False)

    def forward(self, q_BTD: Tensor, kv_BTD: Tensor, ctx: Context, memory: Memory | None = None) -> Tensor:
        """Attend from q_BTD to kv_BTD, to cached positions, and to a memory, which the context's mask includes; returns [B, T, D].

        A query [1, 1, D] is the same for all sequences and positions: it is projected once and rotated for each position.
        """
        if self._is_short(kv_BTD, ctx):
            return self.out(self._short(q_BTD, kv_BTD, ctx.rotary, ctx.causal))
        q_BMTE, k_BKSE, v_BKSE = (part.transpose(1, 2) for part in self._project(q_BTD, kv_BTD, ctx.rotary))
        q_BMTE = q_BMTE.expand(len(kv_BTD), -1, -1, -1)
        cache = ctx.layer(self.index)
        if cache is not None:
            k_BKSE, v_BKSE = cache.extend(k_BKSE, v_BKSE, ctx.start)
        if memory is not None:
            k_BKSE = torch.cat((memory.k.to(k_BKSE.dtype), k_BKSE), 2)
            v_BKSE = torch.cat((memory.v.to(v_BKSE.dtype), v_BKSE), 2)
        y_BMTE = self.attend(q_BMTE, k_BKSE, v_BKSE, ctx, cache)
        return self.out(y_BMTE.transpose(1, 2).flatten(2))

    def attend(self, q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        """What each head returns, [B, M, T, E], by the library's kernels. Keys and values are the cached ones and the new ones."""
        if ctx.is_static:
            assert ctx.mask is not None
            return attend_from_one(q_BMTE, k_BKSE, v_BKSE, ctx.mask)
        grouped = q_BMTE.shape[1] != k_BKSE.shape[1]
        if ctx.block_mask is not None:
            return flex_attention(q_BMTE, k_BKSE, v_BKSE, block_mask=ctx.block_mask, enable_gqa=grouped)
        causal = ctx.causal and ctx.mask is None and q_BMTE.shape[2] == k_BKSE.shape[2]
        return F.scaled_dot_product_attention(q_BMTE, k_BKSE, v_BKSE, attn_mask=ctx.mask, is_causal=causal, enable_gqa=grouped)

    @property
    def materialises(self) -> bool:
        """Whether training materialises the attention weights, which activation checkpointing can then recompute."""
        return False

    def flops(self, context: int, causal: bool = True) -> float:
        """FLOPs per token of scores and weighted values. A causal position sees half the context on average."""
        return 4.0 * self.heads * self.head_width * (context / 2 if causal else context)

    def kept_bytes(self, rows: int, context: int, size: int, documents: bool) -> float:
        """Bytes that a batch of `rows` keeps for the backward beside queries, keys, values and output.

        size: bytes of an activation. documents: whether rows hold several documents, masked from each other.
        """
        return 0.0

    def new_cache(self, sequences: int, length: int, dtype: torch.dtype) -> LayerCache:
        """An empty cache for `length` positions."""
        shape = (sequences, self.key_heads, length, self.head_width)
        return LayerCache(*(torch.zeros(shape, device=self.k.weight.device, dtype=dtype) for _ in range(2)))

    def _project(self, q_BTD: Tensor, kv_BTD: Tensor, rotary: Rotary) -> tuple[Tensor, ...]:
        """Queries, keys and values by head, [B, T, heads, E]; queries and keys rotated."""
        m, k = self.heads, self.key_heads
        if not kernels.packs(self.q, self.k, self.v):
            flat = self.q(q_BTD), self.k(kv_BTD), self.v(kv_BTD)
            q_BTME, k_BTKE, v_BTKE = (part.unflatten(-1, (-1, self.head_width)) for part in flat)
            return kernels.rotate(q_BTME, rotary), kernels.rotate(k_BTKE, rotary), v_BTKE
        if q_BTD is kv_BTD:
            return kernels.rotate_and_split(kernels.project_packed(kv_BTD, self.q, self.k, self.v), rotary, (m, k, k), rotated=2)
        query = kernels.rotate_and_split(self.q(q_BTD), rotary, (m,), rotated=1)
        return *query, *kernels.rotate_and_split(kernels.project_packed(kv_BTD, self.k, self.v), rotary, (k, k), rotated=1)

    def _is_short(self, kv_BTD: Tensor, ctx: Context) -> bool:
        """Whether `kernels.short_attention` computes it: softmax attention of whole rows, as many key heads as query heads."""
        whole = ctx.cache is None and ctx.mask is None and self.softmax and self.heads == self.key_heads
        return whole and kernels.are_plain(self.q, self.k, self.v) and kernels.takes_short_attention(kv_BTD, self.head_width)

    def _short(self, q_BTD: Tensor, kv_BTD: Tensor, rotary: Rotary, causal: bool) -> Tensor:
        if q_BTD is kv_BTD:
            return kernels.short_attention(kernels.project_packed(kv_BTD, self.q, self.k, self.v), None, rotary, self.heads, causal)
        q_BTF = self.q(q_BTD).expand(*kv_BTD.shape[:2], -1)
        return kernels.short_attention(kernels.project_packed(kv_BTD, self.k, self.v), q_BTF, rotary, self.heads, causal)


def attend_from_one(q_BM1E: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention of one query a sequence to the keys that `mask` [1, S] or [B, 1, 1, S] allows, [B, M, 1, E].

    Two matrix products; SDPA with a mask has no fast kernel for one query with grouped keys.
    """
    batch, heads, _, width = k_BKSE.shape
    q_BKGE = q_BM1E.reshape(batch, heads, -1, width)
    wide = torch.promote_types(q_BKGE.dtype, torch.float32)
    scores_BKGS = (q_BKGE @ k_BKSE.mT).to(wide) * width**-0.5
    weights_BKGS = torch.softmax(scores_BKGS.masked_fill(~mask, -torch.inf), dim=-1)
    return (weights_BKGS.to(v_BKSE.dtype) @ v_BKSE).reshape(*q_BM1E.shape[:3], -1)
