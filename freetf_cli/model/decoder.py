"""The baseline: a decoder-only Transformer (Llama's shape), and the cache of its generation.

Shapes: B sequences, T positions, S cached and new positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli.config.recipe import ModelConfig
from freetf_cli.kernels import Embedding, Rotary, rotary_tables
from freetf_cli.model.attention.softmax import LayerCache
from freetf_cli.model.layers import Block


class Cache:
    """Keys and values of every block, and how many positions they hold: a number, or for a step that is replayed on a device a tensor
    there, [] int64, with the angles of all positions beside it. documents_BS: the number of each position's document, where those are
    kept apart."""

    def __init__(self, layers: list[LayerCache], documents_BS: Tensor | None = None) -> None:
        self.layers = layers
        self.position: int | Tensor = 0
        self.angles: Rotary | None = None
        self.documents_BS = documents_BS

    def advance(self, length: int) -> None:
        """Count `length` positions as read; the model calls this once both of its halves have written them."""
        self.position += length  # a tensor keeps its place

    def documents(self, length: int) -> Tensor | None:
        """Those of all positions up to `length` new ones, [B, S]; of a position on the device all that there is room for."""
        if self.documents_BS is None or isinstance(self.position, Tensor):
            return self.documents_BS
        return self.documents_BS[:, : self.position + length]


class Decoder(nn.Module):
    """Embedding, L blocks, RMSNorm, read-out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab is None:
            raise ValueError("model.vocab must be known to build a model")
        self.config = config
        self.embedding = Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.readout = None if config.tie_embeddings else nn.Linear(config.width, config.vocab, bias=False)

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits of the next token at every position, [B, T, V]."""
        return self.read_out(self.hidden(tokens_BT, cache))

    def hidden(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """The normed stream before the read-out, [B, T, D]."""
        documents_BS = self.documents(tokens_BT, cache)
        x_BTD = self.run_blocks(range(self.config.layers), self.embedding(tokens_BT), cache, documents_BS)
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
        return self.norm(x_BTD)

    def read_out(self, x_BTD: Tensor) -> Tensor:
        """Logits [B, T, V] of a normed stream."""
        return F.linear(x_BTD, self.readout_weight)

    @property
    def readout_weight(self) -> Tensor:
        """[V, D]: the embedding table when tied."""
        return self.embedding.weight if self.readout is None else self.readout.weight

    def run_blocks(self, indices: Iterable[int], x_BTD: Tensor, cache: Cache | None, documents_BS: Tensor | None = None) -> Tensor:
        """Causal blocks in turn, each from its own stream."""
        rotary = self.rotary(x_BTD, cache)
        for index in indices:
            x_BTD = self.run_block(index, x_BTD, rotary, cache, documents_BS=documents_BS)
        return x_BTD

    def run_block(
        self,
        index: int,
        x_BTD: Tensor,
        rotary: Rotary,
        cache: Cache | None,
        keys_from: Tensor | None = None,
        documents_BS: Tensor | None = None,
    ) -> Tensor:
        """One causal block, writing to its cache if there is one."""
        layer, position = (None, 0) if cache is None else (cache.layers[index], cache.position)
        return self.blocks[index](x_BTD, rotary, keys_from=keys_from, cache=layer, position=position, documents_BS=documents_BS)

    def documents(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor | None:
        """The number of the document that each position is in, [B, S], those in the cache first; None where all see each other.

        A separator begins a document: packed rows are cut out of `SEP d1 SEP d2 SEP …`.
        """
        if self.config.separator is None:
            return None
        begun_BT = (tokens_BT == self.config.separator).cumsum(-1)
        if cache is None or cache.documents_BS is None:
            return begun_BT
        at_T = cache.position + torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        before_B1 = cache.documents_BS[:, (at_T[:1] - 1).clamp(min=0)]
        cache.documents_BS.index_copy_(1, at_T, before_B1 + begun_BT)
        return cache.documents(tokens_BT.shape[1])

    def rotary(self, x_BTD: Tensor, cache: Cache | None = None) -> Rotary:
        """Angles of the positions that x_BTD stands at."""
        start = 0 if cache is None else cache.position
        if isinstance(start, Tensor):
            assert cache is not None and cache.angles is not None
            cos_SE, sin_SE = cache.angles
            return cos_SE.index_select(0, start[None]), sin_SE.index_select(0, start[None])
        positions = torch.arange(start, start + x_BTD.shape[1], device=x_BTD.device)
        return rotary_tables(positions, self.config.head_width, self.config.rope_theta)

    def on_device(self, cache: Cache) -> None:
        """From here on the cache's position is a tensor, so that one more position can be read without the host knowing which."""
        device = self.embedding.weight.device
        every_S = torch.arange(cache.layers[0].k.shape[2], device=device)
        cache.angles = rotary_tables(every_S, self.config.head_width, self.config.rope_theta)
        cache.position = torch.tensor(cache.position, device=device)

    def new_cache(self, sequences: int, length: int, dtype: torch.dtype | None = None) -> Cache:
        """An empty cache for `length` positions of `sequences` sequences."""
        weight = self.embedding.weight
        attentions = (block.attention for block in self.blocks if isinstance(block, Block))
        layers = [attention.new_cache(sequences, length, dtype or weight.dtype) for attention in attentions]
        apart = self.config.separator is not None
        return Cache(layers, torch.zeros(sequences, length, dtype=torch.long, device=weight.device) if apart else None)


@torch.no_grad()
def initialise(model: nn.Module, layers: int, generator: torch.Generator) -> None:
    """Normal weights of deviation fan_in^-1/2, output projections of residual branches by (2 L)^-1/2 less, embeddings 0.02.

    Draws on the CPU in a fixed order, so that a seed gives the same weights on every device.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2:
            continue  # norms keep their ones, a kind of attention what it begins with; the latent's own are set by FreeTransformer
        std = 0.02 if "embedding" in name else parameter.shape[-1] ** -0.5
        if name.endswith(("attention.out.weight", "ffn.down.weight")):
            std *= (2 * layers) ** -0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * std)
