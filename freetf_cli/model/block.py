"""The Transformer block: pre-norm attention and pre-norm SwiGLU, each on a residual. No biases."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli import kernels
from freetf_cli.config.recipe import ModelConfig
from freetf_cli.model.attention.registry import make_attention
from freetf_cli.model.context import Context, Memory


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (Shazeer, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = kernels.project(x_BTD, self.gate, self.up)
        return self.down(F.silu(gate_BTF) * up_BTF)


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)). index: the block's place in the decoder; None in an encoder."""

    def __init__(self, config: ModelConfig, index: int | None = None) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = make_attention(config, index)
        self.ffn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.ffn = SwiGLU(config.width, config.hidden)

    def forward(self, x_BTD: Tensor, ctx: Context, kv_BTD: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        """Queries and the residual stream come from x; keys and values from kv (default x), through the same norm, and from a memory."""
        if memory is None and (y_BTD := self._decoded(x_BTD, ctx, kv_BTD)) is not None:
            return y_BTD
        q_BTD = self.attention_norm(x_BTD)
        x_BTD = x_BTD + self.attention(q_BTD, q_BTD if kv_BTD is None else self.attention_norm(kv_BTD), ctx, memory)
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))

    def _decoded(self, x_BTD: Tensor, ctx: Context, kv_BTD: Tensor | None) -> Tensor | None:
        """The block by the kernel for one new position of one sequence; None where that kernel does not apply."""
        cache = ctx.layer(self.attention.index)
        if cache is None or not isinstance(ctx.start, Tensor) or ctx.document_ids_BS is not None or not self.attention.softmax:
            return None
        weights = self._weights()
        if not kernels.takes_decode_block(x_BTD, weights, self.attention.head_width):
            return None
        return kernels.decode_block(x_BTD, x_BTD if kv_BTD is None else kv_BTD, ctx.rotary, cache.k, cache.v, ctx.start, weights)

    def _weights(self) -> kernels.BlockWeights:
        a, f, eps = self.attention, self.ffn, self.attention_norm.eps or 0.0
        attention = self.attention_norm.weight, a.q.weight, a.k.weight, a.v.weight, a.out.weight
        return kernels.BlockWeights(*attention, self.ffn_norm.weight, f.gate.weight, f.up.weight, f.down.weight, eps)
