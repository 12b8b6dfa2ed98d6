"""The five Triton kernels of a Transformer block for one position of one sequence (`decoding.decode_block`).

    qkv = W_qkv · norm(x)                          _projected
    y = attention(rotate(q), cached keys, values)  _attended (and _combined, where the cache is read in parts)
    x ← x + W_out · y                              _added
    h = silu(W_gate · norm(x)) · (W_up · norm(x))  _gated
    x ← x + W_down · h                             _added

A program of the four products computes a few outputs: it reads their rows of the weight once, and the whole input vector. The norm is
a number that multiplies the finished sums, so each program computes it for itself.

Why: such a step reads every weight once and computes next to nothing, so memory sets its pace. A library's products are made for many
rows and read at half of memory's speed. At 1.5B on an H200 a token took 3.27 ms by a graph of PyTorch's kernels and takes 1.59 here,
71 % of a copy's bandwidth (docs/performance.md, "generation").

Weights, inputs and outputs are bfloat16, sums float32. No gradients.

Shapes: D width, I inputs, O outputs, F hidden width, M query heads, K key/value heads, E head width, H = E/2, S positions of the cache;
BO outputs and BI inputs at a time, BS positions, N parts of the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIECE = 4096  # numbers of a weight that a program loads at once
_ROWS, _GATED_ROWS = 2, 8  # outputs of a program: several programs for every multiprocessor
_PART = 256  # positions of the cache that one program reads, at least


def projected(x_D: Tensor, kv_D: Tensor, norm_D: Tensor, q_OD: Tensor, k_OD: Tensor, v_OD: Tensor, eps: float) -> Tensor:
    """Queries of the normed x, keys and values of the normed kv, side by side, [(M + 2 K) E]."""
    sizes = [len(weight) for weight in (q_OD, k_OD, v_OD)]
    out_P = x_D.new_empty(sum(sizes))
    grid = (sum(size // _ROWS for size in sizes),)
    _projected[grid](x_D, kv_D, norm_D, q_OD, k_OD, v_OD, out_P, eps, *sizes[:2], *_normed_tile(len(x_D), _ROWS), num_warps=4)
    return out_P


def gated(x_D: Tensor, norm_D: Tensor, gate_FD: Tensor, up_FD: Tensor, eps: float) -> Tensor:
    """silu(gate · n) · (up · n) of the normed x, [F]."""
    out_F = x_D.new_empty(len(gate_FD))
    grid = (triton.cdiv(len(gate_FD), _GATED_ROWS),)
    _gated[grid](x_D, norm_D, gate_FD, up_FD, out_F, eps, len(gate_FD), *_normed_tile(len(x_D), _GATED_ROWS), num_warps=4)
    return out_F


def added(x_O: Tensor, weight_OI: Tensor, y_I: Tensor) -> Tensor:
    """x + weight · y, [O]."""
    outputs, inputs = weight_OI.shape
    out_O = torch.empty_like(x_O)
    tile = inputs, _ROWS, _inputs_at_once(inputs, _ROWS)
    _added[(triton.cdiv(outputs, _ROWS),)](x_O, weight_OI, y_I, out_O, outputs, *tile, num_warps=4)
    return out_O


def attended(qkv_P: Tensor, cos_1H: Tensor, sin_1H: Tensor, k_1KSE: Tensor, v_1KSE: Tensor, position: Tensor, heads: int) -> Tensor:
    """Rotate, write the new key and value into the cache, and attend to all positions up to the new one, [M E]."""
    _, key_heads, length, width = k_1KSE.shape
    parts = max(1, min(16, length // _PART))
    group = max(16, triton.next_power_of_2(heads // key_heads))
    sums_MN = qkv_P.new_empty(heads * parts * (width + 2), dtype=torch.float32)
    out_F = qkv_P.new_empty(heads * width)
    sizes = length, heads, key_heads, width, group, parts, min(64, _PART)
    _attended[(key_heads, parts)](qkv_P, cos_1H, sin_1H, k_1KSE, v_1KSE, position, sums_MN, out_F, *sizes)
    if parts > 1:
        _combined[(heads,)](sums_MN, out_F, heads, width, parts, triton.next_power_of_2(parts))
    return out_F


def _normed_tile(width: int, rows: int) -> tuple[int, int, int, int]:
    """Inputs, the power of two that holds them for the norm, outputs of a program, and inputs that it loads at once."""
    return width, triton.next_power_of_2(width), rows, _inputs_at_once(width, rows)


def _inputs_at_once(inputs: int, rows: int) -> int:
    return int(min(_PIECE // rows, triton.next_power_of_2(inputs)))


@triton.jit
def _scale(x_D, eps, D: tl.constexpr, WHOLE: tl.constexpr):
    """1 / √(mean x² + eps)."""
    d = tl.arange(0, WHOLE)
    x = tl.load(x_D + d, mask=d < D, other=0.0).to(tl.float32)
    return 1 / tl.sqrt(tl.sum(x * x, 0) / D + eps)


@triton.jit
def _rows_times(weight, o, outputs, x_I, norm_I, IN: tl.constexpr, NORMED: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr):
    """Σ_i weight[o, i] · x[i] (· norm[i]), [BO]."""
    i = tl.arange(0, BI)
    row_O1 = weight + o.to(tl.int64)[:, None] * IN
    sums_OI = tl.zeros((BO, BI), tl.float32)
    for start in range(0, IN, BI):
        inside = start + i < IN
        w = tl.load(row_O1 + start + i[None, :], mask=(o < outputs)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        x = tl.load(x_I + start + i, mask=inside, other=0.0).to(tl.float32)
        if NORMED:
            x *= tl.load(norm_I + start + i, mask=inside, other=0.0).to(tl.float32)
        sums_OI += w * x[None, :]
    return tl.sum(sums_OI, 1)


@triton.jit
def _projected(
    x_D, kv_D, norm_D, q_OD, k_OD, v_OD, out_P, eps, OQ, OK, D: tl.constexpr, WHOLE: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr
):
    """BO queries, keys or values of the normed stream."""
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    first = tl.program_id(0) * BO
    if first < OQ:
        y_O = _rows_times(q_OD, o, OQ, x_D, norm_D, D, True, BO, BI) * _scale(x_D, eps, D, WHOLE)
    elif first < OQ + OK:
        y_O = _rows_times(k_OD, o - OQ, OK, kv_D, norm_D, D, True, BO, BI) * _scale(kv_D, eps, D, WHOLE)
    else:
        y_O = _rows_times(v_OD, o - OQ - OK, OK, kv_D, norm_D, D, True, BO, BI) * _scale(kv_D, eps, D, WHOLE)
    tl.store(out_P + o, y_O.to(out_P.dtype.element_ty))


@triton.jit
def _gated(x_D, norm_D, gate_FD, up_FD, out_F, eps, hidden, D: tl.constexpr, WHOLE: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr):
    """BO numbers of silu(gate · n) · (up · n)."""
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    gate_O = _rows_times(gate_FD, o, hidden, x_D, norm_D, D, True, BO, BI)
    up_O = _rows_times(up_FD, o, hidden, x_D, norm_D, D, True, BO, BI)
    scale = _scale(x_D, eps, D, WHOLE)
    gate_O *= scale
    tl.store(out_F + o, (gate_O / (1 + tl.exp(-gate_O)) * up_O * scale).to(out_F.dtype.element_ty), mask=o < hidden)


@triton.jit
def _added(x_O, weight_OI, y_I, out_O, outputs, IN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr):
    """BO numbers of x + weight · y."""
    o = tl.program_id(0) * BO + tl.arange(0, BO)
    sum_O = _rows_times(weight_OI, o, outputs, y_I, y_I, IN, False, BO, BI)
    x = tl.load(x_O + o, mask=o < outputs, other=0.0).to(tl.float32)
    tl.store(out_O + o, (x + sum_O).to(out_O.dtype.element_ty), mask=o < outputs)


@triton.jit
def _attended(
    qkv_P, cos_1H, sin_1H, k_KSE, v_KSE, position, sums_MN, out_F,
    S, M: tl.constexpr, K: tl.constexpr, E: tl.constexpr, G: tl.constexpr, N: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """softmax(q kᵀ / √E) v of the queries of one key/value head, over one part of its cache, as a running softmax.

    The first part also writes the new position to the cache, and attends to it.
    """
    HALF: tl.constexpr = E // 2
    head, part = tl.program_id(0), tl.program_id(1)
    here = tl.load(position)
    g, e, h, j = tl.arange(0, G), tl.arange(0, E), tl.arange(0, HALF), tl.arange(0, BS)
    real = g < M // K
    cos, sin = tl.load(cos_1H + h), tl.load(sin_1H + h)
    kind: tl.constexpr = k_KSE.dtype.element_ty

    at = qkv_P + (head * (M // K) + g)[:, None] * E + h[None, :]
    a_GH = tl.load(at, mask=real[:, None], other=0.0).to(tl.float32)
    b_GH = tl.load(at + HALF, mask=real[:, None], other=0.0).to(tl.float32)
    root: tl.constexpr = E**-0.5
    qa_GH = ((a_GH * cos[None, :] - b_GH * sin[None, :]).to(kind).to(tl.float32) * root).to(kind)
    qb_GH = ((b_GH * cos[None, :] + a_GH * sin[None, :]).to(kind).to(tl.float32) * root).to(kind)

    largest_G = tl.full((G,), -float("inf"), tl.float32)
    total_G = tl.zeros((G,), tl.float32)
    sum_GE = tl.zeros((G, E), tl.float32)
    rows = (head * S).to(tl.int64)
    if part == 0:
        new_k = qkv_P + (M + head) * E + h
        first, second = tl.load(new_k).to(tl.float32), tl.load(new_k + HALF).to(tl.float32)
        new_a, new_b = (first * cos - second * sin).to(kind), (second * cos + first * sin).to(kind)
        new_v = tl.load(qkv_P + (M + K + head) * E + e)
        tl.store(k_KSE + (rows + here) * E + h, new_a)
        tl.store(k_KSE + (rows + here) * E + HALF + h, new_b)
        tl.store(v_KSE + (rows + here) * E + e, new_v)
        products_GH = qa_GH.to(tl.float32) * new_a.to(tl.float32)[None, :] + qb_GH.to(tl.float32) * new_b.to(tl.float32)[None, :]
        largest_G = tl.sum(products_GH, 1)
        total_G += 1.0
        sum_GE += new_v.to(tl.float32)[None, :]
    size = (S + N - 1) // N
    start = part * size
    end = tl.minimum(start + size, here)
    while start < end:
        s = start + j
        inside = s < end
        k_at = k_KSE + (rows + s)[:, None] * E + h[None, :]
        ka_SH = tl.load(k_at, mask=inside[:, None], other=0.0)
        kb_SH = tl.load(k_at + HALF, mask=inside[:, None], other=0.0)
        v_SE = tl.load(v_KSE + (rows + s)[:, None] * E + e[None, :], mask=inside[:, None], other=0.0)
        score_GS = tl.dot(qa_GH, ka_SH.T, input_precision="ieee") + tl.dot(qb_GH, kb_SH.T, input_precision="ieee")
        score_GS = tl.where(inside[None, :], score_GS, -float("inf"))
        higher_G = tl.maximum(largest_G, tl.max(score_GS, 1))
        shrink_G = tl.exp(largest_G - higher_G)
        share_GS = tl.exp(score_GS - higher_G[:, None])
        total_G = total_G * shrink_G + tl.sum(share_GS, 1)
        sum_GE = sum_GE * shrink_G[:, None] + tl.dot(share_GS.to(kind), v_SE, input_precision="ieee")
        largest_G = higher_G
        start += BS
    row = head * (M // K) + g
    if N == 1:
        y = (sum_GE / total_G[:, None]).to(out_F.dtype.element_ty)
        tl.store(out_F + row[:, None] * E + e[None, :], y, mask=real[:, None])
    else:
        place = (row * N + part) * (E + 2)
        tl.store(sums_MN + place[:, None] + e[None, :], sum_GE, mask=real[:, None])
        tl.store(sums_MN + place + E, largest_G, mask=real)
        tl.store(sums_MN + place + E + 1, total_G, mask=real)


@triton.jit
def _combined(sums_MN, out_F, M, E: tl.constexpr, N: tl.constexpr, WHOLE: tl.constexpr):
    """The output of one head from its N parts: sums, largest score and total of each. An empty part has the score −∞."""
    head = tl.program_id(0)
    n, e = tl.arange(0, WHOLE), tl.arange(0, E)
    place = (head * N + n) * (E + 2)
    largest_N = tl.load(sums_MN + place + E, mask=n < N, other=-float("inf"))
    share_N = tl.exp(largest_N - tl.max(largest_N, 0))
    total = tl.sum(share_N * tl.load(sums_MN + place + E + 1, mask=n < N, other=0.0), 0)
    sums_NE = tl.load(sums_MN + place[:, None] + e[None, :], mask=(n < N)[:, None], other=0.0)
    tl.store(out_F + head * E + e, (tl.sum(share_N[:, None] * sums_NE, 0) / total).to(out_F.dtype.element_ty))
