"""The convolution of attention maps over queries and keys in Triton, causal on both sides: tril(conv(tril(x))), and its gradients.

A library's convolution with a kernel for each head reads every cell Q · W times through its caches, and takes the kernel's own gradient a
cell at a time. Here a tile of cells is a few matrix products: a row of the kernel is a band matrix over the keys, W cells wide, that a tile
of the map is multiplied with. What lies after its query is neither read nor computed.

Shapes: N maps of T queries and S keys; M heads, map n is of head n mod M; Q and W rows and columns of a kernel. Cell (i, j) comes from
x[i − (Q − 1) + a, j − left + b] through kernel[a, b], as conv2d has it, with left = (W − 1) // 2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BM, BN = 64, 32  # cells of a tile; BN + W − 1 keys must fit twice BN


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
    grid = (triton.cdiv(keys, BN), triton.cdiv(queries, BM), maps)
    _convolve[grid](x_NTS, kernel_MQW.float().contiguous(), out_NTS, heads, queries, keys, rows, width, transposed, BM, BN)
    return out_NTS


def _of_kernel(dy_NTS: Tensor, x_NTS: Tensor, kernel_MQW: Tensor) -> Tensor:
    maps, queries, keys = x_NTS.shape
    heads, rows, width = kernel_MQW.shape
    strips = triton.cdiv(queries, BM)
    parts_NPQW = kernel_MQW.new_empty(maps, strips, rows, width, dtype=torch.float32)
    _kernel_gradient[(strips, rows, maps)](
        dy_NTS.contiguous(), x_NTS.contiguous(), parts_NPQW, queries, keys, rows, width, triton.next_power_of_2(width), BM, BN
    )
    return parts_NPQW.sum(1).view(-1, heads, rows, width).sum(0)


@triton.jit
def _cells(x_TS, i, j, T, S):
    """x[i, j], 0 outside and after the query."""
    inside = (i >= 0)[:, None] & (i < T)[:, None] & (j >= 0)[None, :] & (j < S)[None, :] & (j[None, :] <= i[:, None])
    return tl.load(x_TS + i.to(tl.int64)[:, None] * S + j[None, :], mask=inside, other=0.0)


@triton.jit
def _convolve(
    x_NTS,
    kernel_MQW,
    out_NTS,
    M,
    T,
    S,
    Q: tl.constexpr,
    W: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """A tile of the convolution, or of its transpose, which turns the kernel round."""
    LEFT: tl.constexpr = W - 1 - (W - 1) // 2 if TRANSPOSED else (W - 1) // 2
    n = tl.program_id(2)
    i = tl.program_id(1) * BM + tl.arange(0, BM)
    j0 = tl.program_id(0) * BN
    j, k = j0 + tl.arange(0, BN), tl.arange(0, 2 * BN)
    x_TS = x_NTS + n.to(tl.int64) * T * S
    sum_MN = tl.zeros((BM, BN), tl.float32)
    tap = k[:, None] - tl.arange(0, BN)[None, :]
    band = (tap >= 0) & (tap < W)
    if j0 < tl.program_id(1) * BM + BM:
        for a in tl.static_range(Q):
            row = i + (Q - 1 - a if TRANSPOSED else a - (Q - 1))
            x_MK = _cells(x_TS, row, j0 - LEFT + k, T, S)
            at = kernel_MQW + (n % M * Q + a) * W + (W - 1 - tap if TRANSPOSED else tap)
            band_KN = tl.load(at, mask=band, other=0.0).to(x_MK.dtype)
            sum_MN = tl.dot(x_MK, band_KN, sum_MN, input_precision="ieee")
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
    strip, a, n = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i = strip * BM + tl.arange(0, BM)
    k = tl.arange(0, 2 * BN)
    at = n.to(tl.int64) * T * S
    sum_KN = tl.zeros((2 * BN, BN), tl.float32)
    j0 = 0
    end = tl.minimum(S, strip * BM + BM)
    while j0 < end:
        dy_MN = _cells(dy_NTS + at, i, j0 + tl.arange(0, BN), T, S)
        x_MK = _cells(x_NTS + at, i + a - (Q - 1), j0 - LEFT + k, T, S)
        sum_KN = tl.dot(tl.trans(x_MK), dy_MN, sum_KN, input_precision="ieee")
        j0 += BN
    tap = k[:, None] - tl.arange(0, BN)[None, :]
    w = tl.arange(0, WHOLE)
    sum_W = tl.zeros((WHOLE,), tl.float32)
    for b in tl.static_range(W):
        sum_W += tl.where(w == b, tl.sum(tl.sum(tl.where(tap == b, sum_KN, 0.0), 1), 0), 0.0)
    place = parts_NPQW + ((n.to(tl.int64) * tl.num_programs(0) + strip) * Q + a) * W
    tl.store(place + w, sum_W, mask=w < W)
