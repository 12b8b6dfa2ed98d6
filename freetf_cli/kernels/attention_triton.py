"""Rotary attention over short sequences as one Triton kernel forward and one backward: of 65 positions, as in letters.

PyTorch's kernels for attention are cut for thousands of keys; of short sequences they, the rotation before them and the changes of layout
around them took 2.4 of the 7.5 ms of a training step (docs/performance.md). Here one program does a head of a sequence: it reads queries,
keys and values as the projections leave them, turns them on the way in, keeps all scores on the chip, and writes in the order in which the
next product reads. Nothing is kept for the backward but the inputs.

Shapes: B sequences, T positions, M heads, E head width, F = M · E, P = 3 F or 2 F.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def attend(packed_BTP: Tensor, q_BTF: Tensor | None, cos_TE: Tensor, sin_TE: Tensor, heads: int, causal: bool) -> Tensor:
    """softmax(turned q · turned kᵀ / √E) · v, [B, T, F]; cos and sin [T, E/2] in float32.

    packed [B, T, 3F]: queries, keys and values side by side; [B, T, 2F] keys and values where the queries come by themselves, for which any
    strides do but the last, which must be 1.
    """
    q_BTF, k_BTF, v_BTF = _three(packed_BTP, q_BTF)
    batch, length, width = k_BTF.shape
    out_BTF = torch.empty(batch, length, width, dtype=v_BTF.dtype, device=v_BTF.device)
    _forward[(batch * heads,)](
        *(q_BTF, k_BTF, v_BTF, cos_TE, sin_TE, out_BTF),
        *(*q_BTF.stride()[:2], *k_BTF.stride()[:2], *v_BTF.stride()[:2]),
        *(length, heads, width // heads, causal, *_main(length)),
        num_warps=4,
    )
    return out_BTF


def attend_backward(
    dy_BTF: Tensor, packed_BTP: Tensor, q_BTF: Tensor | None, cos_TE: Tensor, sin_TE: Tensor, heads: int, causal: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `packed` and of the queries by themselves, if they came so, from that of the output."""
    inputs = _three(packed_BTP, q_BTF)
    batch, length, width = inputs[1].shape
    dpacked_BTP = packed_BTP.new_empty(packed_BTP.shape)
    dq_BTF = None if q_BTF is None else q_BTF.new_empty(batch, length, width)
    outputs, head_width, (main, one) = _three(dpacked_BTP, dq_BTF), width // heads, _main(length)
    _backward[(batch * heads,)](
        *(dy_BTF, *inputs, cos_TE, sin_TE, *outputs),
        *(stride for tensor in (dy_BTF, *inputs, *outputs[:2]) for stride in tensor.stride()[:2]),
        *(length, heads, head_width, causal, main, one),
        num_warps=4,
        maxnreg=128 if causal and head_width == 32 and main <= 64 else None,  # four programs at a time (docs/performance.md)
    )
    return dpacked_BTP, dq_BTF


def _three(packed_BTP: Tensor, q_BTF: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, views."""
    if q_BTF is None:
        q_BTF, k_BTF, v_BTF = packed_BTP.chunk(3, -1)
        return q_BTF, k_BTF, v_BTF
    k_BTF, v_BTF = packed_BTP.chunk(2, -1)
    return q_BTF, k_BTF, v_BTF


def _main(length: int) -> tuple[int, bool]:
    """Positions of the tile, a power of two from 16 on, and whether one more stands beside it: a tile of 128 for 65 would be three quarters
    empty. Letters and every other task whose rows are a prompt and 2ⁿ places have that length."""
    whole = max(16, triton.next_power_of_2(length))
    return (whole // 2, True) if whole > 16 and length == whole // 2 + 1 else (whole, False)


@triton.jit
def _turned(at, half, mask, cos, sin):
    """Both halves of a head at some positions, turned by their angles, in the type that they are kept in."""
    first, second = tl.load(at, mask=mask, other=0.0), tl.load(at + half, mask=mask, other=0.0)
    kind = first.dtype
    first, second = first.to(tl.float32), second.to(tl.float32)
    return (first * cos - second * sin).to(kind), (second * cos + first * sin).to(kind)


@triton.jit
def _store_turned_back(at, half, mask, first, second, cos, sin):
    kind: tl.constexpr = at.dtype.element_ty
    tl.store(at, (first * cos + second * sin).to(kind), mask=mask)
    tl.store(at + half, (second * cos - first * sin).to(kind), mask=mask)


@triton.jit
def _tile(q, k, v, cos, sin, qt, kt, vt, T, MAIN: tl.constexpr, E: tl.constexpr):
    """Angles of the tile's positions, the halves of their queries and keys, turned, and their values; 0 beyond T."""
    HALF: tl.constexpr = E // 2
    rows, e, half = tl.arange(0, MAIN), tl.arange(0, E), tl.arange(0, HALF)
    inside = (rows < T)[:, None]
    angles = rows[:, None] * HALF + half[None, :]
    cos_r, sin_r = tl.load(cos + angles, mask=inside, other=0.0), tl.load(sin + angles, mask=inside, other=0.0)
    q1, q2 = _turned(q + rows[:, None] * qt + half[None, :], HALF, inside, cos_r, sin_r)
    k1, k2 = _turned(k + rows[:, None] * kt + half[None, :], HALF, inside, cos_r, sin_r)
    return cos_r, sin_r, q1, q2, k1, k2, tl.load(v + rows[:, None] * vt + e[None, :], mask=inside, other=0.0)


@triton.jit
def _beside(q, k, cos, sin, qt, kt, MAIN: tl.constexpr, HALF: tl.constexpr):
    """The same of the position beside the tile, but for its value."""
    half = tl.arange(0, HALF)
    cos_x, sin_x = tl.load(cos + MAIN * HALF + half), tl.load(sin + MAIN * HALF + half)
    qx1, qx2 = _turned(q + MAIN * qt + half, HALF, half < HALF, cos_x, sin_x)
    kx1, kx2 = _turned(k + MAIN * kt + half, HALF, half < HALF, cos_x, sin_x)
    return cos_x, sin_x, qx1, qx2, kx1, kx2


@triton.jit
def _scores(q1, q2, k1, k2, rows, T, scale, CAUSAL: tl.constexpr):
    """Of the tile; with log2 e in the scale, in units of ln 2 for exp2; -inf where a query does not see a key."""
    scores = tl.dot(q2, tl.trans(k2), tl.dot(q1, tl.trans(k1), input_precision="ieee"), input_precision="ieee") * scale
    seen = rows[None, :] < T
    if CAUSAL:
        seen = seen & (rows[None, :] <= rows[:, None])
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def _along(a1, a2, b1, b2):
    """Products of some positions' halves with one position's, summed over the width."""
    return tl.sum(a1.to(tl.float32) * b1.to(tl.float32)[None, :] + a2.to(tl.float32) * b2.to(tl.float32)[None, :], 1)


@triton.jit
def _one(a1, a2, b1, b2):
    return tl.sum(a1.to(tl.float32) * b1.to(tl.float32) + a2.to(tl.float32) * b2.to(tl.float32), 0)


@triton.jit
def _last_weights(k1, k2, kx1, kx2, qx1, qx2, scale):
    """Attention weights of the position beside the tile, which sees all: over the tile's keys, and over its own."""
    scores = _along(k1, k2, qx1, qx2) * scale
    own = _one(kx1, kx2, qx1, qx2) * scale
    most = tl.maximum(tl.max(scores, 0), own)
    scores, own = tl.exp2(scores - most), tl.exp2(own - most)
    share = 1.0 / (tl.sum(scores, 0) + own)
    return scores * share, own * share


@triton.jit
def _forward(
    q, k, v, cos, sin, out, qb, qt, kb, kt, vb, vt,
    T, HEADS: tl.constexpr, E: tl.constexpr, CAUSAL: tl.constexpr, MAIN: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    kind: tl.constexpr = out.dtype.element_ty
    F: tl.constexpr = HEADS * E
    HALF: tl.constexpr = E // 2
    b = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS * E
    q, k, v, out = q + b * qb + head, k + b * kb + head, v + b * vb + head, out + b * T * F + head
    scale = 1.4426950408889634 / (E**0.5)
    rows, e = tl.arange(0, MAIN), tl.arange(0, E)
    inside = (rows < T)[:, None]
    _, _, q1, q2, k1, k2, values = _tile(q, k, v, cos, sin, qt, kt, vt, T, MAIN, E)
    if ONE:
        _, _, qx1, qx2, kx1, kx2 = _beside(q, k, cos, sin, qt, kt, MAIN, HALF)
        vx = tl.load(v + MAIN * vt + e).to(tl.float32)
        weights, own = _last_weights(k1, k2, kx1, kx2, qx1, qx2, scale)
        yx = tl.sum(weights[:, None] * values.to(tl.float32), 0) + own * vx
        tl.store(out + MAIN * F + e, yx.to(kind))
    scores = _scores(q1, q2, k1, k2, rows, T, scale, CAUSAL)
    most = tl.max(scores, 1)
    if ONE and not CAUSAL:
        beside = _along(q1, q2, kx1, kx2) * scale
        most = tl.maximum(most, beside)
        beside = tl.exp2(beside - most)
    weights = tl.exp2(scores - most[:, None])
    total = tl.sum(weights, 1)
    y = tl.dot(weights.to(kind), values, input_precision="ieee")
    if ONE and not CAUSAL:
        total += beside
        y += beside[:, None] * vx[None, :]
    tl.store(out + rows[:, None] * F + e[None, :], (y / total[:, None]).to(kind), mask=inside)


@triton.jit
def _backward(
    dy, q, k, v, cos, sin, dq, dk, dv, yb, yt, qb, qt, kb, kt, vb, vt, gb, gt, hb, ht,
    T, HEADS: tl.constexpr, E: tl.constexpr, CAUSAL: tl.constexpr, MAIN: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    kind: tl.constexpr = dv.dtype.element_ty
    HALF: tl.constexpr = E // 2
    b = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS * E
    dy, q, k, v = dy + b * yb + head, q + b * qb + head, k + b * kb + head, v + b * vb + head
    dq, dk, dv = dq + b * gb + head, dk + b * hb + head, dv + b * hb + head
    scale = 1.0 / (E**0.5)
    rows, e, half = tl.arange(0, MAIN), tl.arange(0, E), tl.arange(0, HALF)
    inside = (rows < T)[:, None]
    cos_r, sin_r, q1, q2, k1, k2, values = _tile(q, k, v, cos, sin, qt, kt, vt, T, MAIN, E)
    dy_rows = tl.load(dy + rows[:, None] * yt + e[None, :], mask=inside, other=0.0)
    dk1, dk2, dvalues = tl.zeros((MAIN, HALF), tl.float32), tl.zeros((MAIN, HALF), tl.float32), tl.zeros((MAIN, E), tl.float32)
    if ONE:
        cos_x, sin_x, qx1, qx2, kx1, kx2 = _beside(q, k, cos, sin, qt, kt, MAIN, HALF)
        vx, dyx = tl.load(v + MAIN * vt + e).to(tl.float32), tl.load(dy + MAIN * yt + e).to(tl.float32)
        last, own = _last_weights(k1, k2, kx1, kx2, qx1, qx2, scale * 1.4426950408889634)
        dlast, down = tl.sum(values.to(tl.float32) * dyx[None, :], 1), tl.sum(vx * dyx, 0)
        pulled = tl.sum(last * dlast, 0) + own * down
        dlast, down = last * (dlast - pulled) * scale, own * (down - pulled) * scale
        dk1 += dlast[:, None] * qx1.to(tl.float32)[None, :]
        dk2 += dlast[:, None] * qx2.to(tl.float32)[None, :]
        dvalues += last[:, None] * dyx[None, :]
        dkx1, dkx2, dvx = down * qx1.to(tl.float32), down * qx2.to(tl.float32), own * dyx
        dqx1 = tl.sum(dlast[:, None] * k1.to(tl.float32), 0) + down * kx1.to(tl.float32)
        dqx2 = tl.sum(dlast[:, None] * k2.to(tl.float32), 0) + down * kx2.to(tl.float32)
        _store_turned_back(dq + MAIN * gt + half, HALF, half < HALF, dqx1, dqx2, cos_x, sin_x)
    scores = _scores(q1, q2, k1, k2, rows, T, scale * 1.4426950408889634, CAUSAL)
    most = tl.max(scores, 1)
    if ONE and not CAUSAL:
        beside = _along(q1, q2, kx1, kx2) * (scale * 1.4426950408889634)
        most = tl.maximum(most, beside)
        beside = tl.exp2(beside - most)
    weights = tl.exp2(scores - most[:, None])
    total = tl.sum(weights, 1)
    if ONE and not CAUSAL:
        total += beside
        beside = beside / total
    weights = weights / total[:, None]
    dvalues = tl.dot(tl.trans(weights.to(kind)), dy_rows, dvalues, input_precision="ieee")
    dweights = tl.dot(dy_rows, tl.trans(values), input_precision="ieee")
    pulled = tl.sum(weights * dweights, 1)
    if ONE and not CAUSAL:
        dbeside = tl.sum(dy_rows.to(tl.float32) * vx[None, :], 1)
        pulled += beside * dbeside
        dbeside = beside * (dbeside - pulled) * scale
        dvx += tl.sum(beside[:, None] * dy_rows.to(tl.float32), 0)
        dkx1 += tl.sum(dbeside[:, None] * q1.to(tl.float32), 0)
        dkx2 += tl.sum(dbeside[:, None] * q2.to(tl.float32), 0)
    dscores = (weights * (dweights - pulled[:, None]) * scale).to(kind)
    dk1 = tl.dot(tl.trans(dscores), q1, dk1, input_precision="ieee")
    dk2 = tl.dot(tl.trans(dscores), q2, dk2, input_precision="ieee")
    dq1 = tl.dot(dscores, k1, input_precision="ieee")
    dq2 = tl.dot(dscores, k2, input_precision="ieee")
    if ONE:
        if not CAUSAL:
            dq1 += dbeside[:, None] * kx1.to(tl.float32)[None, :]
            dq2 += dbeside[:, None] * kx2.to(tl.float32)[None, :]
        _store_turned_back(dk + MAIN * ht + half, HALF, half < HALF, dkx1, dkx2, cos_x, sin_x)
        tl.store(dv + MAIN * ht + e, dvx.to(kind))
    _store_turned_back(dq + rows[:, None] * gt + half[None, :], HALF, inside, dq1, dq2, cos_r, sin_r)
    _store_turned_back(dk + rows[:, None] * ht + half[None, :], HALF, inside, dk1, dk2, cos_r, sin_r)
    tl.store(dv + rows[:, None] * ht + e[None, :], dvalues.to(kind), mask=inside)
