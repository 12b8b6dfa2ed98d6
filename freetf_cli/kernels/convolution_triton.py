"""The causal convolution of attention weights, tril(conv(tril(x))), and its gradients in Triton.

A library's convolution with a kernel for each head reads every cell Q · W times through its caches, and takes the kernel's own gradient a
cell at a time. Here a tile of cells is a few matrix products: a row of the kernel is a band matrix over the keys, W cells wide, that a tile
of the map is multiplied with. Cells after their query are neither read nor computed. Of the cells around a tile 16 keys are read on either
side, more than a kernel reaches, so that reading begins where 16 numbers can be read at once.

Shapes: N maps of T queries and S keys; M heads, map n is of head n mod M; Q and W rows and columns of a kernel. Cell (i, j) comes from
x[i − (Q − 1) + a, j − left + b] through kernel[a, b], as conv2d has it, with left = (W − 1) // 2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BM, BN = 64, 32  # cells of a tile; what they come from, 16 keys on either side with them, is twice as wide
STRIP = 32  # queries of a tile of the kernel's gradient


def convolve(x_NTS: Tensor, kernel_MQW: Tensor) -> Tensor:
    """tril(conv(tril(x))), in x's type, summed in float32."""
    return _convolved(x_NTS, kernel_MQW, transposed=False)


def gradients(dy_NTS: Tensor, x_NTS: Tensor, kernel_MQW: Tensor) -> tuple[Tensor, Tensor]:
    """Those of x, [N, T, S], and of the kernel, [M, Q, W] float32."""
    return _convolved(dy_NTS, kernel_MQW, transposed=True), _of_kernel(dy_NTS, x_NTS, kernel_MQW)


def _convolved(x_NTS: Tensor, kernel_MQW: Tensor, transposed: bool) -> Tensor:
    maps, queries, keys = x_NTS.shape
    heads, rows, width = kernel_MQW.shape
    x_NTS, out_NTS = x_NTS.contiguous(), torch.empty_like(x_NTS, memory_format=torch.contiguous_format)
    bands_MQKN = x_NTS.new_empty(heads, rows, 2 * BN, BN)
    _bands[(heads * rows,)](kernel_MQW.contiguous(), bands_MQKN, rows, width, transposed, BN)
    grid = (triton.cdiv(keys, BN), triton.cdiv(queries, BM), maps)
    _convolve[grid](x_NTS, bands_MQKN, out_NTS, heads, queries, keys, rows, transposed, BM, BN)
    return out_NTS


def _of_kernel(dy_NTS: Tensor, x_NTS: Tensor, kernel_MQW: Tensor) -> Tensor:
    maps, queries, keys = x_NTS.shape
    heads, rows, width = kernel_MQW.shape
    strips = triton.cdiv(queries, STRIP)
    parts_NPQW = kernel_MQW.new_empty(maps, strips, rows, width, dtype=torch.float32)
    whole = triton.next_power_of_2(width)
    _kernel_gradient[(rows, strips, maps)](
        dy_NTS.contiguous(), x_NTS.contiguous(), parts_NPQW, queries, keys, rows, width, whole, STRIP, BN, num_warps=2
    )
    return parts_NPQW.sum(1).view(-1, heads, rows, width).sum(0)


@triton.jit
def _cells(x_TS, i, j16, T, S):
    """x[i, j16 − 16], 0 outside and after the query. Keys begin at a multiple of 16 and are read 16 at a time: a mask that ends anywhere
    would have every number read alone."""
    j = j16 - 16
    inside = ((i >= 0) & (i < T))[:, None] & ((j16 // 16 > 0) & (j < S))[None, :] & (j16[None, :] // 16 <= i[:, None] // 16 + 1)
    x_MN = tl.load(x_TS + i.to(tl.int64)[:, None] * S + j[None, :], mask=inside, other=0.0)
    return tl.where(j[None, :] <= i[:, None], x_MN, 0.0)


@triton.jit
def _bands(kernel_MQW, bands_MQKN, Q: tl.constexpr, W: tl.constexpr, TRANSPOSED: tl.constexpr, BN: tl.constexpr):
    """Row a of a kernel, or of its transpose, which turns it round, as a matrix: keys of a tile and around it × keys of the tile."""
    LEFT: tl.constexpr = W - 1 - (W - 1) // 2 if TRANSPOSED else (W - 1) // 2
    place, k, n = tl.program_id(0), tl.arange(0, 2 * BN)[:, None], tl.arange(0, BN)[None, :]
    tap = k - n - (16 - LEFT)
    band_KN = tl.load(kernel_MQW + place * W + (W - 1 - tap if TRANSPOSED else tap), mask=(tap >= 0) & (tap < W), other=0.0)
    tl.store(bands_MQKN + place * 2 * BN * BN + k * BN + n, band_KN.to(bands_MQKN.dtype.element_ty))


@triton.jit
def _convolve(
    x_NTS,
    bands_MQKN,
    out_NTS,
    M,
    T,
    S,
    Q: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """A tile of the convolution, or of its transpose."""
    n = tl.program_id(2)
    i = tl.program_id(1) * BM + tl.arange(0, BM)
    j0 = tl.program_id(0) * BN
    j, k = j0 + tl.arange(0, BN), tl.arange(0, 2 * BN)
    x_TS = x_NTS + n.to(tl.int64) * T * S
    band_KN = bands_MQKN + n % M * Q * 2 * BN * BN + k[:, None] * BN + tl.arange(0, BN)[None, :]
    sum_MN = tl.zeros((BM, BN), tl.float32)
    if j0 < tl.program_id(1) * BM + BM:
        for a in tl.static_range(Q):
            x_MK = _cells(x_TS, i + (Q - 1 - a if TRANSPOSED else a - (Q - 1)), j0 + k, T, S)
            sum_MN = tl.dot(x_MK, tl.load(band_KN + a * 2 * BN * BN), sum_MN, input_precision="ieee")
    inside = (i < T)[:, None] & (j < S)[None, :]
    kept = tl.where(j[None, :] <= i[:, None], sum_MN, 0.0)
    tl.store(out_NTS + n.to(tl.int64) * T * S + i.to(tl.int64)[:, None] * S + j[None, :], kept.to(out_NTS.dtype.element_ty), mask=inside)


@triton.jit
def _kernel_gradient(
    dy_NTS,
    x_NTS,
    parts_NPQW,
    T,
    S: tl.constexpr,
    Q: tl.constexpr,
    W: tl.constexpr,
    WHOLE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Row a of the kernel's gradient from a strip of queries: what the diagonals of x[rows, keys]ᵀ dy sum to."""
    LEFT: tl.constexpr = (W - 1) // 2
    a, strip, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i = strip * BM + tl.arange(0, BM)
    k = tl.arange(0, 2 * BN)
    at = n.to(tl.int64) * T * S
    sum_KN = tl.zeros((2 * BN, BN), tl.float32)
    for j0 in tl.range(0, tl.minimum(S, strip * BM + BM), BN, num_stages=3):
        dy_MN = _cells(dy_NTS + at, i, j0 + 16 + tl.arange(0, BN), T, S)
        x_MK = _cells(x_NTS + at, i + a - (Q - 1), j0 + k, T, S)
        sum_KN = tl.dot(tl.trans(x_MK), dy_MN, sum_KN, input_precision="ieee")
    tap = k[:, None] - tl.arange(0, BN)[None, :] - (16 - LEFT)
    w = tl.arange(0, WHOLE)
    sum_W = tl.zeros((WHOLE,), tl.float32)
    for b in tl.static_range(W):
        sum_W += tl.where(w == b, tl.sum(tl.sum(tl.where(tap == b, sum_KN, 0.0), 1), 0), 0.0)
    place = parts_NPQW + ((n.to(tl.int64) * tl.num_programs(1) + strip) * Q + a) * W
    tl.store(place + w, sum_W, mask=w < W)
