"""Talking-Heads attention (Shazeer et al., arXiv 2003.02436): all heads mix their scores before the softmax, their weights after it."""

from __future__ import annotations

import torch
from torch import Tensor

from freetf_cli import kernels
from freetf_cli.config.recipe import ModelConfig
from freetf_cli.model.attention.materialised import MapAttention, Rows, identity_mix
from freetf_cli.model.context import LayerCache


class TalkingHeads(MapAttention):
    """w_post softmax(w_pre L), both [M, M] over the heads and the identity at first. Each of the two is one more pass over the maps."""

    def __init__(self, config: ModelConfig, index: int | None) -> None:
        super().__init__(config, index)
        self.pre, self.post = (identity_mix(config.heads, config.heads) for _ in range(2))

    def weights(self, scores_BMTS: Tensor, rows: Rows, cache: LayerCache | None) -> Tensor:
        """No cell of a map meets another position's: the mask before the softmax is all that causality takes."""
        mixed_BMTS = kernels.mix_heads(scores_BMTS, self.pre, rows.whole)
        weights_BMTS = torch.softmax(mixed_BMTS.masked_fill(rows.hidden, -torch.inf), dim=-1)
        return kernels.mix_heads(weights_BMTS.to(mixed_BMTS.dtype), self.post, rows.whole)
