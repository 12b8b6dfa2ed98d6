"""Rotary attention over short sequences as one Triton kernel forward and one backward: of 65 positions, as in letters.

PyTorch's kernels for attention are cut for thousands of keys; of short sequences they, the rotation before them and the changes of layout
around them took 2.4 of the 8.2 ms of a training step (docs/performance.md). Here one program does a head of a sequence: it reads queries,
keys and values as the projections leave them, turns them on the way in, keeps all scores on the chip, and writes in the order in which the
next product reads. Nothing is kept for the backward but the inputs.

Shapes: B sequences, T positions, M heads, E head width, F = M · E; Q positions of a tile of queries, K ≥ T keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def attend(
    q_BTF: Tensor, k_BTF: Tensor, v_BTF: Tensor, cos_TE: Tensor, sin_TE: Tensor, heads: int, causal: bool, tiles: tuple[int, int] = (16, 4)
) -> Tensor:
    """softmax(turned q · turned kᵀ / √E) · v, [B, T, F]; cos and sin [T, E/2] in float32. Any strides but the last, which must be 1.

    tiles: queries at a time, warps.
    """
    batch, length, width = k_BTF.shape
    out_BTF = torch.empty(batch, length, width, dtype=v_BTF.dtype, device=v_BTF.device)
    _forward[(batch * heads,)](
        *(q_BTF, k_BTF, v_BTF, cos_TE, sin_TE, out_BTF),
        *(*q_BTF.stride()[:2], *k_BTF.stride()[:2], *v_BTF.stride()[:2]),
        *(length, heads, width // heads, causal, tiles[0], max(16, triton.next_power_of_2(length))),
        num_warps=tiles[1],
    )
    return out_BTF


def attend_backward(
    dy_BTF: Tensor,
    q_BTF: Tensor,
    k_BTF: Tensor,
    v_BTF: Tensor,
    cos_TE: Tensor,
    sin_TE: Tensor,
    heads: int,
    causal: bool,
    tiles: tuple[int, int] = (128, 8),
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, [B, T, F] each, from that of the output."""
    batch, length, width = k_BTF.shape
    dq_BTF, dk_BTF, dv_BTF = (torch.empty(batch, length, width, dtype=v_BTF.dtype, device=v_BTF.device) for _ in range(3))
    _backward[(batch * heads,)](
        *(dy_BTF, q_BTF, k_BTF, v_BTF, cos_TE, sin_TE, dq_BTF, dk_BTF, dv_BTF),
        *(*dy_BTF.stride()[:2], *q_BTF.stride()[:2], *k_BTF.stride()[:2], *v_BTF.stride()[:2]),
        *(length, heads, width // heads, causal, tiles[0], max(16, triton.next_power_of_2(length))),
        num_warps=tiles[1],
    )
    return dq_BTF, dk_BTF, dv_BTF


@triton.jit
def _turned(base, rows, inside, stride, cos, sin, HALF: tl.constexpr):
    """Both halves of some rows of a head, turned by their positions' angles."""
    e = tl.arange(0, HALF)
    at = base + rows[:, None] * stride + e[None, :]
    first = tl.load(at, mask=inside[:, None], other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside[:, None], other=0.0).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _angles(table, rows, inside, HALF: tl.constexpr):
    return tl.load(table + rows[:, None] * HALF + tl.arange(0, HALF)[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def _weights(q1, q2, k1, k2, rows, keys, T, scale, CAUSAL: tl.constexpr):
    """Attention weights of a tile of queries, float32."""
    scores = tl.dot(q2, tl.trans(k2), tl.dot(q1, tl.trans(k1), input_precision="ieee"), input_precision="ieee") * scale
    seen = keys[None, :] < T
    if CAUSAL:
        seen = seen & (keys[None, :] <= rows[:, None])
    scores = tl.where(seen, scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _forward(
    q, k, v, cos, sin, out, qb, qt, kb, kt, vb, vt,
    T, HEADS: tl.constexpr, E: tl.constexpr, CAUSAL: tl.constexpr, Q: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = E // 2
    kind: tl.constexpr = out.dtype.element_ty
    b = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS * E
    keys, e = tl.arange(0, K), tl.arange(0, E)
    inside = keys < T
    cos_k, sin_k = _angles(cos, keys, inside, HALF), _angles(sin, keys, inside, HALF)
    k1, k2 = _turned(k + b * kb + head, keys, inside, kt, cos_k, sin_k, HALF)
    k1, k2 = k1.to(kind), k2.to(kind)
    values = tl.load(v + b * vb + head + keys[:, None] * vt + e[None, :], mask=inside[:, None], other=0.0)
    scale = 1.4426950408889634 / (E**0.5)
    for start in range(0, K, Q):
        if start < T:
            rows = start + tl.arange(0, Q)
            within = rows < T
            cos_q, sin_q = _angles(cos, rows, within, HALF), _angles(sin, rows, within, HALF)
            q1, q2 = _turned(q + b * qb + head, rows, within, qt, cos_q, sin_q, HALF)
            weights = _weights(q1.to(kind), q2.to(kind), k1, k2, rows, keys, T, scale, CAUSAL)
            y = tl.dot(weights.to(kind), values, input_precision="ieee")
            at = out + (b * T + rows[:, None]) * (HEADS * E) + head + e[None, :]
            tl.store(at, y.to(kind), mask=within[:, None])


@triton.jit
def _backward(
    dy, q, k, v, cos, sin, dq, dk, dv, yb, yt, qb, qt, kb, kt, vb, vt,
    T, HEADS: tl.constexpr, E: tl.constexpr, CAUSAL: tl.constexpr, Q: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = E // 2
    kind: tl.constexpr = dq.dtype.element_ty
    b = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS * E
    keys, e, half = tl.arange(0, K), tl.arange(0, E), tl.arange(0, HALF)
    inside = keys < T
    cos_k, sin_k = _angles(cos, keys, inside, HALF), _angles(sin, keys, inside, HALF)
    k1, k2 = _turned(k + b * kb + head, keys, inside, kt, cos_k, sin_k, HALF)
    k1, k2 = k1.to(kind), k2.to(kind)
    values = tl.load(v + b * vb + head + keys[:, None] * vt + e[None, :], mask=inside[:, None], other=0.0)
    scale = 1.0 / (E**0.5)
    dk1 = tl.zeros((K, HALF), tl.float32)
    dk2 = tl.zeros((K, HALF), tl.float32)
    dvalues = tl.zeros((K, E), tl.float32)
    for start in range(0, K, Q):
        if start < T:
            rows = start + tl.arange(0, Q)
            within = rows < T
            cos_q, sin_q = _angles(cos, rows, within, HALF), _angles(sin, rows, within, HALF)
            q1, q2 = _turned(q + b * qb + head, rows, within, qt, cos_q, sin_q, HALF)
            q1, q2 = q1.to(kind), q2.to(kind)
            weights = _weights(q1, q2, k1, k2, rows, keys, T, scale * 1.4426950408889634, CAUSAL)
            dy_tile = tl.load(dy + b * yb + head + rows[:, None] * yt + e[None, :], mask=within[:, None], other=0.0)
            dvalues = tl.dot(tl.trans(weights.to(kind)), dy_tile, dvalues, input_precision="ieee")
            dweights = tl.dot(dy_tile, tl.trans(values), input_precision="ieee")
            dscores = weights * (dweights - tl.sum(weights * dweights, 1)[:, None]) * scale
            dscores = dscores.to(kind)
            dk1 = tl.dot(tl.trans(dscores), q1, dk1, input_precision="ieee")
            dk2 = tl.dot(tl.trans(dscores), q2, dk2, input_precision="ieee")
            dq1, dq2 = tl.dot(dscores, k1, input_precision="ieee"), tl.dot(dscores, k2, input_precision="ieee")
            at = dq + (b * T + rows[:, None]) * (HEADS * E) + head + half[None, :]
            tl.store(at, (dq1 * cos_q + dq2 * sin_q).to(kind), mask=within[:, None])
            tl.store(at + HALF, (dq2 * cos_q - dq1 * sin_q).to(kind), mask=within[:, None])
    at = dk + (b * T + keys[:, None]) * (HEADS * E) + head + half[None, :]
    tl.store(at, (dk1 * cos_k + dk2 * sin_k).to(kind), mask=inside[:, None])
    tl.store(at + HALF, (dk2 * cos_k - dk1 * sin_k).to(kind), mask=inside[:, None])
    at = dv + (b * T + keys[:, None]) * (HEADS * E) + head + e[None, :]
    tl.store(at, dvalues.to(kind), mask=inside[:, None])
