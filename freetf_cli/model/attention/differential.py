"""Differential attention (DIFF Transformer, Ye et al., arXiv 2410.05258): the difference of two softmax attentions.

    (softmax(Q₁K₁ᵀ/√E) − λ softmax(Q₂K₂ᵀ/√E)) V,  λ = exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ_init

Shapes: B sequences, T positions, S cached and new positions, D width, M query heads and K key heads, N = M/2 pairs, E head width, F = 2E.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from freetf_cli.config.recipe import ModelConfig
from freetf_cli.model.attention.head_norm import HeadNorm, lambda_init
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.context import Context, LayerCache
from freetf_cli.model.weights import Draws


class Differential(Attention):
    """Heads 2n and 2n + 1 form one head with values of width 2E; key heads are paired likewise, and M/K pairs of queries share them.

    The two attentions are subtracted after they have read the values, so the weights need not be materialised where PyTorch has a
    fused kernel for values wider than keys (CUDA, not CPUs). Shared keys are repeated.
    """

    softmax = False

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__(config, index)
        self.lambda_init = lambda_init(index)
        self.lambdas = nn.Parameter(torch.zeros(2, 2, self.head_width))  # [first or second attention, query or key, E]; shared by the heads
        self.norm = HeadNorm(2 * self.head_width, config.norm_eps, "depth", index)

    def attend(self, q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        """What each pair of heads returns, [B, N, T, F]."""
        k_BMSE = firsts_then_seconds(k_BKSE).repeat_interleave(self.heads // self.key_heads, dim=1)
        v_BMSF = pairs(v_BKSE).transpose(2, 3).flatten(3).repeat_interleave(self.heads // self.key_heads, dim=1).repeat(1, 2, 1, 1)
        y_BMTF = super().attend(firsts_then_seconds(q_BMTE), k_BMSE, v_BMSF, ctx, cache)
        first_BNTF, second_BNTF = y_BMTF.chunk(2, dim=1)
        return self.norm(first_BNTF - self.subtracted().to(y_BMTF.dtype) * second_BNTF)

    def subtracted(self) -> Tensor:
        """λ, the weight of the second attention."""
        first, second = self.lambdas.prod(dim=1).sum(dim=-1).exp()
        return first - second + self.lambda_init

    def flops(self, context: int, causal: bool = True) -> float:
        """Values are twice as wide as keys."""
        return 1.5 * super().flops(context, causal)

    def kept_bytes(self, rows: int, context: int, size: int, documents: bool) -> float:
        """In float32 the output of the softmax: CPUs have no fused kernel for values that are wider than keys."""
        return float(size * rows * self.heads * context**2) if size == 4 else 0.0

    @torch.no_grad()
    def initialise(self, draws: Draws) -> None:
        """Draw λ_q and λ_k from N(0, 0.1²), as the paper does."""
        draws.normal("lambdas", self.lambdas, 0.1)


def firsts_then_seconds(x_BMTE: Tensor) -> Tensor:
    """Heads reordered: the first of every pair, then the second of every pair."""
    return pairs(x_BMTE).transpose(1, 2).flatten(1, 2)


def pairs(x_BMTE: Tensor) -> Tensor:
    """Heads 2n and 2n + 1 together, [B, N, 2, T, E]."""
    return x_BMTE.view(len(x_BMTE), -1, 2, *x_BMTE.shape[2:])
