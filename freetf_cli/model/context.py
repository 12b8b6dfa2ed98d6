"""The context of a forward pass: what every block needs beside its stream.

Shapes: B sequences, T positions, S cached and new positions, K key/value heads, E head width, N tiles of TILE positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from freetf_cli.kernels import Rotary, rotary_tables

PADDING = -1  # document id of left padding
TILE = 128  # queries, and keys, that FlexAttention computes or skips together
NARROWEST_FLEX_HEAD = 16  # the narrowest head that FlexAttention takes on CUDA


class Memory(NamedTuple):
    """Keys and values [B, K, M, E] that every query of a block sees beside those of the tokens: K key/value heads of width E."""

    k: Tensor
    v: Tensor


@dataclass
class LayerCache:
    """Keys and values of one block, [B, K, S, E]; the first `Cache.length` positions are filled."""

    k: Tensor
    v: Tensor

    def extend(self, k_BKTE: Tensor, v_BKTE: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor]:
        """Write T new positions at `start` and return all keys and values up to them.

        With a static cache (`start` is a tensor) T is 1 and the whole cache is returned; `Context.mask` hides what is not filled.
        """
        if isinstance(start, Tensor):
            self.k.index_copy_(2, start[None], k_BKTE.to(self.k.dtype))
            self.v.index_copy_(2, start[None], v_BKTE.to(self.v.dtype))
            return self.k, self.v
        end = start + k_BKTE.shape[2]
        self.k[:, :, start:end] = k_BKTE
        self.v[:, :, start:end] = v_BKTE
        return self.k[:, :, :end], self.v[:, :, :end]

    def branch(self) -> LayerCache:
        """A cache that continues from this one. Both share the memory for keys and values, so use one branch at a time."""
        return self


@dataclass(eq=False)
class Cache:
    """Keys and values of every block, for generation.

    padding_B: left padding of each sequence where prompts of several lengths share a batch; None without padding.
    document_ids_BS: document of each position; None where the model does not mask documents and no sequence is padded.
    length: positions filled so far. `make_static` turns it into a tensor on the device, so that a step can be captured as a CUDA graph.
    rotary: tables of all positions, of a static cache only.
    """

    layers: list[LayerCache]
    padding_B: Tensor | None = None
    document_ids_BS: Tensor | None = None
    length: int | Tensor = 0
    rotary: Rotary | None = None

    def branch(self) -> Cache:
        """A cache that continues from this one, whose length does not change (`LayerCache.branch`). A static cache has no branches."""
        assert not isinstance(self.length, Tensor)
        return replace(self, layers=[layer.branch() for layer in self.layers])

    def make_static(self, head_width: int, rope_theta: float) -> None:
        """Keep the length as a tensor [] int64 on the device; from now on a step reads one position."""
        room_S = torch.arange(self.layers[0].k.shape[2], device=self.layers[0].k.device)
        positions = room_S if self.padding_B is None else _without_padding(room_S, self.padding_B)
        self.rotary = rotary_tables(positions, head_width, rope_theta)
        self.length = torch.tensor(self.length, device=room_S.device)


@dataclass(frozen=True)
class Context:
    """What the blocks of one forward share; built once by `Decoder.context`.

    rotary: cosines and sines of the T positions, [T, E/2], or [B, T, E/2] where sequences are padded.
    positions_T: index of each position within the row, [T]; padding counts.
    keys: number of keys S, cached and new.
    causal: a query sees no later key. The encoder of a latent is not causal.
    document_ids_BS: document of each position; a query sees its own document only. None: documents hide nothing.
    mask: keys that each query sees, bool [T, S] or [B, 1, T, S]; None where `causal` alone says it.
    block_mask: the same for FlexAttention, which skips tiles of other documents; None where softmax attention reads `mask`.
    padding_B: left padding of each sequence; None without padding.
    cache: keys and values of earlier positions; None in training.
    """

    rotary: Rotary
    positions_T: Tensor
    keys: int
    causal: bool = True
    document_ids_BS: Tensor | None = None
    mask: Tensor | None = None
    block_mask: BlockMask | None = None
    padding_B: Tensor | None = None
    cache: Cache | None = None

    @property
    def token_positions(self) -> Tensor:
        """Positions counted from each sequence's first token: [T], or [B, T] with padding."""
        return self.positions_T if self.padding_B is None else _without_padding(self.positions_T, self.padding_B)

    @property
    def start(self) -> int | Tensor:
        """Positions that the cache held before this forward."""
        return 0 if self.cache is None else self.cache.length

    @property
    def is_static(self) -> bool:
        """Whether the cache's length is known to the device only."""
        return isinstance(self.start, Tensor)

    def layer(self, index: int | None) -> LayerCache | None:
        """The cache of block `index`; None without a cache, and for blocks of an encoder (index None)."""
        return None if self.cache is None or index is None else self.cache.layers[index]

    def visible(self, positions_T: Tensor) -> Tensor:
        """Which of the S keys queries at these positions see: bool [T, S], or [B, 1, T, S] with documents.

        If causal, positions before the first, which a convolution over attention weights reads, see no key.
        """
        key_S = torch.arange(self.keys, device=positions_T.device)
        seen_TS = key_S <= positions_T[:, None] if self.causal else torch.ones_like(key_S, dtype=torch.bool).expand(len(positions_T), -1)
        if self.document_ids_BS is None:
            return seen_TS
        own_B1T1 = self.document_ids_BS[:, None, positions_T.clamp(min=0), None]
        return seen_TS & (own_B1T1 == self.document_ids_BS[:, None, None])

    @property
    def hidden(self) -> Tensor:
        """Which keys each query does not see: bool [T, S] or [B, 1, T, S]."""
        return ~(self.visible(self.positions_T) if self.mask is None else self.mask)

    @property
    def is_square(self) -> bool:
        """Whether query t stands at position t, there are as many keys, and no later key is visible."""
        return self.causal and isinstance(self.start, int) and self.start == 0 and len(self.positions_T) == self.keys

    def non_causal(self) -> Context:
        """The context of an encoder: the same positions and documents, no cache, every key visible. Only where the cache was empty."""
        assert not self.is_static and self.start == 0
        return replace(self, causal=False, cache=None).with_masks()

    def with_memory(self, size: int) -> Context:
        """This context for blocks with `size` further keys, before all others, that every query sees."""
        if size == 0:
            return self
        seen = self.visible(self.positions_T) if self.mask is None else self.mask
        return replace(self, mask=F.pad(seen, (size, 0), value=True), block_mask=None)

    def with_masks(self) -> Context:
        """This context with the masks that it needs: for documents, and for queries after cached positions."""
        ids_BS, length = self.document_ids_BS, len(self.positions_T)
        if ids_BS is None:
            needs_none = not self.causal or (not self.is_static and (self.start == 0 or length == 1))
            return replace(self, mask=None if needs_none else self.visible(self.positions_T))
        by_blocks = self.cache is None and _uses_flex(length, 2 * self.rotary[0].shape[-1], ids_BS.device)
        block_mask = document_block_mask(ids_BS, self.causal) if by_blocks else None
        return replace(self, mask=self.visible(self.positions_T), block_mask=block_mask)


def make_context(
    length: int,
    head_width: int,
    rope_theta: float,
    device: torch.device,
    document_ids_BS: Tensor | None = None,
    cache: Cache | None = None,
) -> Context:
    """The context of `length` new positions. document_ids_BS: of cached and new positions, and of a static cache's empty ones."""
    start, padding_B = (0, None) if cache is None else (cache.length, cache.padding_B)
    new_T = start + torch.arange(length, device=device)
    if cache is not None and cache.rotary is not None:
        keys = cache.layers[0].k.shape[2]
        cos, sin = (table.index_select(-2, new_T) for table in cache.rotary)
    else:
        keys = int(start) + length
        cos, sin = rotary_tables(new_T if padding_B is None else _without_padding(new_T, padding_B), head_width, rope_theta)
    ids_BS = None if document_ids_BS is None else document_ids_BS[:, :keys]
    return Context((cos, sin), new_T, keys, document_ids_BS=ids_BS, padding_B=padding_B, cache=cache).with_masks()


def _uses_flex(length: int, head_width: int, device: torch.device) -> bool:
    """Whether FlexAttention masks the documents: where torch.compile traces a forward in bfloat16 on CUDA, and there is a tile to skip.

    Uncompiled it would materialise the attention weights, in float32 its backward is slow, and on a CPU it has no backward.
    """
    compiled = torch.compiler.is_compiling() and device.type == "cuda" and torch.is_autocast_enabled("cuda")
    return compiled and length > TILE and head_width >= NARROWEST_FLEX_HEAD


def document_block_mask(document_ids_BT: Tensor, causal: bool) -> BlockMask:
    """Which tiles of keys each tile of queries reads: those that share a document with it and, if causal, are not later.

    It equals what `create_block_mask` makes of all T · T pairs. Since ids never fall along a row, the first and the last id of a tile are
    enough: two tiles share a document if their ranges of ids overlap, and both lie in one document if the first id of each is the last
    of the other. Every operation has a fixed shape, so that a CUDA graph can capture it.
    """
    length = document_ids_BT.shape[1]
    padded = F.pad(document_ids_BT, (0, -length % TILE), value=length + 1)  # padding is a document of its own
    first_BN, last_BN = padded[:, ::TILE], padded[:, TILE - 1 :: TILE]
    visible_BNN = (first_BN[:, :, None] <= last_BN[:, None]) & (first_BN[:, None] <= last_BN[:, :, None])
    full_BNN = (first_BN[:, :, None] == last_BN[:, None]) & (first_BN[:, None] == last_BN[:, :, None])
    visible_to_keys_BNN, full_to_keys_BNN = visible_BNN, full_BNN  # symmetric, unless causal
    if causal:  # on the diagonal, part of a tile is later
        visible_BNN, visible_to_keys_BNN = visible_BNN.tril(), visible_BNN.triu()
        full_BNN, full_to_keys_BNN = full_BNN.tril(-1), full_BNN.triu(1)

    def sees(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_document = document_ids_BT[b, query] == document_ids_BT[b, key]
        return same_document & (query >= key) if causal else same_document

    of_queries = *_listed(visible_BNN & ~full_BNN), *_listed(full_BNN)
    of_keys = *_listed(visible_to_keys_BNN & ~full_to_keys_BNN), *_listed(full_to_keys_BNN)
    return BlockMask((length, length), *of_queries, *of_keys, (TILE, TILE), sees)


def _listed(chosen_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """For each row, how many tiles are chosen [B, 1, N], and the indices of all tiles, chosen ones first [B, 1, N, N].

    FlexAttention's kernels read the indices as contiguous memory, whatever their strides. The compiler may lay out a sorted or
    transposed tensor otherwise, but not one that is written by `scatter_`.
    """
    count_BN1 = chosen_BNN.sum(-1, keepdim=True)
    place_BNN = torch.where(chosen_BNN, chosen_BNN.cumsum(-1), count_BN1 + (~chosen_BNN).cumsum(-1)) - 1
    indices_BNN = torch.zeros_like(place_BNN, dtype=torch.int32, memory_format=torch.contiguous_format)
    numbers_BNN = torch.arange(place_BNN.shape[-1], dtype=torch.int32, device=place_BNN.device).expand_as(place_BNN)
    return count_BN1[:, None, :, 0].to(torch.int32), indices_BNN.scatter_(-1, place_BNN, numbers_BNN)[:, None]


def _without_padding(positions_T: Tensor, padding_B: Tensor) -> Tensor:
    """Positions counted from each sequence's first token, [B, T]; 0 within the padding."""
    return (positions_T - padding_B[:, None]).clamp(min=0)
