"""Multi-Token Attention (Golovneva et al., arXiv 2504.00927): attention weights convolved over queries, keys and heads.

    S  = HeadMix_pre(KQConv_pre(Mask_0(L)))               L = Q Kᵀ / √E; equations 4 and 5
    A  = softmax(Mask_−∞(S))
    A' = HeadMix_post(Mask_0(KQConv_post(A)))             equation 6

Each of the four operators is optional and starts as the identity, unless `init` chooses other kernels for an ablation.

    KQConv: S_ij = Σ_{i'j'} θ_{i'j'} L_{i−i', j−j'}       i' = 0 … c_q − 1 queries back, j' over c_k keys around j

Its first mask hides the keys after the query i − i' that scored them (`mask = "double"`), or only those after i ("exact", equation 4).

Bytes: a KQConv reads and writes the attention weights once where our kernel runs, else it writes a padded copy too. "exact" and masked
documents need one pass for each row of the kernel. A block that mixes small groups of heads and has no convolution materialises
nothing: mixed scores are the scores of queries and keys C times as wide, and mixed weights read sums of what each head reads.

Shapes: B sequences, T positions, S cached and new positions, R = T and earlier rows, M heads, C heads in a group, E head width,
F = C · E, Q and W rows and columns of a convolution kernel, G groups of heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli import kernels
from freetf_cli.config.recipe import ModelConfig, MultiTokenConfig
from freetf_cli.model.attention.head_norm import HeadNorm
from freetf_cli.model.attention.materialised import MaterialisedAttention, identity_mix
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.context import Context, LayerCache
from freetf_cli.model.weights import Draws

CONSTANT = 0.3  # the constant that the paper's ablation starts kernels from
WIDEST_HEAD = 256  # the widest head that fused attention kernels take


@dataclass
class QueryCache(LayerCache):
    """A cache that also keeps the last rotated queries, q [B, M, Q_pre + Q_post − 2, E], to recompute their rows of attention weights.

    Before the first position they are zeros.
    """

    q: Tensor

    def branch(self) -> QueryCache:
        return replace(self, q=self.q.clone())


@dataclass
class RowCache(LayerCache):
    """A cache that also keeps the last rows that each side convolves, rows[side] [B, M, Q − 1, S], so that nothing is recomputed.

    Old rows do not see new keys: they are 0 there. This needs `mask = "double"`: with "exact" an old row would score new keys.
    """

    rows: dict[str, Tensor]

    def branch(self) -> RowCache:
        return replace(self, rows={side: rows.clone() for side, rows in self.rows.items()})


def with_cached(cached_BMQX: Tensor, x_BMTX: Tensor) -> Tensor:
    """The cached rows followed by the new ones. Caches the last rows of the result for the next step."""
    rows = torch.cat((cached_BMQX.to(x_BMTX.dtype), x_BMTX), dim=2)
    cached_BMQX.copy_(rows[:, :, rows.shape[2] - cached_BMQX.shape[2] :])
    return rows


class Operators(nn.Module):
    """KQConv and HeadMix on one side of the softmax, each if it is configured; `form = "full"` joins them in one kernel.

    earlier: how many earlier rows a row is computed from. exact: the rows of x are not masked yet, and each row of the result hides
    what it must not see itself.
    """

    def __init__(self, config: ModelConfig, options: MultiTokenConfig, side: str, index: int) -> None:
        super().__init__()
        group = options.c_h or config.heads
        convolves = options.kq in (side, "both") and config.convolves(index)
        mixes = options.mix in (side, "both")
        full = options.form == "full" and convolves and mixes
        self.side, self.exact = side, options.mask == "exact" and side == "pre"
        self.earlier = options.c_q - 1 if convolves else 0
        self.kernel = nn.Parameter(first_kernel(config.heads, group if full else 1, options)) if convolves else None
        self.random = options.init == "random"
        self.mix = identity_mix(config.heads, group) if mixes and not full else None

    def initialise(self, draws: Draws) -> None:
        """Draw the kernel with deviation (C c_q c_k)^-1/2 if `init` is random; C is 1 unless the kernel mixes heads too."""
        if self.random and self.kernel is not None:
            draws.normal("kernel", self.kernel, self.kernel[0].numel() ** -0.5)

    def forward(self, x_BMTS: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        """[B, M, T, S] from scores or attention weights x, and the earlier rows that a RowCache holds; others are zeros."""
        if self.kernel is not None:
            x_BMTS = self._convolve(x_BMTS, self.kernel, ctx, cache)
        return x_BMTS if self.mix is None else kernels.mix_heads(x_BMTS, self.mix, ctx.is_square)

    def _convolve(self, x_BMRS: Tensor, kernel_MCQW: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        missing = self.earlier
        if isinstance(cache, RowCache):
            x_BMRS, missing = with_cached(cache.rows[self.side][..., : x_BMRS.shape[3]], x_BMRS), 0
        if ctx.document_ids_BS is None and not self.exact:
            return kernels.convolve_weights(x_BMRS, kernel_MCQW, missing, causal=ctx.is_square and missing == self.earlier)
        x_BMRS, hidden = F.pad(x_BMRS, (0, 0, missing, 0)), ctx.hidden

        def from_row(row: int) -> Tensor:
            """The share of kernel row `row`."""
            part_BMTS = x_BMRS[:, :, row : row + len(ctx.positions_T)]
            if self.exact:
                part_BMTS = part_BMTS.masked_fill(hidden, 0)
            if ctx.document_ids_BS is not None:  # rows of another document do not contribute, whatever they scored there
                other_B1T1 = _other_document(ctx.document_ids_BS, ctx.positions_T, self.earlier - row)
                part_BMTS = part_BMTS.masked_fill(other_B1T1, 0)
            return kernels.convolve_weights(part_BMTS, kernel_MCQW[:, :, row : row + 1], missing=0, causal=False)

        return reduce(torch.add, map(from_row, range(self.earlier + 1)))


def _other_document(document_ids_BS: Tensor, positions_T: Tensor, back: int) -> Tensor:
    """Whether the position `back` steps before each position is in another document, [B, 1, T, 1]. Rows before the first are zeros."""
    own_BT, earlier_BT = (document_ids_BS[:, (positions_T - steps).clamp(min=0)] for steps in (0, back))
    return (own_BT != earlier_BT)[:, None, :, None]


def first_kernel(heads: int, group: int, options: MultiTokenConfig) -> Tensor:
    """The first values of a kernel [M, 1 or C, Q, W] for conv2d, which has θ_{i'j'} at [Q − 1 − i', ⌈W/2⌉ − 1 − j'].

    A random kernel starts as the identity too, until `Operators.initialise` draws it.
    """
    kernel = torch.full((heads, group, options.c_q, options.c_k), CONSTANT if options.init == "constant" else 0.0)
    if options.init in ("zero", "constant"):
        return kernel
    kernel[torch.arange(heads), torch.arange(heads) % group, -1, (options.c_k - 1) // 2] = 1
    return kernel


class MultiToken(MaterialisedAttention):
    """Attention with the operators of `model.multi_token`; the convolution only in the blocks that `kq_layers` names."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__(config, index)
        self.options = config.multi_token or MultiTokenConfig()
        self.pre, self.post = (Operators(config, self.options, side, index) for side in ("pre", "post"))
        mode = self.options.norm
        self.norm = None if mode == "none" else HeadNorm(self.head_width, config.norm_eps, mode, index)

    @property
    def materialises(self) -> bool:
        """A fused kernel can compute it if nothing convolves and keys are as wide as values: with mixes on both sides or on none."""
        convolves = self.pre.kernel is not None or self.post.kernel is not None
        one_mix = (self.pre.mix is None) != (self.post.mix is None)
        return convolves or one_mix or self.fused_heads * self.head_width > WIDEST_HEAD

    @property
    def fused_heads(self) -> int:
        """The heads of a group, which the fused kernel takes side by side as one."""
        return 1 if self.pre.mix is None else self.pre.mix.shape[1]

    def flops(self, context: int, causal: bool = True) -> float:
        return super().flops(context, causal) if self.materialises else self.fused_heads * Attention.flops(self, context, causal)

    def kept_bytes(self, rows: int, context: int, size: int, documents: bool) -> float:
        """Of fused mixes: queries, keys, values and output of a group's heads side by side."""
        if self.materialises:
            return super().kept_bytes(rows, context, size, documents)
        copies = 4 * self.fused_heads if self.fused_heads > 1 else 0
        return float(size * rows * context * self.heads * self.head_width * copies)

    def operator_inputs(self, documents: bool) -> int:
        """A convolution that is applied row by row, with `mask = "exact"` and between documents, keeps a copy for each row too."""
        by_row = [side.kernel for side in (self.pre, self.post) if documents or side.exact]
        return super().operator_inputs(documents) + sum(kernel.shape[2] for kernel in by_row if kernel is not None)

    def attend(self, q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        """What each head returns, [B, M, T, E]. Generation materialises: of one query the weights are small, and wide keys are not."""
        if cache is not None or self.materialises:
            return super().attend(q_BMTE, k_BKSE, v_BKSE, ctx, cache)
        if self.pre.mix is None or self.post.mix is None:
            return self.norm_heads(Attention.attend(self, q_BMTE, k_BKSE, v_BKSE, ctx, cache))
        k_BMSF, v_BMSF = (
            side_by_side(x.repeat_interleave(self.heads // self.key_heads, dim=1), self.fused_heads) for x in (k_BKSE, v_BKSE)
        )
        q_BMTF = wide_queries(q_BMTE, self.pre.mix * self.fused_heads**0.5)  # SDPA divides by √(C · E) instead of √E
        return self.norm_heads(gathered(Attention.attend(self, q_BMTF, k_BMSF, v_BMSF, ctx, cache), self.post.mix))

    def weights(self, scores_BMTS: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        """A' of the equations above; its rows need not sum to 1."""
        hidden = ctx.hidden
        if self.pre.kernel is not None and not self.pre.exact:
            scores_BMTS = scores_BMTS.masked_fill(hidden, 0)
        mixed_BMTS = self.pre(scores_BMTS, ctx, cache)
        weights_BMTS = torch.softmax(mixed_BMTS.masked_fill(hidden, -torch.inf), dim=-1).to(mixed_BMTS.dtype)  # float32 under autocast
        if isinstance(cache, QueryCache):  # rows before the first position see no key: softmax made NaN of them
            weights_BMTS = weights_BMTS.masked_fill(hidden, 0)
        weights_BMTS = self.post(weights_BMTS, ctx, cache)
        return weights_BMTS if self.post.kernel is None else weights_BMTS.masked_fill(hidden, 0)

    def norm_heads(self, y_BMTE: Tensor) -> Tensor:
        return y_BMTE if self.norm is None else self.norm(y_BMTE)

    def queries(self, q_BMTE: Tensor, cache: LayerCache) -> Tensor:
        return with_cached(cache.q, q_BMTE) if isinstance(cache, QueryCache) else q_BMTE

    def new_cache(self, sequences: int, length: int, dtype: torch.dtype) -> LayerCache:
        """A cache with what a convolution reads of earlier positions: their queries or their rows (`cache`)."""
        cache, sides = super().new_cache(sequences, length, dtype), (self.pre, self.post)
        earlier = sum(side.earlier for side in sides)
        if not earlier:
            return cache
        if self.options.cache == "rows":
            rows = {side.side: cache.k.new_zeros(sequences, self.heads, side.earlier, length) for side in sides}
            return RowCache(cache.k, cache.v, rows)
        return QueryCache(cache.k, cache.v, cache.k.new_zeros(sequences, self.heads, earlier, self.head_width))


def wide_queries(q_BMTE: Tensor, mix_GCC: Tensor) -> Tensor:
    """w[o, h] q^h of all heads h in the group of head o, side by side: [B, M, T, F]."""
    groups, size, _ = mix_GCC.shape
    q_BG1CTE = q_BMTE.reshape(len(q_BMTE), groups, 1, size, *q_BMTE.shape[2:])
    return (mix_GCC.to(q_BMTE.dtype)[..., None, None] * q_BG1CTE).transpose(3, 4).flatten(4).flatten(1, 2)


def side_by_side(x_BMSE: Tensor, size: int) -> Tensor:
    """The keys or values of a group's heads side by side, for each of its heads: [B, M, S, F]."""
    x_BGCSE = x_BMSE.reshape(len(x_BMSE), -1, size, *x_BMSE.shape[2:])
    return x_BGCSE.transpose(2, 3).flatten(3).repeat_interleave(size, dim=1)


def gathered(y_BMTF: Tensor, mix_GCC: Tensor) -> Tensor:
    """Σ_h w[o, h] y^h for each head o, where y^h is what head h read of o's values: [B, M, T, E]."""
    groups, size, _ = mix_GCC.shape
    y_BGCTCE = y_BMTF.reshape(len(y_BMTF), groups, size, y_BMTF.shape[2], size, -1)
    return (mix_GCC.to(y_BMTF.dtype)[..., None, None] * y_BGCTCE.permute(0, 1, 4, 2, 3, 5)).sum(dim=3).flatten(1, 2)
