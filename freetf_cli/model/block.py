"""The Transformer block: pre-norm attention and pre-norm SwiGLU, each on a residual. No biases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli.config.recipe import ModelConfig
from freetf_cli.kernels.support import runs_kernels
from freetf_cli.model.attention.registry import make_attention
from freetf_cli.model.attention.softmax import project
from freetf_cli.model.context import Context

FEW_ROWS = 512  # up to here the gradient of an embedding table is a product,
ONE_HOT = 1 << 26  # if the one-hot tokens have no more numbers than this


class Embedding(nn.Embedding):
    """Rows of a table. On a GPU the gradient of a small one is a product with the one-hot tokens: thousands of tokens that add to each
    of a few rows wait for each other, and add in any order."""

    def forward(self, tokens_BT: Tensor) -> Tensor:
        if tokens_BT.is_cuda and self.num_embeddings <= FEW_ROWS and tokens_BT.numel() * self.num_embeddings <= ONE_HOT:
            return rows_of_few(self.weight, tokens_BT)
        return super().forward(tokens_BT)


def rows_of_few(table_VD: Tensor, tokens_BT: Tensor) -> Tensor:
    """F.embedding, [B, T, D], with that gradient."""
    rows_BTD: Tensor = _RowsOfFew.apply(table_VD, tokens_BT)  # type: ignore[no-untyped-call]
    return rows_BTD


class _RowsOfFew(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table_VD: Tensor, tokens_BT: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(tokens_BT)
        ctx.rows = len(table_VD)
        return F.embedding(tokens_BT, table_VD)

    @staticmethod
    def backward(ctx, dx_BTD: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (tokens_BT,) = ctx.saved_tensors
        with torch.autocast(dx_BTD.device.type, enabled=False):
            chosen_NV = F.one_hot(tokens_BT.flatten(), ctx.rows).to(dx_BTD.dtype)
            return chosen_NV.T @ dx_BTD.flatten(0, -2), None


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = project(x_BTD, self.gate, self.up)
        return self.down(F.silu(gate_BTF) * up_BTF)


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)). index: the block's place in the decoder; None in an encoder."""

    def __init__(self, config: ModelConfig, index: int | None = None) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = make_attention(config, index)
        self.ffn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.ffn = SwiGLU(config.width, config.hidden)

    def forward(self, x_BTD: Tensor, ctx: Context, kv_BTD: Tensor | None = None) -> Tensor:
        """Queries and the residual stream come from x; keys and values from kv (default x), through the same norm."""
        if ctx.is_static and self._decodes_one_row(x_BTD, ctx):
            return self._decode_one_row(x_BTD, ctx, kv_BTD)
        q_BTD = self.attention_norm(x_BTD)
        x_BTD = x_BTD + self.attention(q_BTD, q_BTD if kv_BTD is None else self.attention_norm(kv_BTD), ctx)
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))

    def _decodes_one_row(self, x_BTD: Tensor, ctx: Context) -> bool:
        """Whether the kernel for one position of one sequence computes the block: bfloat16, softmax attention, no masked documents."""
        fits = x_BTD.shape[:2] == (1, 1) and x_BTD.dtype == torch.bfloat16 == self.ffn.down.weight.dtype and ctx.document_ids_BS is None
        fits = fits and self.attention.softmax and all(weight.is_contiguous() for weight in self.parameters())
        return fits and self.attention.head_width in (32, 64, 128) and not torch.is_grad_enabled() and runs_kernels(x_BTD.device)

    def _decode_one_row(self, x_11D: Tensor, ctx: Context, kv_11D: Tensor | None) -> Tensor:
        from freetf_cli.kernels.decode_block import run_block

        cache = ctx.layer(self.attention.index)
        assert cache is not None and isinstance(ctx.start, Tensor)
        return run_block(self, x_11D, kv_11D, ctx.rotary, cache, ctx.start)
