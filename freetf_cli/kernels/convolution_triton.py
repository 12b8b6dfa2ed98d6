"""The causal convolution of attention weights and its gradients, in Triton.

    y = tril(conv(tril(x))),  conv(x)[i, j] = Σ_{a, b} kernel[a, b] · x[i − (Q − 1) + a, j − left + b],  left = (W − 1) // 2

A tile of y is the sum of Q matrix products: a tile of x that is 16 keys wider on each side, times row a of the kernel as a band matrix
over the keys. Cells after their query are neither read nor computed. The margin of 16 exceeds every kernel's reach and keeps reads
aligned to 16 keys, so that they are vectorised. dx is the same with the kernel reversed; dkernel sums dy · xᵀ along diagonals.

Why: a library's convolution with one kernel a head reads each cell Q · W times. All convolutions of `paper-880m-multi-token` take 43 ms
of a step of 266 at T = 2,048 on an H200 (docs/performance.md, "convolution of attention maps").

x is float32 or of 16 bits, sums are float32.

Shapes: N matrices of attention weights, of T queries and S keys; M heads, matrix n is of head n mod M; Q rows and W columns of a kernel,
at most 33.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from freetf_cli.kernels.support import operator

BM, BN = 64, 32  # queries and keys of a tile of y; its tile of x is 2 · BN keys wide
STRIP = 32  # queries of a tile of the kernel's gradient


@operator(lambda dy, x, kernel: (x.new_empty(x.shape), kernel.new_empty(kernel.shape, dtype=torch.float32)))
def causal_convolution_backward(dy_NTS: Tensor, x_NTS: Tensor, kernel_MQW: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x, [N, T, S], and of the kernel, [M, Q, W] float32."""
    (maps, queries, keys), (heads, rows, width) = x_NTS.shape, kernel_MQW.shape
    strips = triton.cdiv(queries, STRIP)
    parts_NPQW = kernel_MQW.new_empty(maps, strips, rows, width, dtype=torch.float32)
    sizes = queries, keys, rows, width, triton.next_power_of_2(width), STRIP, BN
    _kernel_gradient[(rows, strips, maps)](dy_NTS.contiguous(), x_NTS.contiguous(), parts_NPQW, *sizes, num_warps=2)
    return _convolved(dy_NTS, kernel_MQW, transposed=True), parts_NPQW.sum(1).view(-1, heads, rows, width).sum(0)


@operator(lambda x, kernel: x.new_empty(x.shape), backward=causal_convolution_backward)
def causal_convolution(x_NTS: Tensor, kernel_MQW: Tensor) -> Tensor:
    """y [N, T, S], in x's dtype."""
    return _convolved(x_NTS, kernel_MQW, transposed=False)


def _convolved(x_NTS: Tensor, kernel_MQW: Tensor, transposed: bool) -> Tensor:
    (maps, queries, keys), (heads, rows, width) = x_NTS.shape, kernel_MQW.shape
    x_NTS, out_NTS = x_NTS.contiguous(), torch.empty_like(x_NTS, memory_format=torch.contiguous_format)
    bands_MQKN = x_NTS.new_empty(heads, rows, 2 * BN, BN)
    _bands[(heads * rows,)](kernel_MQW.contiguous(), bands_MQKN, rows, width, transposed, BN)
    grid = (triton.cdiv(keys, BN), triton.cdiv(queries, BM), maps)
    _convolve[grid](x_NTS, bands_MQKN, out_NTS, heads, queries, keys, rows, transposed, BM, BN)
    return out_NTS


@triton.jit
def _cells(x_TS, i, j16, T, S):
    """x[i, j16 − 16], 0 outside and after the query.

    The mask ends at a multiple of 16 keys: one that could end anywhere would make Triton read each number alone.
    """
    j = j16 - 16
    inside = ((i >= 0) & (i < T))[:, None] & ((j16 // 16 > 0) & (j < S))[None, :] & (j16[None, :] // 16 <= i[:, None] // 16 + 1)
    x_MN = tl.load(x_TS + i.to(tl.int64)[:, None] * S + j[None, :], mask=inside, other=0.0)
    return tl.where(j[None, :] <= i[:, None], x_MN, 0.0)


@triton.jit
def _bands(kernel_MQW, bands_MQKN, Q: tl.constexpr, W: tl.constexpr, TRANSPOSED: tl.constexpr, BN: tl.constexpr):
    """One row of a kernel as a band matrix, [keys of a tile of x, keys of a tile of y]; for the transpose, with its columns reversed."""
    LEFT: tl.constexpr = W - 1 - (W - 1) // 2 if TRANSPOSED else (W - 1) // 2
    place, k, n = tl.program_id(0), tl.arange(0, 2 * BN)[:, None], tl.arange(0, BN)[None, :]
    tap = k - n - (16 - LEFT)
    band_KN = tl.load(kernel_MQW + place * W + (W - 1 - tap if TRANSPOSED else tap), mask=(tap >= 0) & (tap < W), other=0.0)
    tl.store(bands_MQKN + place * 2 * BN * BN + k * BN + n, band_KN.to(bands_MQKN.dtype.element_ty))


@triton.jit
def _convolve(
    x_NTS, bands_MQKN, out_NTS, M, T, S, Q: tl.constexpr, TRANSPOSED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """A tile of y = Σ_a x[rows shifted by a] · band_a, or of the transposed convolution."""
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
    dy_NTS, x_NTS, parts_NPQW,
    T, S: tl.constexpr, Q: tl.constexpr, W: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Row a of the kernel's gradient from a strip of queries: the sums along the diagonals of x[rows, keys]ᵀ dy."""
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
