"""Grouped-query attention with rotary embedding, and its key/value cache.

Shapes: B sequences, T positions, S cached and new positions, D width, M query heads, K key/value heads, E head width.
The other kinds of attention: attention_kinds.py.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli.config.recipe import ModelConfig
from freetf_cli.kernels.support import runs_kernels_compiled
from freetf_cli.model.context import Context, LayerCache

Rotary = tuple[Tensor, Tensor]


def rotary_tables(positions_T: Tensor, head_width: int, base: float) -> Rotary:
    """cos and sin of every position's angles, [T, E/2] each, float32 (Su et al., arXiv 2104.09864)."""
    make = _opaque_tables if torch.compiler.is_compiling() else _tables
    return make(positions_T, head_width, base)


def _tables(positions_T: Tensor, head_width: int, base: float) -> Rotary:
    frequencies = base ** (-torch.arange(0, head_width, 2, device=positions_T.device, dtype=torch.float32) / head_width)
    angles = positions_T.to(torch.float32)[:, None] * frequencies[None, :]
    return angles.cos(), angles.sin()


@torch.library.custom_op("freetf::rotary_tables", mutates_args=())
def _opaque_tables(positions_T: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """`_tables` as an operator that torch.compile does not look into: it would put a cosine and a sine, which cost more than all the rest,
    into every kernel that turns a query or a key, for every element of it."""
    return _tables(positions_T, head_width, base)


@_opaque_tables.register_fake
def _(positions_T: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    table = positions_T.new_empty((len(positions_T), head_width // 2), dtype=torch.float32)
    return table, torch.empty_like(table)


@torch.library.custom_op("freetf::short_attention", mutates_args=())
def short_attention(packed_BTP: Tensor, q_BTF: Tensor | None, cos_TE: Tensor, sin_TE: Tensor, heads: int, causal: bool) -> Tensor:
    """Rotation and attention of short sequences in one kernel, [B, T, F] from projections to what the output product
    reads. packed: queries, keys and values side by side; keys and values alone where the queries come from another stream."""
    from freetf_cli.kernels.short_attention import attend

    with torch.cuda.device(packed_BTP.device):  # Triton launches on the current device
        return attend(_rows(packed_BTP), q_BTF, cos_TE, sin_TE, heads, causal)


@short_attention.register_fake
def _(packed_BTP: Tensor, q_BTF: Tensor | None, cos_TE: Tensor, sin_TE: Tensor, heads: int, causal: bool) -> Tensor:
    parts = 3 if q_BTF is None else 2
    return packed_BTP.new_empty(*packed_BTP.shape[:2], packed_BTP.shape[2] // parts)


@torch.library.custom_op("freetf::short_attention_backward", mutates_args=())
def _short_attention_backward(
    dy_BTF: Tensor, packed_BTP: Tensor, q_BTF: Tensor | None, cos_TE: Tensor, sin_TE: Tensor, heads: int, causal: bool
) -> tuple[Tensor, Tensor]:
    from freetf_cli.kernels.short_attention import attend_backward

    with torch.cuda.device(packed_BTP.device):
        dpacked_BTP, dq_BTF = attend_backward(_rows(dy_BTF), _rows(packed_BTP), q_BTF, cos_TE, sin_TE, heads, causal)
    return dpacked_BTP, dy_BTF.new_empty(0) if dq_BTF is None else dq_BTF


@_short_attention_backward.register_fake
def _(
    dy_BTF: Tensor, packed_BTP: Tensor, q_BTF: Tensor | None, cos_TE: Tensor, sin_TE: Tensor, heads: int, causal: bool
) -> tuple[Tensor, Tensor]:
    return packed_BTP.new_empty(packed_BTP.shape), dy_BTF.new_empty(0 if q_BTF is None else dy_BTF.shape)


def _keep_inputs(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.heads, ctx.causal = inputs
    ctx.apart = tensors[1] is not None
    ctx.save_for_backward(*tensors)


def _gradients(ctx, dy_BTF: Tensor):  # type: ignore[no-untyped-def]
    dpacked_BTP, dq_BTF = _short_attention_backward(dy_BTF, *ctx.saved_tensors, ctx.heads, ctx.causal)
    return dpacked_BTP, dq_BTF if ctx.apart else None, None, None, None, None


short_attention.register_autograd(_gradients, setup_context=_keep_inputs)


@torch.library.custom_op("freetf::pack_gradients", mutates_args=())
def _pack_gradients(parts_BTME: list[Tensor], cos_TE: Tensor, sin_TE: Tensor, turned: int) -> Tensor:
    """The gradient of projections side by side from those of their parts."""
    from freetf_cli.kernels.rotation import pack_gradients

    with torch.cuda.device(parts_BTME[0].device):
        return pack_gradients(parts_BTME, cos_TE, sin_TE, turned)


@_pack_gradients.register_fake
def _(parts_BTME: list[Tensor], cos_TE: Tensor, sin_TE: Tensor, turned: int) -> Tensor:
    first = parts_BTME[0]
    return first.new_empty(*first.shape[:2], sum(part.shape[2] for part in parts_BTME) * first.shape[3])


class _Parts(torch.autograd.Function):
    """`_parts` with that gradient."""

    @staticmethod
    def forward(ctx, packed_BTP: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: tuple[int, ...], turned: int) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(cos_TE, sin_TE)
        ctx.turned = turned
        return _parts(packed_BTP, (cos_TE, sin_TE), heads, turned)

    @staticmethod
    def backward(ctx, *d_BTME: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[no-untyped-def]
        return _pack_gradients(list(d_BTME), *ctx.saved_tensors, ctx.turned), None, None, None, None


def _parts(packed_BTP: Tensor, rotary: Rotary, heads: tuple[int, ...], turned: int) -> tuple[Tensor, ...]:
    """Parts of so many heads each of projections side by side, [B, T, M, E]; the first `turned` of them rotated."""
    x_BTME = packed_BTP.view(*packed_BTP.shape[:2], sum(heads), -1)
    return tuple(rotate(part, rotary) if place < turned else part for place, part in enumerate(torch.split(x_BTME, list(heads), dim=2)))


def _rows(x_BTF: Tensor) -> Tensor:
    """With rows whose numbers lie side by side."""
    return x_BTF if x_BTF.stride(-1) == 1 else x_BTF.contiguous()


def _product_type(x_BTD: Tensor) -> torch.dtype:
    """What type a product of x has."""
    kind = x_BTD.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_BTD.dtype


def project(x_BTD: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Several projections of one stream: `layer(x)` of each.

    Compiled it is one product with all their weights side by side, as a GPU takes as long to start a small product as to compute it.
    """
    if not _joins(*layers):
        return tuple(layer(x_BTD) for layer in layers)
    return torch.split(_joined(x_BTD, *layers), [layer.out_features for layer in layers], dim=-1)


def _joins(*layers: nn.Linear) -> bool:
    """Not for layers with a product of their own (`train.float8`)."""
    return torch.compiler.is_compiling() and _plain(*layers)


def _plain(*layers: nn.Linear) -> bool:
    return all(type(layer) is nn.Linear for layer in layers)


def _joined(x_BTD: Tensor, *layers: nn.Linear) -> Tensor:
    return F.linear(x_BTD, torch.cat([layer.weight for layer in layers]))


def rotate(x_BTME: Tensor, rotary: Rotary) -> Tensor:
    """Turn the pairs (e, e + E/2) of every head by the position's angles: (a, b) → (a cos − b sin, b cos + a sin).

    Written as one product of both halves and one of both exchanged: of two results that are joined torch.compile makes branches. Before
    heads and positions change places, so that it reads and writes in the order of memory.
    """
    cos_T1F, sin_T1F = (table.to(x_BTME.dtype)[..., None, :] for table in rotary)
    x_BTM2F = x_BTME.view(*x_BTME.shape[:-1], 2, -1)
    turned_BTM2F = x_BTM2F * cos_T1F[..., None, :] + x_BTM2F.flip(-2) * torch.stack((-sin_T1F, sin_T1F), dim=-2)
    return turned_BTM2F.flatten(-2)


class Attention(nn.Module):
    """Softmax attention with rotary embedding and grouped queries: softmax(Q Kᵀ / √E) V, then the output projection.

    Queries and keys/values may come from different streams. index: the block's place in the decoder; None in an encoder, which has
    no cache. Subclasses are the other kinds of attention: they override `attend`.
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

    def forward(self, q_BTD: Tensor, kv_BTD: Tensor, ctx: Context) -> Tensor:
        """Attend from q_BTD to kv_BTD and to cached positions; returns [B, T, D].

        A query [1, 1, D] is the same for all sequences and positions: it is projected once and rotated for each position.
        """
        if ctx.cache is None and ctx.mask is None and self._is_short(q_BTD, kv_BTD):
            return self.out(self._short(q_BTD, kv_BTD, ctx.rotary, ctx.causal))
        q_BMTE, k_BKSE, v_BKSE = (part.transpose(1, 2) for part in self._project(q_BTD, kv_BTD, ctx.rotary))
        q_BMTE = q_BMTE.expand(len(kv_BTD), -1, -1, -1)
        cache = ctx.layer(self.index)
        if cache is not None:
            k_BKSE, v_BKSE = cache.extend(k_BKSE, v_BKSE, ctx.start)
        y_BMTE = self.attend(q_BMTE, k_BKSE, v_BKSE, ctx, cache)
        return self.out(y_BMTE.transpose(1, 2).flatten(2))

    def attend(self, q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        """What each head returns, [B, M, T, E]. Keys and values are the cached ones and the new ones."""
        if ctx.is_static:
            assert ctx.mask is not None
            return attend_from_one(q_BMTE, k_BKSE, v_BKSE, ctx.mask)
        causal = ctx.causal and ctx.mask is None and q_BMTE.shape[2] == k_BKSE.shape[2]
        return F.scaled_dot_product_attention(
            q_BMTE, k_BKSE, v_BKSE, attn_mask=ctx.mask, is_causal=causal, enable_gqa=q_BMTE.shape[1] != k_BKSE.shape[1]
        )

    def new_cache(self, sequences: int, length: int, dtype: torch.dtype) -> LayerCache:
        """An empty cache for `length` positions."""
        shape = (sequences, self.key_heads, length, self.head_width)
        return LayerCache(*(torch.zeros(shape, device=self.k.weight.device, dtype=dtype) for _ in range(2)))

    def _project(self, q_BTD: Tensor, kv_BTD: Tensor, rotary: Rotary) -> tuple[Tensor, ...]:
        """Queries, keys and values by head, [B, T, heads, E]; queries and keys rotated."""
        m, k = self.heads, self.key_heads
        if not _joins(self.q, self.k, self.v):
            q_BTF, k_BTF, v_BTF = self.q(q_BTD), self.k(kv_BTD), self.v(kv_BTD)
            return rotate(self._heads(q_BTF), rotary), rotate(self._heads(k_BTF), rotary), self._heads(v_BTF)
        if q_BTD is kv_BTD:
            return self._split(_joined(kv_BTD, self.q, self.k, self.v), rotary, (m, k, k), turned=2)
        query = self._split(self.q(q_BTD), rotary, (m,), turned=1)
        return *query, *self._split(_joined(kv_BTD, self.k, self.v), rotary, (k, k), turned=1)

    def _split(self, packed_BTP: Tensor, rotary: Rotary, heads: tuple[int, ...], turned: int) -> tuple[Tensor, ...]:
        every_position = packed_BTP.shape[1] == len(rotary[0])  # not so the one query of all
        fits = self.head_width in (32, 64, 128, 256) and packed_BTP.dtype != torch.float64
        if every_position and fits and runs_kernels_compiled(packed_BTP.device):
            parts: tuple[Tensor, ...] = _Parts.apply(packed_BTP, *rotary, heads, turned)  # type: ignore[no-untyped-call]
            return parts
        return _parts(packed_BTP, rotary, heads, turned)

    def _is_short(self, q_BTD: Tensor, kv_BTD: Tensor) -> bool:
        """Whether the kernel for short sequences does it: products in bfloat16, all keys of a head in one tile."""
        fits = 2 <= kv_BTD.shape[1] <= 128 and self.head_width in (32, 64) and self.heads == self.key_heads
        fits = fits and self.softmax and _plain(self.q, self.k, self.v)
        return fits and _product_type(kv_BTD) == torch.bfloat16 and runs_kernels_compiled(kv_BTD.device)

    def _short(self, q_BTD: Tensor, kv_BTD: Tensor, rotary: Rotary, causal: bool) -> Tensor:
        if q_BTD is kv_BTD:
            return short_attention(_joined(kv_BTD, self.q, self.k, self.v), None, *rotary, self.heads, causal)
        q_BTF = self.q(q_BTD).expand(*kv_BTD.shape[:2], -1)
        return short_attention(_joined(kv_BTD, self.k, self.v), q_BTF, *rotary, self.heads, causal)

    def _heads(self, x_BTF: Tensor) -> Tensor:
        return x_BTF.view(*x_BTF.shape[:2], -1, self.head_width)


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
