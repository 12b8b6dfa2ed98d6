"""The Transformer block: pre-norm attention and pre-norm SwiGLU, each on a residual. No biases."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli.model.attention import Attention, LayerCache, Rotary, project
from freetf_cli.recipe import ModelConfig


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
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.ffn = SwiGLU(config.width, config.hidden)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary,
        *,
        keys_from: Tensor | None = None,
        causal: bool = True,
        cache: LayerCache | None = None,
        position: int = 0,
    ) -> Tensor:
        """Queries and residual from x; keys and values from `keys_from` (default x), through the same norm."""
        q_BTD = self.attention_norm(x_BTD)
        kv_BTD = q_BTD if keys_from is None else self.attention_norm(keys_from)
        x_BTD = x_BTD + self.attention(q_BTD, kv_BTD, rotary, causal=causal, cache=cache, position=position)
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))
