"""Rows of an embedding table, with a fast and deterministic gradient for small tables.

PyTorch adds the gradient of each token to its row. On a GPU, thousands of tokens that add to a few rows wait for each other, and their
order varies. For a small table the gradient here is a matrix product, one_hot(tokens)ᵀ · dx.

Shapes: B sequences, T positions, N = B · T tokens, V vocabulary, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 512  # V, at most, for the one-hot product
ONE_HOT = 1 << 26  # N · V, at most


class Embedding(nn.Embedding):
    """nn.Embedding whose gradient is a one-hot product where that is faster: on a GPU, for a small table."""

    def forward(self, tokens_BT: Tensor) -> Tensor:
        rows, tokens = self.num_embeddings, tokens_BT.numel()
        is_small = rows <= FEW_ROWS and tokens * rows <= ONE_HOT
        return embed_one_hot(self.weight, tokens_BT) if is_small and tokens_BT.is_cuda else F.embedding(tokens_BT, self.weight)


def embed_one_hot(table_VD: Tensor, tokens_BT: Tensor) -> Tensor:
    """`F.embedding` with the gradient one_hot(tokens)ᵀ · dx, a product in dx's dtype."""
    rows_BTD: Tensor = _OneHotGradient.apply(table_VD, tokens_BT)  # type: ignore[no-untyped-call]
    return rows_BTD


class _OneHotGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, tokens_BT: Tensor) -> Tensor:
        ctx.save_for_backward(tokens_BT)
        ctx.rows = len(table_VD)
        return F.embedding(tokens_BT, table_VD)

    @staticmethod
    def backward(ctx: Any, dx_BTD: Tensor) -> tuple[Tensor, None]:
        (tokens_BT,) = ctx.saved_tensors
        with torch.autocast(dx_BTD.device.type, enabled=False):
            one_hot_NV = F.one_hot(tokens_BT.flatten(), ctx.rows).to(dx_BTD.dtype)
            return one_hot_NV.T @ dx_BTD.flatten(0, -2), None
