"""Attention with materialised weights: the base of the kinds that mix scores or weights across heads or positions.

A block has B · M · T · S weights. Moving them takes longer than computing them, so the cost is how often they are read and written:
without a mix the scores are written once, masked and normalised in one compiled pass, and read by the product with the values. A mix
of heads reads and writes them once more.

Shapes: B sequences, T positions, S cached and new positions, M query heads, K key/value heads, E head width, C heads in a group.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from freetf_cli.config.recipe import ModelConfig
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.context import Context, LayerCache

CHECKPOINT_FROM = 1 << 28  # attention weights of all blocks together, in numbers, from which "auto" recomputes them


class MaterialisedAttention(Attention):
    """Attention by matrix products. A kind implements `weights`, and `norm_heads` if it normalises what the heads return."""

    softmax = False

    def __init__(self, config: ModelConfig, index: int | None) -> None:
        super().__init__(config, index)
        self.blocks, self.checkpointing = config.layers, "auto"  # `set_attention_checkpointing` counts the blocks that materialise weights

    def attend(self, q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        """What each head returns, [B, M, T, E]."""
        length = q_BMTE.shape[2]
        if cache is not None:
            q_BMTE = self.queries(q_BMTE, cache)
        if earlier := q_BMTE.shape[2] - length:
            before = ctx.positions_T[:1] - torch.arange(earlier, 0, -1, device=q_BMTE.device)
            ctx = replace(ctx, positions_T=torch.cat((before, ctx.positions_T)), mask=None)

        def read(q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor) -> Tensor:
            weights_BMTS = self.weights(grouped_matmul(q_BMTE * self.head_width**-0.5, k_BKSE.mT), ctx, cache)
            return grouped_matmul(weights_BMTS[:, :, -length:], v_BKSE)

        numbers = self.blocks * q_BMTE.shape[:3].numel() * k_BKSE.shape[2]
        if cache is None and torch.is_grad_enabled() and recomputes(self.checkpointing, numbers):
            y_BMTE: Tensor = checkpoint(read, q_BMTE, k_BKSE, v_BKSE, use_reentrant=False, preserve_rng_state=False)
        else:
            y_BMTE = read(q_BMTE, k_BKSE, v_BKSE)
        return self.norm_heads(y_BMTE)

    def queries(self, q_BMTE: Tensor, cache: LayerCache) -> Tensor:
        """The queries whose rows are computed: the new ones, after those earlier ones whose rows `weights` combines with theirs."""
        return q_BMTE

    def weights(self, scores_BMTS: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        """The weights of the values, [B, M, T, S]. ctx: its positions are those of the queries, earlier ones included."""
        raise NotImplementedError

    def norm_heads(self, y_BMTE: Tensor) -> Tensor:
        """What each head returns, normalised before the output projection."""
        return y_BMTE

    @property
    def materialises(self) -> bool:
        return True

    def flops(self, context: int, causal: bool = True) -> float:
        """Products with all keys, hidden ones too; each parameter of an operator is a multiply-add per attention weight."""
        operators = sum(parameter.numel() for parameter in self.parameters() if parameter.dim() > 2)
        return super().flops(context, causal=False) + 2.0 * context * operators

    def kept_bytes(self, rows: int, context: int, size: int, documents: bool) -> float:
        """Per attention weight: softmax's output in float32, the factor of the values, and what the operators keep."""
        return rows * self.heads * context**2 * (4.0 + size * (1 + self.operator_inputs(documents)))

    def operator_inputs(self, documents: bool) -> int:
        """Copies of the attention weights that convolutions and mixes keep for the backward: one each."""
        return sum(parameter.dim() > 2 for parameter in self.parameters())


def recomputes(setting: str, numbers: int) -> bool:
    """Whether the backward recomputes attention weights (`train.attention_checkpointing`). numbers: weights of all blocks together."""
    return setting == "on" or (setting == "auto" and numbers >= CHECKPOINT_FROM)


def set_attention_checkpointing(model: nn.Module, setting: str) -> None:
    """Apply `train.attention_checkpointing` to a model that is to be trained."""
    materialised = [module for module in model.modules() if isinstance(module, MaterialisedAttention) and module.materialises]
    for module in materialised:
        module.blocks, module.checkpointing = len(materialised), setting


def grouped_matmul(a_BMTX: Tensor, b_BKXY: Tensor) -> Tensor:
    """a @ b where M/K consecutive heads share one b. Their rows are stacked, so that b is not copied."""
    heads, groups = a_BMTX.shape[1], b_BKXY.shape[1]
    rows_BKNX = a_BMTX.reshape(len(a_BMTX), groups, heads // groups * a_BMTX.shape[2], -1)
    return (rows_BKNX @ b_BKXY).view(*a_BMTX.shape[:3], -1)


def identity_mix(heads: int, group: int) -> nn.Parameter:
    """An identity [C, C] for each group of C heads, [G, C, C]. Having three dimensions it is neither initialised nor decayed."""
    return nn.Parameter(torch.eye(group).repeat(heads // group, 1, 1))
