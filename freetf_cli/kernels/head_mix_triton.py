"""The causal mix of attention weights over heads and its gradients, in Triton.

    y = tril(mix · tril(x)),  dx = tril(mixᵀ · tril(dy)),  dmix = Σ_{i ≥ j} dy[:, i, j] · x[:, i, j]ᵀ

A tile has a row for each head of a group, for as many queries as fill the 16 rows of a matrix product, which multiplies it by the mix,
repeated along a block diagonal. The mix reads and writes x once; both gradients together read twice and write once.

Why: a library's batched product of a small mix with millions of cells takes several times as long as reading and writing them. All mixes
of `paper-880m-multi-token` take 37 ms of a step of 266 at T = 2,048 on an H200 (docs/multi-token-attention.md, "ms by kernel").

x is float32 or of 16 bits, sums are float32.

Shapes: B sequences, M heads in G groups of C (at most 64), T queries and T keys; R rows of a tile, H of them for one query.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from freetf_cli.kernels.support import operator

PROGRAMS = 8 * 132  # of the gradients' kernel, each with a sum of its own: enough to fill an H100 or H200


@operator(lambda dy, x, mix: (x.new_empty(x.shape), mix.new_empty(mix.shape, dtype=torch.float32)))
def causal_mix_backward(dy_BMTS: Tensor, x_BMTS: Tensor, mix_GCC: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x, [B, M, T, T], and of the mix, [G, C, C] float32."""
    dy_BMTS, x_BMTS = dy_BMTS.contiguous(), x_BMTS.contiguous()
    dx_BMTS, length, (groups, heads, _) = torch.empty_like(x_BMTS), x_BMTS.shape[2], mix_GCC.shape
    rows, of_query, keys = _tile(x_BMTS, heads)
    strips = len(x_BMTS) * triton.cdiv(length, rows // of_query)
    programs = min(strips, triton.cdiv(PROGRAMS, groups))
    parts_GPRR = mix_GCC.new_empty(groups, programs, rows, rows, dtype=torch.float32)
    sizes = strips, length, heads, rows, of_query, keys
    _mix_gradients[(programs, groups)](dy_BMTS, x_BMTS, mix_GCC.contiguous(), dx_BMTS, parts_GPRR, *sizes)
    blocks_GQHQH = parts_GPRR.sum(1).view(groups, rows // of_query, of_query, rows // of_query, of_query)
    return dx_BMTS, blocks_GQHQH.diagonal(dim1=1, dim2=3).sum(-1)[:, :heads, :heads].contiguous()


@operator(lambda x, mix: x.new_empty(x.shape), backward=causal_mix_backward)
def causal_mix(x_BMTS: Tensor, mix_GCC: Tensor) -> Tensor:
    """y [B, M, T, T], in x's dtype."""
    x_BMTS, out_BMTS = x_BMTS.contiguous(), torch.empty_like(x_BMTS, memory_format=torch.contiguous_format)
    length, (groups, heads, _) = x_BMTS.shape[2], mix_GCC.shape
    rows, of_query, keys = _tile(x_BMTS, heads)
    tiles = len(x_BMTS) * groups * triton.cdiv(length, rows // of_query) * triton.cdiv(length, keys)
    _mix[(tiles,)](x_BMTS, mix_GCC.contiguous(), out_BMTS, groups, length, heads, rows, of_query, keys)
    return out_BMTS


def _tile(x_BMTS: Tensor, heads: int) -> tuple[int, int, int]:
    """Rows, rows of one query, and keys of a tile: at least 256 bytes of a head side by side. Fewer in float32, for the registers."""
    of_query = triton.next_power_of_2(heads)
    rows = max(16, of_query)
    return rows, of_query, 64 if x_BMTS.dtype == torch.float32 else 8192 // rows


@triton.jit
def _block_diagonal(mix_CC, C: tl.constexpr, R: tl.constexpr, H: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The mix, or its transpose, once for each query of a tile, [R, R]."""
    o, h = tl.arange(0, R)[:, None], tl.arange(0, R)[None, :]
    inside = (o // H == h // H) & (o % H < C) & (h % H < C)
    return tl.load(mix_CC + (h % H * C + o % H if TRANSPOSED else o % H * C + h % H), mask=inside, other=0.0)


@triton.jit
def _cells(x_CTS, i, h, j, T, C: tl.constexpr):
    """x[h, i, j], 0 outside and after the query; masked as in `convolution_triton._cells`."""
    inside = ((h < C) & (i < T))[:, None] & (j < T)[None, :] & (j[None, :] // 16 <= i[:, None] // 16)
    x_RN = tl.load(x_CTS + ((h.to(tl.int64) * T + i) * T)[:, None] + j[None, :], mask=inside, other=0.0)
    return tl.where(j[None, :] <= i[:, None], x_RN, 0.0)


@triton.jit
def _store_cells(out_CTS, y_RN, i, h, j, T, C: tl.constexpr):
    inside = ((h < C) & (i < T))[:, None] & (j < T)[None, :]
    tl.store(out_CTS + ((h.to(tl.int64) * T + i) * T)[:, None] + j[None, :], y_RN.to(out_CTS.dtype.element_ty), mask=inside)


@triton.jit
def _mix(x_BMTS, mix_GCC, out_BMTS, G, T, C: tl.constexpr, R: tl.constexpr, H: tl.constexpr, BN: tl.constexpr):
    """One tile of y."""
    tiles, strips = tl.cdiv(T, BN), tl.cdiv(T, R // H)
    strip, r = tl.program_id(0) // tiles, tl.arange(0, R)
    n = strip // strips
    i, h = strip % strips * (R // H) + r // H, r % H
    j0 = tl.program_id(0) % tiles * BN
    j = j0 + tl.arange(0, BN)
    at = n.to(tl.int64) * C * T * T
    sum_RN = tl.zeros((R, BN), tl.float32)
    if j0 < strip % strips * (R // H) + R // H:
        x_RN = _cells(x_BMTS + at, i, h, j, T, C)
        mix_RR = _block_diagonal(mix_GCC + n % G * C * C, C, R, H, False).to(x_RN.dtype)
        sum_RN = tl.dot(mix_RR, x_RN, input_precision="ieee")
    _store_cells(out_BMTS + at, sum_RN, i, h, j, T, C)


@triton.jit
def _mix_gradients(
    dy_BMTS, x_BMTS, mix_GCC, dx_BMTS, parts_GPRR,
    strips, T, C: tl.constexpr, R: tl.constexpr, H: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dx of every P-th strip of queries of one group, and these strips' part of dmix."""
    p, g, r = tl.program_id(0), tl.program_id(1), tl.arange(0, R)
    mix_RR = _block_diagonal(mix_GCC + g * C * C, C, R, H, True).to(dy_BMTS.dtype.element_ty)
    sum_RR = tl.zeros((R, R), tl.float32)
    in_map = tl.cdiv(T, R // H)
    strip = p
    while strip < strips:
        i0 = strip % in_map * (R // H)
        i, h = i0 + r // H, r % H
        at = (strip // in_map * tl.num_programs(1) + g).to(tl.int64) * C * T * T
        j0 = 0
        while j0 < T:
            j = j0 + tl.arange(0, BN)
            dx_RN = tl.zeros((R, BN), tl.float32)
            if j0 < i0 + R // H:
                dy_RN = _cells(dy_BMTS + at, i, h, j, T, C)
                x_RN = _cells(x_BMTS + at, i, h, j, T, C)
                sum_RR = tl.dot(dy_RN, tl.trans(x_RN), sum_RR, input_precision="ieee")
                dx_RN = tl.dot(mix_RR, dy_RN, input_precision="ieee")
            _store_cells(dx_BMTS + at, dx_RN, i, h, j, T, C)
            j0 += BN
        strip += tl.num_programs(0)
    place = parts_GPRR + ((g * tl.num_programs(0) + p) * R + r[:, None]) * R + r[None, :]
    tl.store(place, sum_RR)
