"""Rotary attention over short sequences: one Triton kernel forward, one backward.

    y = softmax(rotate(q) · rotate(k)ᵀ / √E) · v

One program computes one head of one sequence. It reads queries, keys and values as the projections leave them, rotates them while
loading, keeps all scores on the chip, and writes in the layout that the output projection reads. The backward recomputes the scores.

Why: PyTorch's attention kernels are made for thousands of keys. For letters (256 × 65 positions, 8 heads of 32) on an H200, attention
alone took 44 µs forward and 122 backward there, and takes 23 and 60 here with rotation and layout included; a training step went from
7.49 to 5.81 ms (docs/performance.md, "attention of 65 positions").

Inputs and outputs have one dtype, sums are float32.

Shapes: B sequences, T positions (2 … 128), M heads, E head width (32 or 64), F = M · E, P = 3 F or 2 F.
In the kernels: `1` and `2` are the halves of a head that rotate together; `x` is the extra position beside the tile (see `_tiling`).
"""

import triton
import triton.language as tl
from torch import Tensor

from freetf_cli.kernels.rotary_triton import rotated
from freetf_cli.kernels.support import operator

LOG2_E = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(x · log2 e)


@operator(lambda dy, packed, q, *rest: (packed.new_empty(packed.shape), dy.new_empty(0 if q is None else dy.shape)))
def attend_backward(
    dy_BTF: Tensor, packed_BTP: Tensor, q_BTF: Tensor | None, cos_TH: Tensor, sin_TH: Tensor, heads: int, causal: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of packed and q. q's is empty where q is None: an operator cannot return None."""
    dy_BTF, inputs = _with_dense_rows(dy_BTF), _split(_with_dense_rows(packed_BTP), q_BTF)
    batch, length, width = inputs[1].shape
    dpacked_BTP = packed_BTP.new_empty(packed_BTP.shape)
    dq_BTF = None if q_BTF is None else q_BTF.new_empty(batch, length, width)
    outputs, head_width, (main, extra) = _split(dpacked_BTP, dq_BTF), width // heads, _tiling(length)
    _backward[(batch * heads,)](
        *(dy_BTF, *inputs, cos_TH, sin_TH, *outputs),
        *(stride for tensor in (dy_BTF, *inputs, *outputs[:2]) for stride in tensor.stride()[:2]),
        *(length, heads, head_width, causal, main, extra),
        num_warps=4,
        maxnreg=128 if causal and head_width == 32 and main <= 64 else None,  # four programs on a multiprocessor: 60 µs instead of 69
    )
    return dpacked_BTP, dy_BTF.new_empty(0) if dq_BTF is None else dq_BTF


@operator(
    lambda packed, q, *rest: packed.new_empty(*packed.shape[:2], packed.shape[2] // (3 if q is None else 2)), backward=attend_backward
)
def attend(packed_BTP: Tensor, q_BTF: Tensor | None, cos_TH: Tensor, sin_TH: Tensor, heads: int, causal: bool) -> Tensor:
    """y [B, T, F]. packed: q, k, v side by side, or k, v where q is given (any strides but the last, which is 1). cos, sin: float32."""
    inputs = _split(_with_dense_rows(packed_BTP), q_BTF)
    batch, length, width = inputs[1].shape
    out_BTF = packed_BTP.new_empty(batch, length, width)
    _forward[(batch * heads,)](
        *(*inputs, cos_TH, sin_TH, out_BTF),
        *(stride for tensor in inputs for stride in tensor.stride()[:2]),
        *(length, heads, width // heads, causal, *_tiling(length)),
        num_warps=4,
    )
    return out_BTF


def _with_dense_rows(x_BTF: Tensor) -> Tensor:
    return x_BTF if x_BTF.stride(-1) == 1 else x_BTF.contiguous()


def _split(packed_BTP: Tensor, q_BTF: Tensor | None) -> tuple[Tensor, ...]:
    """Views of queries, keys and values."""
    return packed_BTP.chunk(3, -1) if q_BTF is None else (q_BTF, *packed_BTP.chunk(2, -1))


def _tiling(length: int) -> tuple[int, bool]:
    """Positions of the tile, a power of two, and whether there is one extra position beside it.

    A tile of 128 for 65 positions would be half empty. Rows of a prompt's token and 2ⁿ places, as most tasks have, are all so long.
    """
    whole = max(16, triton.next_power_of_2(length))
    return (whole // 2, True) if whole > 16 and length == whole // 2 + 1 else (whole, False)


@triton.jit
def _load_rotated(at, half, mask, cos, sin):
    """Both halves of a head at some positions, rotated."""
    return rotated(tl.load(at, mask=mask, other=0.0), tl.load(at + half, mask=mask, other=0.0), cos, sin)


@triton.jit
def _store_rotated_back(at, half, mask, first, second, cos, sin):
    """Store the gradient of a head before its rotation, from that after it: the inverse rotation."""
    kind: tl.constexpr = at.dtype.element_ty
    tl.store(at, (first * cos + second * sin).to(kind), mask=mask)
    tl.store(at + half, (second * cos - first * sin).to(kind), mask=mask)


@triton.jit
def _load_tile(q, k, v, cos, sin, qt, kt, vt, T, MAIN: tl.constexpr, E: tl.constexpr):
    """The tile's angles, the rotated halves of its queries and keys, and its values; 0 beyond T."""
    HALF: tl.constexpr = E // 2
    rows, e, half = tl.arange(0, MAIN), tl.arange(0, E), tl.arange(0, HALF)
    inside = (rows < T)[:, None]
    angles = rows[:, None] * HALF + half[None, :]
    cos_r, sin_r = tl.load(cos + angles, mask=inside, other=0.0), tl.load(sin + angles, mask=inside, other=0.0)
    q1, q2 = _load_rotated(q + rows[:, None] * qt + half[None, :], HALF, inside, cos_r, sin_r)
    k1, k2 = _load_rotated(k + rows[:, None] * kt + half[None, :], HALF, inside, cos_r, sin_r)
    return cos_r, sin_r, q1, q2, k1, k2, tl.load(v + rows[:, None] * vt + e[None, :], mask=inside, other=0.0)


@triton.jit
def _load_extra(q, k, cos, sin, qt, kt, MAIN: tl.constexpr, HALF: tl.constexpr):
    """The same for the extra position, without its value."""
    half = tl.arange(0, HALF)
    cos_x, sin_x = tl.load(cos + MAIN * HALF + half), tl.load(sin + MAIN * HALF + half)
    qx1, qx2 = _load_rotated(q + MAIN * qt + half, HALF, half < HALF, cos_x, sin_x)
    kx1, kx2 = _load_rotated(k + MAIN * kt + half, HALF, half < HALF, cos_x, sin_x)
    return cos_x, sin_x, qx1, qx2, kx1, kx2


@triton.jit
def _dots(a1, a2, b1, b2):
    """Dot products of the heads at some positions with one head, [rows]."""
    return tl.sum(a1.to(tl.float32) * b1.to(tl.float32)[None, :] + a2.to(tl.float32) * b2.to(tl.float32)[None, :], 1)


@triton.jit
def _dot(a1, a2, b1, b2):
    """The dot product of two heads."""
    return tl.sum(a1.to(tl.float32) * b1.to(tl.float32) + a2.to(tl.float32) * b2.to(tl.float32), 0)


@triton.jit
def _weights(q1, q2, k1, k2, kx1, kx2, rows, T, scale, CAUSAL: tl.constexpr, SEES_EXTRA: tl.constexpr):
    """exp2(scores − largest) of the tile's queries, over the tile's keys and over the extra key; and the sum of both."""
    scores = tl.dot(q2, tl.trans(k2), tl.dot(q1, tl.trans(k1), input_precision="ieee"), input_precision="ieee") * scale
    seen = rows[None, :] < T
    if CAUSAL:
        seen = seen & (rows[None, :] <= rows[:, None])
    scores = tl.where(seen, scores, float("-inf"))
    largest = tl.max(scores, 1)
    on_extra = largest
    if SEES_EXTRA:
        on_extra = _dots(q1, q2, kx1, kx2) * scale
        largest = tl.maximum(largest, on_extra)
        on_extra = tl.exp2(on_extra - largest)
    weights = tl.exp2(scores - largest[:, None])
    total = tl.sum(weights, 1)
    if SEES_EXTRA:
        total += on_extra
    return weights, on_extra, total


@triton.jit
def _extra_weights(k1, k2, kx1, kx2, qx1, qx2, scale):
    """Attention weights of the extra position, which sees every key: over the tile's keys, and on its own."""
    scores = _dots(k1, k2, qx1, qx2) * scale
    own = _dot(kx1, kx2, qx1, qx2) * scale
    largest = tl.maximum(tl.max(scores, 0), own)
    scores, own = tl.exp2(scores - largest), tl.exp2(own - largest)
    share = 1.0 / (tl.sum(scores, 0) + own)
    return scores * share, own * share


@triton.jit
def _forward(
    q, k, v, cos, sin, out, qb, qt, kb, kt, vb, vt,
    T, HEADS: tl.constexpr, E: tl.constexpr, CAUSAL: tl.constexpr, MAIN: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """y = softmax(rotate(q) · rotate(k)ᵀ / √E) · v of one head of one sequence."""
    kind: tl.constexpr = out.dtype.element_ty
    F: tl.constexpr = HEADS * E
    HALF: tl.constexpr = E // 2
    b = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS * E
    q, k, v, out = q + b * qb + head, k + b * kb + head, v + b * vb + head, out + b * T * F + head
    scale = LOG2_E / (E**0.5)
    rows, e = tl.arange(0, MAIN), tl.arange(0, E)
    inside = (rows < T)[:, None]
    _, _, q1, q2, k1, k2, values = _load_tile(q, k, v, cos, sin, qt, kt, vt, T, MAIN, E)
    kx1, kx2 = k1, k2
    if EXTRA:
        _, _, qx1, qx2, kx1, kx2 = _load_extra(q, k, cos, sin, qt, kt, MAIN, HALF)
        vx = tl.load(v + MAIN * vt + e).to(tl.float32)
        weights, own = _extra_weights(k1, k2, kx1, kx2, qx1, qx2, scale)
        yx = tl.sum(weights[:, None] * values.to(tl.float32), 0) + own * vx
        tl.store(out + MAIN * F + e, yx.to(kind))
    weights, on_extra, total = _weights(q1, q2, k1, k2, kx1, kx2, rows, T, scale, CAUSAL, EXTRA and not CAUSAL)
    y = tl.dot(weights.to(kind), values, input_precision="ieee")
    if EXTRA and not CAUSAL:
        y += on_extra[:, None] * vx[None, :]
    tl.store(out + rows[:, None] * F + e[None, :], (y / total[:, None]).to(kind), mask=inside)


@triton.jit
def _backward(
    dy, q, k, v, cos, sin, dq, dk, dv, yb, yt, qb, qt, kb, kt, vb, vt, gb, gt, hb, ht,
    T, HEADS: tl.constexpr, E: tl.constexpr, CAUSAL: tl.constexpr, MAIN: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """Gradients of one head of one sequence, rotated back, from the attention weights A, computed again.

    dv = Aᵀ dy,  dA = dy vᵀ,  dS = A ∘ (dA − delta) / √E with delta = Σ_keys A ∘ dA,  dq = dS k,  dk = dSᵀ q
    """
    kind: tl.constexpr = dv.dtype.element_ty
    HALF: tl.constexpr = E // 2
    b = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS * E
    dy, q, k, v = dy + b * yb + head, q + b * qb + head, k + b * kb + head, v + b * vb + head
    dq, dk, dv = dq + b * gb + head, dk + b * hb + head, dv + b * hb + head
    scale = 1.0 / (E**0.5)
    rows, e, half = tl.arange(0, MAIN), tl.arange(0, E), tl.arange(0, HALF)
    inside = (rows < T)[:, None]
    cos_r, sin_r, q1, q2, k1, k2, values = _load_tile(q, k, v, cos, sin, qt, kt, vt, T, MAIN, E)
    dy_rows = tl.load(dy + rows[:, None] * yt + e[None, :], mask=inside, other=0.0)
    dk1, dk2, dvalues = tl.zeros((MAIN, HALF), tl.float32), tl.zeros((MAIN, HALF), tl.float32), tl.zeros((MAIN, E), tl.float32)
    kx1, kx2 = k1, k2
    if EXTRA:
        cos_x, sin_x, qx1, qx2, kx1, kx2 = _load_extra(q, k, cos, sin, qt, kt, MAIN, HALF)
        vx, dyx = tl.load(v + MAIN * vt + e).to(tl.float32), tl.load(dy + MAIN * yt + e).to(tl.float32)
        last, own = _extra_weights(k1, k2, kx1, kx2, qx1, qx2, scale * LOG2_E)
        dlast, down = tl.sum(values.to(tl.float32) * dyx[None, :], 1), tl.sum(vx * dyx, 0)
        delta_x = tl.sum(last * dlast, 0) + own * down
        dlast, down = last * (dlast - delta_x) * scale, own * (down - delta_x) * scale
        dk1 += dlast[:, None] * qx1.to(tl.float32)[None, :]
        dk2 += dlast[:, None] * qx2.to(tl.float32)[None, :]
        dvalues += last[:, None] * dyx[None, :]
        dkx1, dkx2, dvx = down * qx1.to(tl.float32), down * qx2.to(tl.float32), own * dyx
        dqx1 = tl.sum(dlast[:, None] * k1.to(tl.float32), 0) + down * kx1.to(tl.float32)
        dqx2 = tl.sum(dlast[:, None] * k2.to(tl.float32), 0) + down * kx2.to(tl.float32)
        _store_rotated_back(dq + MAIN * gt + half, HALF, half < HALF, dqx1, dqx2, cos_x, sin_x)
    weights, on_extra, total = _weights(q1, q2, k1, k2, kx1, kx2, rows, T, scale * LOG2_E, CAUSAL, EXTRA and not CAUSAL)
    on_extra, weights = on_extra / total, weights / total[:, None]
    dvalues = tl.dot(tl.trans(weights.to(kind)), dy_rows, dvalues, input_precision="ieee")
    dweights = tl.dot(dy_rows, tl.trans(values), input_precision="ieee")
    delta = tl.sum(weights * dweights, 1)
    if EXTRA and not CAUSAL:
        dextra = tl.sum(dy_rows.to(tl.float32) * vx[None, :], 1)
        delta += on_extra * dextra
        dextra = on_extra * (dextra - delta) * scale
        dvx += tl.sum(on_extra[:, None] * dy_rows.to(tl.float32), 0)
        dkx1 += tl.sum(dextra[:, None] * q1.to(tl.float32), 0)
        dkx2 += tl.sum(dextra[:, None] * q2.to(tl.float32), 0)
    dscores = (weights * (dweights - delta[:, None]) * scale).to(kind)
    dk1 = tl.dot(tl.trans(dscores), q1, dk1, input_precision="ieee")
    dk2 = tl.dot(tl.trans(dscores), q2, dk2, input_precision="ieee")
    dq1 = tl.dot(dscores, k1, input_precision="ieee")
    dq2 = tl.dot(dscores, k2, input_precision="ieee")
    if EXTRA:
        if not CAUSAL:
            dq1 += dextra[:, None] * kx1.to(tl.float32)[None, :]
            dq2 += dextra[:, None] * kx2.to(tl.float32)[None, :]
        _store_rotated_back(dk + MAIN * ht + half, HALF, half < HALF, dkx1, dkx2, cos_x, sin_x)
        tl.store(dv + MAIN * ht + e, dvx.to(kind))
    _store_rotated_back(dq + rows[:, None] * gt + half[None, :], HALF, inside, dq1, dq2, cos_r, sin_r)
    _store_rotated_back(dk + rows[:, None] * ht + half[None, :], HALF, inside, dk1, dk2, cos_r, sin_r)
    tl.store(dv + rows[:, None] * ht + e[None, :], dvalues.to(kind), mask=inside)
