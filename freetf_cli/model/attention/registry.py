"""Which attention a block has: softmax attention, or one of the kinds that mix its maps, a room each."""

from __future__ import annotations

import torch
from torch import nn

from freetf_cli.config.recipe import ModelConfig
from freetf_cli.model.attention.differential import Differential
from freetf_cli.model.attention.head_norm import HeadNorm
from freetf_cli.model.attention.multi_token import MultiToken
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.attention.talking_heads import TalkingHeads


def make_attention(config: ModelConfig, index: int | None) -> Attention:
    """The attention of the decoder's block `index`, from 0; None: of a block of the encoder, which is softmax attention."""
    kind = "softmax" if index is None else config.attention_of(index)
    if index is None or kind == "softmax":
        return Attention(config)
    if kind == "talking-heads":
        return TalkingHeads(config)
    return (MultiToken if kind == "multi-token" else Differential)(config, index)


def initialise_kinds(model: nn.Module, generator: torch.Generator) -> None:
    """Draw what a kind of attention draws; its kernels and mixes are the identity from the start."""
    for module in model.modules():
        if isinstance(module, Differential | HeadNorm):
            module.initialise(generator)


def map_numbers(config: ModelConfig, keys: int) -> int:
    """Numbers a position of the maps that are in memory together while a block reads them; 0 of softmax attention, whose kernels keep
    them to themselves. Differential attention has such a kernel on CUDA only, and is counted."""
    kinds = {config.attention_of(index) for index in range(config.layers)}
    return 4 * config.heads * keys if kinds - {"softmax"} else 0
