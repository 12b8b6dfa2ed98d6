"""A post-sampler with few parameters, by the Walsh basis. Not the paper's; `latent.table.order = k` chooses it.

Any table is W_z = Σ_S w_S χ_S(z), a sum over sets S of bits with χ_S(z) = Π_{h ∈ S} ±1, where the sign is + if bit h is set. Here only sets
of 1 to k bits have a vector w_S: 16, 136 and 696 vectors for k = 1, 2 and 3 of 16 bits, instead of the 65,536 of the full table.

If the bits are independent with P(B_h = 1) = σ(l_h), χ_S has the mean Π_{h ∈ S} tanh(l_h / 2). Equation 8 gives the logits the gradient of
the mean of Y W, here of Σ_S w_S Π_{h ∈ S} tanh(l_h / 2): no product with 2^H rows is needed.

Shapes: B sequences, T positions, H bits, S sets of bits, D width.
"""

from __future__ import annotations

from math import comb
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli.latent.bits import at_least_float32, bit_directions, signs, twice_drawn
from freetf_cli.model.weights import Draws, fill


class LowOrderTable(nn.Module):
    """r = Σ_S w_S χ_S(z) from weights w [S, D]: sets of one bit first, then those of two, …, each in the order of `features`."""

    def __init__(self, bits: int, width: int, order: int, gradient: Literal["paper", "heun"] = "paper") -> None:
        super().__init__()
        self.bits, self.order, self.gradient = bits, order, gradient
        sets = count_sets(bits, order)
        self.weight, self.rows = nn.Parameter(torch.empty(sets, width)), f"{sets} rows (sets of at most {order} bits)"

    def forward(self, codes_BT: Tensor, bit_logits_BTH: Tensor | None = None) -> Tensor:
        """r [B, T, D] of codes; with the logits that they were sampled from, the gradient of equation 8, or Heun's, flows to the logits."""
        features_BTS = self.features(signs(codes_BT, self.bits).to(self.weight.dtype))
        if bit_logits_BTH is not None:
            logits_BTH = at_least_float32(bit_logits_BTH)
            if self.gradient == "heun":
                logits_BTH = _ScaledGradient.apply(logits_BTH, 1 / twice_drawn(codes_BT, bit_logits_BTH))  # type: ignore[no-untyped-call]
            mean_BTS = self.features(torch.tanh(logits_BTH / 2)).to(features_BTS.dtype)
            features_BTS = features_BTS + (mean_BTS - mean_BTS.detach())
        return features_BTS @ self.weight

    def features(self, signs_BTH: Tensor) -> Tensor:
        """χ_S of signs [B, T, S], or its mean from the means of independent signs: their product over each set.

        The sets of k bits with the largest bit h are those of k − 1 lower bits, each with h. These come first among all sets of k − 1 bits.
        """
        sizes = [signs_BTH]
        for size in range(2, self.order + 1):
            largest = range(size - 1, self.bits)
            sizes.append(torch.cat([sizes[-1][..., : comb(h, size - 1)] * signs_BTH[..., h : h + 1] for h in largest], -1))
        return torch.cat(sizes, -1)

    @torch.no_grad()
    def initialise(self, kind: Literal["bits", "independent"], std: float, draws: Draws) -> None:
        """Set w so that r has entries of deviation `std`. With "bits", r is that of a full table, whose start has order 1."""
        if kind == "independent":
            draws.normal("weight", self.weight, std / len(self.weight) ** 0.5)
            return
        start_SD = F.pad(bit_directions(self.bits, self.weight.shape[1], std, draws), (0, 0, 0, len(self.weight) - self.bits))
        fill(self.weight, lambda rows: start_SD[rows.start : rows.stop])


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose backward multiplies the gradient by a factor."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dx: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return dx * ctx.saved_tensors[0], None


def count_sets(bits: int, order: int) -> int:
    """The number of sets of 1 to `order` of `bits` bits."""
    return sum(comb(bits, size) for size in range(1, order + 1))


def full_table(low: LowOrderTable) -> Tensor:
    """The same function as a table [2^H, D]."""
    codes = torch.arange(2**low.bits, device=low.weight.device)
    return low.features(signs(codes, low.bits).to(low.weight.dtype)) @ low.weight
