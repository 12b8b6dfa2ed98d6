"""Attention whose maps are made in full: what the kinds have in common that mix them across heads or positions.

Shapes: B sequences, T positions, S cached and new positions, D width, M query heads, K key/value heads, E head width, C heads of a group.

A map is B · M · T · S numbers, and memory moves more slowly than the products come: what counts is how often one is written and read. With
no mix: scores written; the mask and the softmax, compiled one pass; read by the product with the values. A mix of heads is one batched
product: one more read and one more write. On a GPU whose kernels are ours it is one of them (kernels/) where maps are `whole`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from freetf_cli.config.recipe import ModelConfig
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.context import Context, LayerCache

RECOMPUTED = 1 << 28  # `auto`: numbers of all maps of a model from which they are made once more in the backward


class Rows(NamedTuple):
    """Rows of the maps: the positions of their queries, [T]; true where a row may not see a key, [T, S] or [B, 1, T, S]; the documents;
    whether query t is at position t, as many as there are keys, and sees none after it."""

    at_T: Tensor
    hidden: Tensor
    document_ids_BS: Tensor | None
    whole: bool


class MapAttention(Attention):
    """Attention by products alone. A kind has its own `weights`, and `finish` where it norms the heads."""

    softmax = False

    def __init__(self, config: ModelConfig, index: int | None) -> None:
        super().__init__(config, index)
        self.blocks, self.attention_checkpointing = config.layers, "auto"  # blocks of the model that make maps, until it is known: all

    @property
    def fuses(self) -> bool:
        """Whether it trains without maps."""
        return False

    @property
    def spread(self) -> int:
        """How many heads lie side by side where it does."""
        return 1

    def attend(self, q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, ctx: Context, cache: LayerCache | None) -> Tensor:
        """As `Attention.attend`."""
        length = q_BMTE.shape[2]
        if cache is not None:
            q_BMTE = self.queries(q_BMTE, cache)
        before = q_BMTE.shape[2] - length
        at_T = ctx.positions_T
        if before:
            at_T = torch.cat((at_T[:1] - torch.arange(before, 0, -1, device=at_T.device), at_T))
        visible = ctx.mask if ctx.mask is not None and not before else ctx.visible(at_T)
        starts = isinstance(ctx.start, int) and ctx.start == 0
        rows = Rows(at_T, ~visible, ctx.document_ids_BS, ctx.causal and starts and q_BMTE.shape[2] == k_BKSE.shape[2])

        def read(q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor) -> Tensor:
            weights_BMTS = self.weights(by_group(q_BMTE * self.head_width**-0.5, k_BKSE.mT), rows, cache)
            return by_group(weights_BMTS[:, :, -length:], v_BKSE)

        numbers = self.blocks * q_BMTE.shape[:3].numel() * k_BKSE.shape[2]
        if cache is None and torch.is_grad_enabled() and recomputes(self.attention_checkpointing, numbers):
            y_BMTE: Tensor = checkpoint(read, q_BMTE, k_BKSE, v_BKSE, use_reentrant=False, preserve_rng_state=False)
        else:
            y_BMTE = read(q_BMTE, k_BKSE, v_BKSE)
        return self.finish(y_BMTE)

    def queries(self, q_BMTE: Tensor, cache: LayerCache) -> Tensor:
        """The queries whose rows of the maps are made: these, and before them those of earlier positions that `weights` mixes with them."""
        return q_BMTE

    def weights(self, scores_BMTS: Tensor, rows: Rows, cache: LayerCache | None) -> Tensor:
        """What the values are weighted with, [B, M, T, S]."""
        raise NotImplementedError

    def finish(self, y_BMTE: Tensor) -> Tensor:
        """What each head returns, before the output product."""
        return y_BMTE


def recomputes(setting: str, numbers: int) -> bool:
    """Whether maps are made once more in the backward. numbers: of all maps of the model."""
    return setting == "on" or (setting == "auto" and numbers >= RECOMPUTED)


def set_attention_checkpointing(model: nn.Module, setting: str) -> None:
    """`train.attention_checkpointing`, for a model that is to be trained."""
    makers = [module for module in model.modules() if isinstance(module, MapAttention) and not module.fuses]
    for module in makers:
        module.blocks, module.attention_checkpointing = len(makers), setting


def by_group(a_BMTX: Tensor, b_BKXY: Tensor) -> Tensor:
    """a @ b where M/K heads in turn share a b: their rows stand under each other, so that none is copied."""
    heads, groups = a_BMTX.shape[1], b_BKXY.shape[1]
    rows_BKNX = a_BMTX.reshape(len(a_BMTX), groups, heads // groups * a_BMTX.shape[2], -1)
    return (rows_BKNX @ b_BKXY).view(*a_BMTX.shape[:3], -1)


def identity_mix(heads: int, group: int) -> nn.Parameter:
    """One identity [C, C] for each of the groups of C heads. Three dimensions: no initialisation draws it, no weight decay shrinks it."""
    return nn.Parameter(torch.eye(group).repeat(heads // group, 1, 1))
