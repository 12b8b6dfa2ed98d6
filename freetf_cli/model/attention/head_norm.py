"""RMSNorm of what each head returns (Multi-Token Attention, arXiv 2504.00927; DIFF Transformer, arXiv 2410.05258).

Shapes: B sequences, M heads, T positions, E width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from freetf_cli.model.weights import Draws


def lambda_init(index: int) -> float:
    """0.8 − 0.6 exp(−0.3 l) for block l, counted from 0: the initial λ of DIFF; both papers scale heads by 1 − λ_init."""
    return 0.8 - 0.6 * math.exp(-0.3 * index)


class HeadNorm(nn.Module):
    """n = γ · o / rms(o), γ shared by the heads; returns n σ(u·n + b) ("gate"), n (1 − λ_init) ("depth") or n ("plain")."""

    def __init__(self, width: int, eps: float, mode: str, index: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.scale = eps, 1 - lambda_init(index) if mode == "depth" else 1.0
        self.u = nn.Parameter(torch.zeros(width)) if mode == "gate" else None
        self.b = nn.Parameter(torch.zeros(1)) if mode == "gate" else None

    def forward(self, o_BMTE: Tensor) -> Tensor:
        o_BMTE = o_BMTE.to(self.weight.dtype)  # float32 under autocast, like the norms of the blocks
        n_BMTE = nn.functional.rms_norm(o_BMTE, self.weight.shape, self.weight, self.eps)
        if self.u is None or self.b is None:
            return n_BMTE if self.scale == 1 else n_BMTE * self.scale
        return n_BMTE * torch.sigmoid(n_BMTE @ self.u[:, None] + self.b)

    @torch.no_grad()
    def initialise(self, draws: Draws) -> None:
        """Draw u with deviation E^-1/2; b stays 0.

        n has E entries of mean square 1, so u·n starts with deviation 1 and two thirds of the gates between 0.27 and 0.73. The
        authors' code draws u with deviation D^-1/2 (D: the model's width) and does not set b.
        """
        if self.u is not None:
            draws.normal("u", self.u, len(self.u) ** -0.5)
