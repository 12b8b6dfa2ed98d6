"""Attention whose maps are made in full: what the kinds have in common that mix them across heads or positions.

Shapes: B sequences, T positions, S cached and new positions, D width, M query heads, K key/value heads, E head width, C heads of a group.

A map is B · M · T · S numbers, and memory moves more slowly than the products come: what counts is how often one is written and read. With
no mix: scores written; the mask and the softmax, compiled one pass; read by the product with the values. A mix of heads is one batched
product: one more read and one more write. On a GPU whose kernels are ours it is one of them (map_kernel.py) where maps are `whole`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from freetf_cli.model.attention import Attention, LayerCache, Sight
from freetf_cli.model.kernels import runs_kernels_compiled

RECOMPUTED = 1 << 27  # maps of so many numbers, or more, are made once more in the backward instead of being kept
MOST_MIXED = 64  # heads of a group that map_kernel.py has tiles for


@torch.library.custom_op("freetf::map_mix", mutates_args=())
def map_mix(x_BMTS: Tensor, mix_GCC: Tensor) -> Tensor:
    """tril(mix(tril(x))) of whole maps (map_kernel.py)."""
    from freetf_cli.model.map_kernel import mix

    with torch.cuda.device(x_BMTS.device):  # Triton launches on the current device
        return mix(x_BMTS, mix_GCC)


@map_mix.register_fake
def _(x_BMTS: Tensor, mix_GCC: Tensor) -> Tensor:
    return x_BMTS.new_empty(x_BMTS.shape)


@torch.library.custom_op("freetf::map_mix_backward", mutates_args=())
def _map_mix_backward(dy_BMTS: Tensor, x_BMTS: Tensor, mix_GCC: Tensor) -> tuple[Tensor, Tensor]:
    from freetf_cli.model.map_kernel import mix_gradients

    with torch.cuda.device(x_BMTS.device):
        return mix_gradients(dy_BMTS, x_BMTS, mix_GCC)


@_map_mix_backward.register_fake
def _(dy_BMTS: Tensor, x_BMTS: Tensor, mix_GCC: Tensor) -> tuple[Tensor, Tensor]:
    return x_BMTS.new_empty(x_BMTS.shape), mix_GCC.new_empty(mix_GCC.shape, dtype=torch.float32)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy_BMTS: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    return _map_mix_backward(dy_BMTS, *ctx.saved_tensors)


map_mix.register_autograd(_backward, setup_context=_keep)


class Rows(NamedTuple):
    """Rows of the maps: the positions of their queries, [T]; true where a row may not see a key, [T, S] or [B, 1, T, S]; the documents;
    whether query t is at position t, as many as there are keys, and sees none after it."""

    at_T: Tensor
    hidden: Tensor
    documents_BS: Tensor | None
    whole: bool


class MapAttention(Attention):
    """Attention by products alone. A kind has its own `weights`, and `finish` where it norms the heads."""

    softmax = False

    def attend(self, q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, sight: Sight, cache: LayerCache | None) -> Tensor:
        """As `Attention.attend`."""
        length = q_BMTE.shape[2]
        if cache is not None:
            q_BMTE = self.queries(q_BMTE, cache)
        at_T = sight.places(length, q_BMTE.device, before=q_BMTE.shape[2] - length)
        begins = not isinstance(sight.position, Tensor) and sight.position == 0
        whole = sight.causal and begins and q_BMTE.shape[2] == k_BKSE.shape[2]
        rows = Rows(at_T, ~sight.of(at_T, k_BKSE.shape[2]), sight.documents_BS, whole)

        def read(q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor) -> Tensor:
            weights_BMTS = self.weights(by_group(q_BMTE * self.head_width**-0.5, k_BKSE.mT), rows, cache)
            return by_group(weights_BMTS[:, :, -length:], v_BKSE)

        numbers = q_BMTE.shape[:3].numel() * k_BKSE.shape[2]
        if cache is None and torch.is_grad_enabled() and numbers >= RECOMPUTED:
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


def by_group(a_BMTX: Tensor, b_BKXY: Tensor) -> Tensor:
    """a @ b where M/K heads in turn share a b: their rows stand under each other, so that none is copied."""
    heads, groups = a_BMTX.shape[1], b_BKXY.shape[1]
    rows_BKNX = a_BMTX.reshape(len(a_BMTX), groups, heads // groups * a_BMTX.shape[2], -1)
    return (rows_BKNX @ b_BKXY).view(*a_BMTX.shape[:3], -1)


def identity_mix(heads: int, group: int) -> nn.Parameter:
    """One identity [C, C] for each of the groups of C heads. Three dimensions: no initialisation draws it, no weight decay shrinks it."""
    return nn.Parameter(torch.eye(group).repeat(heads // group, 1, 1))


def mix_heads(x_BMTS: Tensor, mix_GCC: Tensor, rows: Rows) -> Tensor:
    """X_new^o = Σ_h w[g, o, h] X^h within each group g of C heads. What `whole` rows have after their queries is masked later, or is 0:
    there the kernel leaves zeros."""
    groups, size, _ = mix_GCC.shape
    if rows.whole and size <= MOST_MIXED and x_BMTS.dtype != torch.float64 and runs_kernels_compiled(x_BMTS.device):
        return map_mix(x_BMTS, mix_GCC)
    return (mix_GCC @ x_BMTS.reshape(len(x_BMTS), groups, size, -1)).view_as(x_BMTS)
