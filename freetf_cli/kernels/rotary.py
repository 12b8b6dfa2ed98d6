"""The rotary position embedding (Su et al., arXiv 2104.09864), and the split of a packed projection into rotated heads.

Pair (e, e + E/2) of a head at position t is turned by the angle t · base^(−2e/E):

    (a, b) → (a cos − b sin, b cos + a sin)

Shapes: B sequences, T positions, M heads, E head width, F = E/2 angles, P = all heads' widths side by side.
"""

from typing import Any

import torch
from torch import Tensor

from freetf_cli.kernels.support import operator, runs_kernels

Rotary = tuple[Tensor, Tensor]  # cos and sin, [T, F] each; [B, T, F] where sequences are padded


def rotary_tables(positions_T: Tensor, head_width: int, base: float) -> Rotary:
    """cos and sin of every position's angles, [..., E/2] each, float32."""
    make = _rotary_tables if torch.compiler.is_compiling() else reference_tables
    return make(positions_T, head_width, base)


def reference_tables(positions_T: Tensor, head_width: int, base: float) -> Rotary:
    frequencies = base ** (-torch.arange(0, head_width, 2, device=positions_T.device, dtype=torch.float32) / head_width)
    angles = positions_T.to(torch.float32)[..., None] * frequencies
    return angles.cos(), angles.sin()


def _fake_tables(positions_T: Tensor, head_width: int, base: float) -> Rotary:
    table = positions_T.new_empty((*positions_T.shape, head_width // 2), dtype=torch.float32)
    return table, torch.empty_like(table)


@operator(_fake_tables)
def _rotary_tables(positions_T: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """The reference, opaque to torch.compile: it would compute a cosine and a sine, which cost more than all the rest, in every kernel that
    rotates a query or a key, for each of its elements."""
    return reference_tables(positions_T, head_width, base)


def rotate(x_BTME: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the heads of every position.

    Written as one product of both halves and one of both exchanged, because torch.compile makes branches of two results that are
    concatenated; and on [B, T, M, E], before heads and positions change places, so that it reads and writes in the order of memory.
    """
    cos_T1F, sin_T1F = (table.to(x_BTME.dtype)[..., None, :] for table in rotary)
    x_BTM2F = x_BTME.view(*x_BTME.shape[:-1], 2, -1)
    turned_BTM2F = x_BTM2F * cos_T1F[..., None, :] + x_BTM2F.flip(-2) * torch.stack((-sin_T1F, sin_T1F), dim=-2)
    return turned_BTM2F.flatten(-2)


def rotate_and_split(packed_BTP: Tensor, rotary: Rotary, heads: tuple[int, ...], rotated: int) -> tuple[Tensor, ...]:
    """Split projections that lie side by side into parts of so many heads each, [B, T, heads, E]; the first `rotated` parts are rotated.

    The tables may have more positions than the projection has, if that has only one: the query that all positions share.
    """
    width, every_position = packed_BTP.shape[2] // sum(heads), rotary[0].shape[:-1] == packed_BTP.shape[1:2]
    if every_position and width in (32, 64, 128, 256) and packed_BTP.dtype != torch.float64 and runs_kernels(packed_BTP.device):
        parts: tuple[Tensor, ...] = _RotateAndSplit.apply(packed_BTP, *rotary, heads, rotated)  # type: ignore[no-untyped-call]
        return parts
    return reference_split(packed_BTP, rotary, heads, rotated)


def reference_split(packed_BTP: Tensor, rotary: Rotary, heads: tuple[int, ...], rotated: int) -> tuple[Tensor, ...]:
    x_BTME = packed_BTP.view(*packed_BTP.shape[:2], sum(heads), -1)
    return tuple(rotate(part, rotary) if place < rotated else part for place, part in enumerate(torch.split(x_BTME, list(heads), dim=2)))


def _fake_packed(parts_BTME: list[Tensor], cos_TF: Tensor, sin_TF: Tensor, rotated: int) -> Tensor:
    first = parts_BTME[0]
    return first.new_empty(*first.shape[:2], sum(part.shape[2] for part in parts_BTME) * first.shape[3])


@operator(_fake_packed)
def pack_gradients(parts_BTME: list[Tensor], cos_TF: Tensor, sin_TF: Tensor, rotated: int) -> Tensor:
    """The gradient [B, T, P] of packed projections from those of their parts."""
    from freetf_cli.kernels import rotary_triton

    return rotary_triton.pack_gradients(parts_BTME, cos_TF, sin_TF, rotated)


class _RotateAndSplit(torch.autograd.Function):
    """The reference, which torch.compile fuses, with the kernel for its gradient."""

    @staticmethod
    def forward(ctx: Any, packed_BTP: Tensor, cos_TF: Tensor, sin_TF: Tensor, heads: tuple[int, ...], rotated: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos_TF, sin_TF)
        ctx.rotated = rotated
        return reference_split(packed_BTP, (cos_TF, sin_TF), heads, rotated)

    @staticmethod
    def backward(ctx: Any, *d_BTME: Tensor) -> tuple[Tensor, None, None, None, None]:
        cos_TF, sin_TF = ctx.saved_tensors
        return pack_gradients(list(d_BTME), cos_TF, sin_TF, ctx.rotated), None, None, None, None
