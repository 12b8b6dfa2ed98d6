"""The gradient of the rotary embedding and of the split into queries, keys and values, written by a Triton kernel where it is wanted.

Queries, keys and values are one product, [N, (M + 2 K) E]; its backward wants one tensor of that shape. torch.compile joins the three
gradients by asking of every number of it whose it is, and reads heads and positions against the order of memory: at 12 heads of 64 a ninth
of the whole step. Here a program reads a head of some positions from where it lies and writes it where it belongs.

Shapes: B sequences, T positions, M heads of a part, E head width, F = E/2 angles; BT positions of a tile.
"""

import triton
import triton.language as tl
from torch import Tensor

_TILE = 64


def pack_gradients(parts_BTME: list[Tensor], cos_TF: Tensor, sin_TF: Tensor, turned: int) -> Tensor:
    """[B, T, P] from the gradients of its parts; the first `turned` of them were rotated after the split, and are turned back."""
    batch, length, _, width = parts_BTME[0].shape
    parts_BTME = [part if part.stride(-1) == 1 else part.contiguous() for part in parts_BTME]
    heads = sum(part.shape[2] for part in parts_BTME)
    packed_BTP = parts_BTME[0].new_empty(batch, length, heads * width)
    at = 0
    for place, part in enumerate(parts_BTME):
        _written[(triton.cdiv(length, _TILE), part.shape[2], batch)](
            part, cos_TF, sin_TF, packed_BTP, length, *part.stride()[:3], heads * width, at, width // 2, _TILE, place < turned
        )
        at += part.shape[2] * width
    return packed_BTP


@triton.jit
def _written(part, cos_TF, sin_TF, packed, T, stride_b, stride_t, stride_m, P, at, F: tl.constexpr, BT: tl.constexpr, TURNED: tl.constexpr):
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    f = tl.arange(0, F)
    inside = (t < T)[:, None]
    source = part + row * stride_b + head * stride_m + t.to(tl.int64)[:, None] * stride_t + f[None, :]
    first = tl.load(source, mask=inside, other=0.0)
    second = tl.load(source + F, mask=inside, other=0.0)
    target = packed + (row * T + t)[:, None] * P + at + head * 2 * F + f[None, :]
    if TURNED:
        angle = t[:, None] * F + f[None, :]
        cos = tl.load(cos_TF + angle, mask=inside, other=0.0)
        sin = tl.load(sin_TF + angle, mask=inside, other=0.0)
        a, b = first.to(tl.float32), second.to(tl.float32)
        first, second = (a * cos + b * sin).to(first.dtype), (b * cos - a * sin).to(second.dtype)
    tl.store(target, first, mask=inside)
    tl.store(target + F, second, mask=inside)
