"""The rotary position embedding (Su et al., arXiv 2104.09864), and the split of a packed projection into rotated heads.

At position t, the pair (e, e + E/2) of a head is rotated by the angle t · base^(−2e/E):

    (a, b) → (a cos − b sin, b cos + a sin)

Shapes: B sequences, T positions, M heads, E head width, H = E/2 angles, P = all heads' widths side by side.
"""

from typing import Any

import torch
from torch import Tensor

from freetf_cli.kernels.support import operator, runs_kernels

Rotary = tuple[Tensor, Tensor]  # cos and sin, [T, H] each; [B, T, H] where sequences are padded


def rotary_tables(positions_T: Tensor, head_width: int, base: float) -> Rotary:
    """cos and sin of every position's angles, [..., H] each, float32."""
    make = _rotary_tables if torch.compiler.is_compiling() else reference_tables
    return make(positions_T, head_width, base)


def reference_tables(positions_T: Tensor, head_width: int, base: float) -> Rotary:
    frequencies = base ** (-torch.arange(0, head_width, 2, device=positions_T.device, dtype=torch.float32) / head_width)
    angles = positions_T.to(torch.float32)[..., None] * frequencies
    return angles.cos(), angles.sin()


@operator(reference_tables)
def _rotary_tables(positions_T: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """The reference as an operator: torch.compile would recompute cosine and sine for every element of every kernel that rotates."""
    return reference_tables(positions_T, head_width, base)


def rotate(x_BTME: Tensor, rotary: Rotary) -> Tensor:
    """Rotate the heads of every position. Before the transpose to [B, M, T, E] it reads and writes in the order of memory."""
    whole = x_BTME.device.type == "cpu" and not torch.compiler.is_compiling()
    return rotate_rows(x_BTME, rotary) if whole else rotate_halves(x_BTME, rotary)


def rotate_halves(x_BTME: Tensor, rotary: Rotary) -> Tensor:
    """A sum of two products, which compiles to one expression; a concatenation of the two halves would compile to branches."""
    cos_T1H, sin_T1H = (table.to(x_BTME.dtype)[..., None, :] for table in rotary)
    x_BTM2H = x_BTME.view(*x_BTME.shape[:-1], 2, -1)
    rotated_BTM2H = x_BTM2H * cos_T1H[..., None, :] + x_BTM2H.flip(-2) * torch.stack((-sin_T1H, sin_T1H), dim=-2)
    return rotated_BTM2H.flatten(-2)


def rotate_rows(x_BTME: Tensor, rotary: Rotary) -> Tensor:
    """The same numbers by tables as wide as a position: on a CPU, broadcast ones make loops that are no longer than half a head."""
    cos_TH, sin_TH = (table.to(x_BTME.dtype) for table in rotary)
    halves = (cos_TH, cos_TH), (-sin_TH, sin_TH)
    cos_TME, sin_TME = (torch.cat(pair, -1)[..., None, :].repeat_interleave(x_BTME.shape[-2], -2) for pair in halves)
    return x_BTME * cos_TME + x_BTME.roll(x_BTME.shape[-1] // 2, -1) * sin_TME


def rotate_and_split(packed_BTP: Tensor, rotary: Rotary, heads: tuple[int, ...], rotated: int) -> tuple[Tensor, ...]:
    """Split a packed projection into parts [B, T, heads, E] of as many heads as `heads` says, and rotate the first `rotated` parts.

    The kernel needs a table row for each position. The query of an encoder, which all positions share, is one position for many rows.
    """
    width, every_position = packed_BTP.shape[2] // sum(heads), rotary[0].shape[:-1] == packed_BTP.shape[1:2]
    if every_position and width in (32, 64, 128, 256) and packed_BTP.dtype != torch.float64 and runs_kernels(packed_BTP.device):
        parts: tuple[Tensor, ...] = _RotateAndSplit.apply(packed_BTP, *rotary, heads, rotated)  # type: ignore[no-untyped-call]
        return parts
    return reference_split(packed_BTP, rotary, heads, rotated)


def reference_split(packed_BTP: Tensor, rotary: Rotary, heads: tuple[int, ...], rotated: int) -> tuple[Tensor, ...]:
    x_BTME = packed_BTP.view(*packed_BTP.shape[:2], sum(heads), -1)
    return tuple(rotate(part, rotary) if place < rotated else part for place, part in enumerate(torch.split(x_BTME, list(heads), dim=2)))


class _RotateAndSplit(torch.autograd.Function):
    """The reference forward, which torch.compile fuses with its neighbours, and a kernel for its gradient."""

    @staticmethod
    def forward(ctx: Any, packed_BTP: Tensor, cos_TH: Tensor, sin_TH: Tensor, heads: tuple[int, ...], rotated: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos_TH, sin_TH)
        ctx.rotated = rotated
        return reference_split(packed_BTP, (cos_TH, sin_TH), heads, rotated)

    @staticmethod
    def backward(ctx: Any, *d_BTME: Tensor) -> tuple[Tensor, None, None, None, None]:
        from freetf_cli.kernels.rotary_triton import pack_gradients

        cos_TH, sin_TH = ctx.saved_tensors
        return pack_gradients(list(d_BTME), cos_TH, sin_TH, ctx.rotated), None, None, None, None
