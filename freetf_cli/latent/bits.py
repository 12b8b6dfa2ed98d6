"""Codes and their bits, for the parts of the binary latent. The lowest bit is first; H bits, B sequences, T positions, D width."""

from __future__ import annotations

import torch
from torch import Tensor

from freetf_cli.model.weights import Draws


def code_bits(codes: Tensor, bits: int) -> Tensor:
    """The bits of codes, [..., H] in {0, 1}, lowest first."""
    return (codes[..., None] >> torch.arange(bits, device=codes.device)) & 1


def code_of(bits: Tensor) -> Tensor:
    """The codes (int64) of bits [..., H], lowest first."""
    return (bits * 2 ** torch.arange(bits.shape[-1], device=bits.device)).sum(-1)


def signs(codes: Tensor, bits: int) -> Tensor:
    """The bits of codes as −1 and 1, [..., H]."""
    return 2.0 * code_bits(codes, bits) - 1.0


def bit_directions(bits: int, width: int, std: float, draws: Draws) -> Tensor:
    """Random directions a_h [H, D], whose sums Σ_h ±a_h have entries of deviation `std`."""
    return draws.block("directions", (bits, width)) * std / bits**0.5


def twice_drawn(codes_BT: Tensor, bit_logits_BTH: Tensor) -> Tensor:
    """2 P(B_h as drawn), [B, T, H], clamped at 0.002: below, the gradient's factor p (1 − p) is lost to rounding in bfloat16."""
    signs_BTH = signs(codes_BT, bit_logits_BTH.shape[-1])
    return 2.0 * torch.sigmoid(signs_BTH * at_least_float32(bit_logits_BTH)).clamp(min=1e-3)


def at_least_float32(values: Tensor) -> Tensor:
    """Widen bfloat16, whose rounding errors a later sum over bits and positions would add up."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
