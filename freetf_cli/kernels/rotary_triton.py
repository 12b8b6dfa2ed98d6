"""Rotation within Triton kernels, and the gradient of `rotate_and_split`, written into one packed tensor by a Triton kernel.

    (da, db) → (da cos + db sin, db cos − da sin) for rotated parts; a copy for the others

One program moves one head of 64 positions.

Why: queries, keys and values are one product, whose backward needs one gradient [B, T, P]. torch.compile joins the three by testing for
each number which part it belongs to, and reads against the order of memory: a ninth of a step at 12 heads of 64. This takes 2.7 ms less
a step at 1.5B and 3.5 at 124M, on an H200 (docs/performance.md, "what was changed").

Any dtype but float64; the rotation is float32.

Shapes: B sequences, T positions, M heads of a part, E head width, H = E/2 angles, P = widths of all parts side by side.
"""

import triton
import triton.language as tl
from torch import Tensor

from freetf_cli.kernels.support import operator

_TILE = 64  # positions


def _fake_packed(parts_BTME: list[Tensor], cos_TH: Tensor, sin_TH: Tensor, rotated: int) -> Tensor:
    heads, width = sum(part.shape[2] for part in parts_BTME), parts_BTME[0].shape[3]
    return parts_BTME[0].new_empty(*parts_BTME[0].shape[:2], heads * width)


@operator(_fake_packed)
def pack_gradients(parts_BTME: list[Tensor], cos_TH: Tensor, sin_TH: Tensor, rotated: int) -> Tensor:
    """The gradient of the packed projection [B, T, P] from those of its parts, of which the first `rotated` were rotated."""
    parts_BTME = [part if part.stride(-1) == 1 else part.contiguous() for part in parts_BTME]
    packed_BTP = _fake_packed(parts_BTME, cos_TH, sin_TH, rotated)
    (batch, length, total), start = packed_BTP.shape, 0
    for place, part in enumerate(parts_BTME):
        heads, width = part.shape[2:]
        strides = *part.stride()[:3], total
        grid = (triton.cdiv(length, _TILE), heads, batch)
        _written[grid](part, cos_TH, sin_TH, packed_BTP, length, *strides, start, width // 2, _TILE, place < rotated)
        start += heads * width
    return packed_BTP


@triton.jit
def rotated(first, second, cos, sin):
    """The two halves of each head after rotation, in the dtype of the inputs."""
    kind = first.dtype
    first, second = first.to(tl.float32), second.to(tl.float32)
    return (first * cos - second * sin).to(kind), (second * cos + first * sin).to(kind)


@triton.jit
def _written(
    part, cos_TH, sin_TH, packed, T, stride_b, stride_t, stride_m, P, at, H: tl.constexpr, BT: tl.constexpr, ROTATED: tl.constexpr
):
    """One head of one part, for BT positions."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    h = tl.arange(0, H)
    inside = (t < T)[:, None]
    source = part + row * stride_b + head * stride_m + t.to(tl.int64)[:, None] * stride_t + h[None, :]
    first = tl.load(source, mask=inside, other=0.0)
    second = tl.load(source + H, mask=inside, other=0.0)
    target = packed + (row * T + t)[:, None] * P + at + head * 2 * H + h[None, :]
    if ROTATED:
        angle = t[:, None] * H + h[None, :]
        cos = tl.load(cos_TH + angle, mask=inside, other=0.0)
        sin = tl.load(sin_TH + angle, mask=inside, other=0.0)
        a, b = first.to(tl.float32), second.to(tl.float32)
        first, second = (a * cos + b * sin).to(first.dtype), (b * cos - a * sin).to(second.dtype)
    tl.store(target, first, mask=inside)
    tl.store(target + H, second, mask=inside)
