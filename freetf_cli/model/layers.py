"""The Transformer block: pre-norm attention and pre-norm SwiGLU, each on a residual. No biases."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli import kernels
from freetf_cli.config.recipe import ModelConfig
from freetf_cli.kernels import Rotary
from freetf_cli.model.attention.registry import make_attention
from freetf_cli.model.attention.softmax import LayerCache


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
    """x + attention(norm(x)), then x + ffn(norm(x)). index: the block's place in the decoder; None for a block of the encoder."""

    def __init__(self, config: ModelConfig, index: int | None = None) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = make_attention(config, index)
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
        position: int | Tensor = 0,
        documents_BS: Tensor | None = None,
    ) -> Tensor:
        """Queries and residual from x; keys and values from `keys_from` (default x), through the same norm."""
        if cache is not None and isinstance(position, Tensor) and documents_BS is None and self.attention.softmax:
            weights = self._weights()
            if kernels.takes_decode_block(x_BTD, weights, self.attention.head_width):
                kv_BTD = x_BTD if keys_from is None else keys_from
                return kernels.decode_block(x_BTD, kv_BTD, rotary, cache.k, cache.v, position, weights)
        q_BTD = self.attention_norm(x_BTD)
        kv_BTD = q_BTD if keys_from is None else self.attention_norm(keys_from)
        y_BTD = self.attention(q_BTD, kv_BTD, rotary, causal=causal, cache=cache, position=position, documents_BS=documents_BS)
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))

    def _weights(self) -> kernels.BlockWeights:
        a, f, eps = self.attention, self.ffn, self.attention_norm.eps or 0.0
        attention = self.attention_norm.weight, a.q.weight, a.k.weight, a.v.weight, a.out.weight
        return kernels.BlockWeights(*attention, self.ffn_norm.weight, f.gate.weight, f.up.weight, f.down.weight, eps)
