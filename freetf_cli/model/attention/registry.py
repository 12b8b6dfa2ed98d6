"""The kinds of attention. A new kind is a file beside this one and a line of `ATTENTION_KINDS` in config/model.py."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from freetf_cli.config.model import ATTENTION_KINDS, ModelConfig
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.weights import Draws


def make_attention(config: ModelConfig, index: int | None) -> Attention:
    """The attention of block `index` of the decoder; softmax attention for a block of an encoder (index None)."""
    module, name = ATTENTION_KINDS["softmax" if index is None else config.attention_of(index)].split(".")
    kind: type[Attention] = getattr(import_module(f"{__package__}.{module}"), name)
    return kind(config, index)


def initialise_kinds(blocks: nn.Module, draws: Draws) -> None:
    """Draw the parameters that a kind of attention adds. Mixes of heads draw nothing, kernels only if `init` is random."""
    for name, module in blocks.named_modules():
        if callable(draw := getattr(module, "initialise", None)):
            draw(draws.within(name))


def attention_weights_per_token(config: ModelConfig, keys: int) -> int:
    """Attention weights in memory per token while one block runs; 0 where every block has softmax attention, whose kernels hold none.

    Differential attention has a fused kernel on CUDA only and is counted.
    """
    kinds = {config.attention_of(index) for index in range(config.layers)}
    return 4 * config.heads * keys if kinds - {"softmax"} else 0
