"""DIFF Transformer's attention (Ye et al., arXiv 2410.05258): the difference of two softmax maps reads values of twice the width.

    (softmax(Q₁K₁ᵀ/√E) − λ softmax(Q₂K₂ᵀ/√E)) V,  λ = exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ_init

Shapes: B sequences, T positions, S cached and new positions, D width, M query heads and K key heads, N = M/2 pairs, E head width, F = 2E.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli.config.recipe import ModelConfig
from freetf_cli.model.attention.head_norm import HeadNorm, lambda_init
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.context import Context, LayerCache


class Differential(Attention):
    """Heads 2n and 2n + 1 are the two maps of one head of width 2E, and so are key heads; M/K pairs of queries share a pair of keys.

    The maps never meet before they have read the values, so that none has to be made in full where PyTorch has a fused kernel for values
    wider than keys; on a CPU it has none. Shared keys are repeated here.
    """

    softmax = False

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__(config, index)
        self.lambda_init = lambda_init(index)
        self.lambdas = nn.Parameter(torch.zeros(2, 2, self.head_width))  # map, query and key; shared by the heads
        self.norm = HeadNorm(2 * self.head_width, config.norm_eps, "depth", index)

    def attend(self, q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        """As `Attention.attend`; its heads are of width F, half as many."""
        k_BMSE = by_map(k_BKSE).repeat_interleave(self.heads // self.key_heads, dim=1)
        v_BMSF = pairs(v_BKSE).transpose(2, 3).flatten(3).repeat_interleave(self.heads // self.key_heads, dim=1).repeat(1, 2, 1, 1)
        causal = ctx.causal and ctx.mask is None and q_BMTE.shape[2] == k_BKSE.shape[2]
        y_BMTF = F.scaled_dot_product_attention(by_map(q_BMTE), k_BMSE, v_BMSF, attn_mask=ctx.mask, is_causal=causal)
        first_BNTF, second_BNTF = y_BMTF.chunk(2, dim=1)
        return self.norm(first_BNTF - self.subtracted().to(y_BMTF.dtype) * second_BNTF)

    def subtracted(self) -> Tensor:
        """λ, the weight of the second map."""
        first, second = self.lambdas.prod(dim=1).sum(dim=-1).exp()
        return first - second + self.lambda_init

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """The paper's N(0, 0.1²)."""
        self.lambdas.copy_(torch.randn(self.lambdas.shape, generator=generator) * 0.1)


def by_map(x_BMTE: Tensor) -> Tensor:
    """Heads in the order of their map: all the first of a pair, then all the second."""
    return pairs(x_BMTE).transpose(1, 2).flatten(1, 2)


def pairs(x_BMTE: Tensor) -> Tensor:
    """Heads 2n and 2n + 1 together, [B, N, 2, T, E]."""
    return x_BMTE.view(len(x_BMTE), -1, 2, *x_BMTE.shape[2:])
