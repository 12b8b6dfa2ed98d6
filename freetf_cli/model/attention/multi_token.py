"""Multi-Token Attention (Golovneva et al., arXiv 2504.00927): attention maps convolved over queries, keys and heads.

    S  = HeadMix_pre(KQConv_pre(Mask_0(L)))               L = Q Kᵀ / √E; equations 4 and 5
    A  = softmax(Mask_−∞(S))
    A' = HeadMix_post(Mask_0(KQConv_post(A)))             equation 6

Each of the four is optional, and the identity at first. KQConv: S_ij = Σ_{i'j'} θ_{i'j'} L_{i−i', j−j'} over the query and the c_q − 1
before it, and over c_k keys around j. Its first mask hides the keys after the query i − i' that scored them (`double`), or only those
after i (`exact`, equation 4).

Shapes: B sequences, T positions, S cached and new positions, M heads, C of a group, E head width, Q and W rows and columns of a kernel.

Numbers moved: for each KQConv a padded copy of the map (with the mask, one pass), one read and one write; its products are Q · W / 2E
of those of plain attention. On a GPU whose kernels are ours one read and one write (kernels/). `exact`, and documents kept apart,
take Q convolutions over keys, a pass for each row of the kernel. A block without a convolution whose groups are small
makes no map: mixed scores are those of queries and keys C times as wide, and what mixed maps read are sums of what each map reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli import kernels
from freetf_cli.config.recipe import ModelConfig, MultiTokenConfig
from freetf_cli.model.attention.head_norm import HeadNorm
from freetf_cli.model.attention.materialised import MapAttention, Rows, identity_mix
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.context import Context, LayerCache

WIDEST_HEAD = 256  # that fused kernels of attention take


@dataclass
class QueryCache(LayerCache):
    """With the last queries, turned, [B, M, Q_pre + Q_post − 2, E]: as many rows of the maps as the next one's weights come from."""

    q: Tensor

    def before(self, q_BMTE: Tensor) -> Tensor:
        """The queries that were cached before these, zeros where there was no position yet, and these, which are cached."""
        rows = torch.cat((self.q, q_BMTE), dim=2)
        self.q.copy_(rows[:, :, rows.shape[2] - self.q.shape[2] :])
        return rows


@dataclass
class RowCache(LayerCache):
    """With the last rows of what each side convolves, [B, M, Q − 1, length]: nothing is computed twice. What a row scored is final only
    where keys after its own query are hidden from it, as `double` has it."""

    rows: dict[str, Tensor]

    def above(self, side: str, x_BMTS: Tensor) -> Tensor:
        """The rows that were cached before these, and these, which are cached. New keys were hidden from the old rows: zero there."""
        cached, keys = self.rows[side], x_BMTS.shape[3]
        rows = torch.cat((cached[..., :keys].to(x_BMTS.dtype), x_BMTS), dim=2)
        cached[..., :keys] = rows[:, :, rows.shape[2] - cached.shape[2] :]
        return rows


class MapConvolution(nn.Module):
    """One side of the softmax: KQConv, then HeadMix, each if it is there; `full` makes them one kernel over queries, keys and heads."""

    def __init__(self, config: ModelConfig, options: MultiTokenConfig, side: str, index: int) -> None:
        super().__init__()
        group = options.c_h or config.heads
        convolves = options.kq in (side, "both") and config.convolves(index)
        mixes = options.mix in (side, "both")
        full = options.form == "full" and convolves and mixes
        self.above = options.c_q - 1 if convolves else 0  # rows that a row comes from, beside itself
        self.kernel = nn.Parameter(identity_kernel(config.heads, group if full else 1, options)) if convolves else None
        self.mix = identity_mix(config.heads, group) if mixes and not full else None

    def forward(self, x_BMRS: Tensor, rows: Rows, missing: int, late: bool) -> Tensor:
        """[B, M, T, S] out of x and the Q − 1 rows above it, the first `missing` of which are not given: zeros.

        late: x has numbers where its own rows may not look, and each of the T rows hides what it may not see itself.
        """
        if self.kernel is not None:
            x_BMRS = self._convolve(x_BMRS, self.kernel, rows, missing, late)
        return x_BMRS if self.mix is None else kernels.mix_heads(x_BMRS, self.mix, rows.whole)

    def _convolve(self, x_BMRS: Tensor, kernel_MCQW: Tensor, rows: Rows, missing: int, late: bool) -> Tensor:
        if rows.document_ids_BS is None and not late:
            return kernels.convolve_weights(x_BMRS, kernel_MCQW, missing, causal=rows.whole and missing == self.above)
        x_BMRS = F.pad(x_BMRS, (0, 0, missing, 0))

        def of_row(row: int) -> Tensor:
            part_BMTS = x_BMRS[:, :, row : row + len(rows.at_T)]
            if late:
                part_BMTS = part_BMTS.masked_fill(rows.hidden, 0)
            if rows.document_ids_BS is not None:  # no row of another document, whatever it scored there
                part_BMTS = part_BMTS.masked_fill(_another(rows.document_ids_BS, rows.at_T, self.above - row), 0)
            return kernels.convolve_weights(part_BMTS, kernel_MCQW[:, :, row : row + 1], missing=0, causal=False)

        return reduce(torch.add, map(of_row, range(self.above + 1)))


def _another(document_ids_BS: Tensor, at_T: Tensor, back: int) -> Tensor:
    """Whether the position so many back is in another document, [B, 1, T, 1]. Of those before the first nothing is read: zeros."""
    own_BT, earlier_BT = (document_ids_BS[:, (at_T - steps).clamp(min=0)] for steps in (0, back))
    return (own_BT != earlier_BT)[:, None, :, None]


def identity_kernel(heads: int, group: int, options: MultiTokenConfig) -> Tensor:
    """[M, 1 or C, Q, W], as conv2d takes it: θ_{i'j'} at [Q − 1 − i', ⌈W/2⌉ − 1 − j'], and θ_00 = 1 of each head for itself."""
    kernel = torch.zeros(heads, group, options.c_q, options.c_k)
    kernel[torch.arange(heads), torch.arange(heads) % group, -1, (options.c_k - 1) // 2] = 1
    return kernel


class MultiToken(MapAttention):
    """With the decoder's options; the key-query convolution only in the blocks that they name."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__(config, index)
        self.options = config.multi_token or MultiTokenConfig()
        self.pre, self.post = (MapConvolution(config, self.options, side, index) for side in ("pre", "post"))
        mode = self.options.norm
        self.norm = None if mode == "none" else HeadNorm(self.head_width, config.norm_eps, mode, index)

    @property
    def fuses(self) -> bool:
        """As `MapAttention.fuses`. Mixes on both sides or on none: fused kernels want keys and values of one width."""
        mixed = [side.mix is not None for side in (self.pre, self.post)]
        return (
            self.pre.kernel is None
            and self.post.kernel is None
            and all(mixed) == any(mixed)
            and self.spread * self.head_width <= WIDEST_HEAD
        )

    @property
    def spread(self) -> int:
        """As `MapAttention.spread`: as many as are mixed."""
        return 1 if self.pre.mix is None else self.pre.mix.shape[1]

    def attend(self, q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        """As `Attention.attend`. Of one query the maps are small, and wider keys would be written for each token."""
        if cache is not None or not self.fuses:
            return super().attend(q_BMTE, k_BKSE, v_BKSE, ctx, cache)
        if self.pre.mix is None or self.post.mix is None:
            return self.finish(Attention.attend(self, q_BMTE, k_BKSE, v_BKSE, ctx, cache))
        k_BMSF, v_BMSF = (side_by_side(x.repeat_interleave(self.heads // self.key_heads, dim=1), self.spread) for x in (k_BKSE, v_BKSE))
        q_BMTF = wide_queries(q_BMTE, self.pre.mix * self.spread**0.5)  # Σ_h w[o, h] q^h · k^h, and √E of what is C times as wide
        return self.finish(gathered(Attention.attend(self, q_BMTF, k_BMSF, v_BMSF, ctx, cache), self.post.mix))

    def weights(self, scores_BMTS: Tensor, rows: Rows, cache: LayerCache | None) -> Tensor:
        """A' of the equations above: its rows need not sum to 1."""
        exact = self.options.mask == "exact"
        if self.pre.kernel is not None and not exact:
            scores_BMTS = scores_BMTS.masked_fill(rows.hidden, 0)
        scores_BMTS, missing = self._above("pre", scores_BMTS, cache)
        mixed_BMTS = self.pre(scores_BMTS, rows, missing, late=exact)
        weights_BMTS = torch.softmax(mixed_BMTS.masked_fill(rows.hidden, -torch.inf), dim=-1).to(mixed_BMTS.dtype)  # float32 under autocast
        if isinstance(cache, QueryCache):  # rows before the first position, which see no key at all
            weights_BMTS = weights_BMTS.masked_fill(rows.hidden, 0)
        weights_BMTS, missing = self._above("post", weights_BMTS, cache)
        weights_BMTS = self.post(weights_BMTS, rows, missing, late=False)
        return weights_BMTS if self.post.kernel is None else weights_BMTS.masked_fill(rows.hidden, 0)

    def finish(self, y_BMTE: Tensor) -> Tensor:
        return y_BMTE if self.norm is None else self.norm(y_BMTE)

    def _above(self, side: str, x_BMTS: Tensor, cache: LayerCache | None) -> tuple[Tensor, int]:
        """x with the rows above it where they are cached, and how many are missing."""
        if isinstance(cache, RowCache):
            return cache.above(side, x_BMTS), 0
        return x_BMTS, self._heights[side]

    @property
    def _heights(self) -> dict[str, int]:
        """The rows above that each side reads."""
        return {"pre": self.pre.above, "post": self.post.above}

    def queries(self, q_BMTE: Tensor, cache: LayerCache) -> Tensor:
        return cache.before(q_BMTE) if isinstance(cache, QueryCache) else q_BMTE

    def new_cache(self, sequences: int, length: int, dtype: torch.dtype) -> LayerCache:
        """With what earlier positions give to the next one's row, where a convolution reads them."""
        cache, heights = super().new_cache(sequences, length, dtype), self._heights
        if not any(heights.values()):
            return cache
        if self.options.cache == "rows":
            rows = {side: cache.k.new_zeros(sequences, self.heads, height, length) for side, height in heights.items()}
            return RowCache(cache.k, cache.v, rows)
        return QueryCache(cache.k, cache.v, cache.k.new_zeros(sequences, self.heads, sum(heights.values()), self.head_width))


def wide_queries(q_BMTE: Tensor, mix_GCC: Tensor) -> Tensor:
    """w[o, h] q^h of all heads h of o's group side by side, [B, M, T, C · E]."""
    groups, size, _ = mix_GCC.shape
    q_BG1CTE = q_BMTE.reshape(len(q_BMTE), groups, 1, size, *q_BMTE.shape[2:])
    return (mix_GCC.to(q_BMTE.dtype)[..., None, None] * q_BG1CTE).transpose(3, 4).flatten(4).flatten(1, 2)


def side_by_side(x_BMSE: Tensor, size: int) -> Tensor:
    """What each group of C heads has, side by side, for all of them: [B, M, S, C · E]."""
    x_BGCSE = x_BMSE.reshape(len(x_BMSE), -1, size, *x_BMSE.shape[2:])
    return x_BGCSE.transpose(2, 3).flatten(3).repeat_interleave(size, dim=1)


def gathered(y_BMTF: Tensor, mix_GCC: Tensor) -> Tensor:
    """Σ_h w[o, h] y^h, of y the part that head h has read of o's values: [B, M, T, E]."""
    groups, size, _ = mix_GCC.shape
    y_BGCTCE = y_BMTF.reshape(len(y_BMTF), groups, size, y_BMTF.shape[2], size, -1)
    return (mix_GCC.to(y_BMTF.dtype)[..., None, None] * y_BGCTCE.permute(0, 1, 4, 2, 3, 5)).sum(dim=3).flatten(1, 2)
