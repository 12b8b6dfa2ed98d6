"""Talking-Heads attention (Shazeer et al., arXiv 2003.02436): heads mix their scores before the softmax and their weights after it.

    A' = w_post softmax(w_pre Q Kᵀ / √E)

Shapes: B sequences, T positions, S cached and new positions, M heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from freetf_cli import kernels
from freetf_cli.config.recipe import ModelConfig
from freetf_cli.model.attention.materialised import MaterialisedAttention, identity_mix
from freetf_cli.model.context import Context, LayerCache


class TalkingHeads(MaterialisedAttention):
    """Both mixes are [M, M] over all heads and start as the identity. Each is one more pass over the attention weights."""

    def __init__(self, config: ModelConfig, index: int | None) -> None:
        super().__init__(config, index)
        self.pre, self.post = (identity_mix(config.heads, config.heads) for _ in range(2))

    def weights(self, scores_BMTS: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        """A'. Mixing heads joins no positions, so the mask before the softmax is enough for causality."""
        mixed_BMTS = kernels.mix_heads(scores_BMTS, self.pre, ctx.is_square)
        weights_BMTS = torch.softmax(mixed_BMTS.masked_fill(ctx.hidden, -torch.inf), dim=-1)
        return kernels.mix_heads(weights_BMTS.to(mixed_BMTS.dtype), self.post, ctx.is_square)
