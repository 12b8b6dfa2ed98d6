"""Grouped-query attention with rotary embedding, and its key/value cache.

Shapes: B sequences, T positions, S cached and new positions, D width, M query heads, K key/value heads, E head width.
The other kinds of attention: attention_kinds.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli import kernels
from freetf_cli.config.recipe import ModelConfig
from freetf_cli.kernels import Rotary


@dataclass
class LayerCache:
    """Keys and values of one block, [B, K, length, E]; the part before the model's position is filled."""

    k: Tensor
    v: Tensor

    def extend(self, k_BKTE: Tensor, v_BKTE: Tensor, position: int | Tensor) -> tuple[Tensor, Tensor]:
        """Write T new positions at `position`; return everything up to them, [B, K, position + T, E]. Of a position that only the device
        knows T is 1, and all of the cache is returned."""
        if isinstance(position, Tensor):
            self.k.index_copy_(2, position[None], k_BKTE.to(self.k.dtype))
            self.v.index_copy_(2, position[None], v_BKTE.to(self.v.dtype))
            return self.k, self.v
        end = position + k_BKTE.shape[2]
        self.k[:, :, position:end] = k_BKTE
        self.v[:, :, position:end] = v_BKTE
        return self.k[:, :, :end], self.v[:, :, :end]


class Sight(NamedTuple):
    """What queries may see. position: of the first of them, as `Attention.forward` has it, and documents_BS too."""

    causal: bool
    position: int | Tensor
    documents_BS: Tensor | None

    @property
    def hides(self) -> bool:
        """Whether there may be a key that a query must not see."""
        return self.causal or self.documents_BS is not None

    def places(self, queries: int, device: torch.device, before: int = 0) -> Tensor:
        """Positions of the queries, and of so many before them, [T]."""
        return self.position + torch.arange(-before, queries, device=device)

    def of(self, at_T: Tensor, keys: int) -> Tensor:
        """Which of the S keys queries at these positions may see, [T, S], or [B, 1, T, S] with documents."""
        key_S = torch.arange(keys, device=at_T.device)
        seen_TS = key_S <= at_T[:, None] if self.causal else torch.ones(len(at_T), keys, dtype=torch.bool, device=at_T.device)
        if self.documents_BS is None:
            return seen_TS
        return seen_TS & (self.documents_BS[:, None, at_T.clamp(min=0), None] == self.documents_BS[:, None, None])


class Attention(nn.Module):
    """Softmax attention whose queries and keys/values may come from different streams."""

    softmax: ClassVar[bool] = True  # kernels of whole blocks and of short sequences know no other

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.key_heads, self.head_width = config.heads, config.key_heads, config.head_width
        self.q = nn.Linear(config.width, self.heads * self.head_width, bias=False)
        self.k = nn.Linear(config.width, self.key_heads * self.head_width, bias=False)
        self.v = nn.Linear(config.width, self.key_heads * self.head_width, bias=False)
        self.out = nn.Linear(self.heads * self.head_width, config.width, bias=False)

    def forward(
        self,
        q_BTD: Tensor,
        kv_BTD: Tensor,
        rotary: Rotary,
        *,
        causal: bool,
        cache: LayerCache | None = None,
        position: int | Tensor = 0,
        documents_BS: Tensor | None = None,
    ) -> Tensor:
        """Attend from q_BTD to kv_BTD (and to what `cache` holds before `position`, [] int64 where only the device knows it); returns
        [B, T, D].

        A query [1, 1, D] is the same for all sequences and positions: it is projected once, and turned for each position.
        documents_BS: the number of the document that each position is in, where documents in one row must not see each other.
        """
        if cache is None and not position and documents_BS is None and self._is_short(kv_BTD):
            return self.out(self._short(q_BTD, kv_BTD, rotary, causal))
        q_BMTE, k_BKSE, v_BKSE = (part.transpose(1, 2) for part in self._project(q_BTD, kv_BTD, rotary))
        q_BMTE = q_BMTE.expand(len(kv_BTD), -1, -1, -1)
        if cache is not None:
            k_BKSE, v_BKSE = cache.extend(k_BKSE, v_BKSE, position)
        y_BMTE = self.attend(q_BMTE, k_BKSE, v_BKSE, Sight(causal, position, documents_BS), cache)
        return self.out(y_BMTE.transpose(1, 2).flatten(2))

    def attend(self, q_BMTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, sight: Sight, cache: LayerCache | None) -> Tensor:
        """What each head returns for its queries, before the output product; the kinds differ here. Keys and values are all that there are,
        cached ones too."""
        if sight.documents_BS is None and isinstance(sight.position, Tensor):
            return _attend_up_to(sight.position, q_BMTE, k_BKSE, v_BKSE)
        whole = sight.documents_BS is None and q_BMTE.shape[2] == k_BKSE.shape[2]
        last = sight.documents_BS is None and q_BMTE.shape[2] == 1  # it sees all keys
        mask = None if whole or last or not sight.hides else sight.of(sight.places(q_BMTE.shape[2], q_BMTE.device), k_BKSE.shape[2])
        return F.scaled_dot_product_attention(
            q_BMTE, k_BKSE, v_BKSE, attn_mask=mask, is_causal=whole and sight.causal, enable_gqa=q_BMTE.shape[1] != k_BKSE.shape[1]
        )

    def new_cache(self, sequences: int, length: int, dtype: torch.dtype) -> LayerCache:
        """An empty cache for `length` positions."""
        shape = (sequences, self.key_heads, length, self.head_width)
        return LayerCache(*(torch.zeros(shape, device=self.k.weight.device, dtype=dtype) for _ in range(2)))

    def _project(self, q_BTD: Tensor, kv_BTD: Tensor, rotary: Rotary) -> tuple[Tensor, ...]:
        """Queries, keys and values by head, [B, T, heads, E]; queries and keys rotated."""
        m, k = self.heads, self.key_heads
        if not kernels.packs(self.q, self.k, self.v):
            q_BTF, k_BTF, v_BTF = self.q(q_BTD), self.k(kv_BTD), self.v(kv_BTD)
            return kernels.rotate(self._heads(q_BTF), rotary), kernels.rotate(self._heads(k_BTF), rotary), self._heads(v_BTF)
        if q_BTD is kv_BTD:
            return kernels.rotate_and_split(kernels.project_packed(kv_BTD, self.q, self.k, self.v), rotary, (m, k, k), rotated=2)
        query = kernels.rotate_and_split(self.q(q_BTD), rotary, (m,), rotated=1)
        return *query, *kernels.rotate_and_split(kernels.project_packed(kv_BTD, self.k, self.v), rotary, (k, k), rotated=1)

    def _is_short(self, kv_BTD: Tensor) -> bool:
        """Whether `kernels.short_attention` computes it: softmax attention, each query head with a key head of its own."""
        simple = self.softmax and self.heads == self.key_heads and kernels.are_plain(self.q, self.k, self.v)
        return simple and kernels.takes_short_attention(kv_BTD, self.head_width)

    def _short(self, q_BTD: Tensor, kv_BTD: Tensor, rotary: Rotary, causal: bool) -> Tensor:
        if q_BTD is kv_BTD:
            return kernels.short_attention(kernels.project_packed(kv_BTD, self.q, self.k, self.v), None, rotary, self.heads, causal)
        q_BTF = self.q(q_BTD).expand(*kv_BTD.shape[:2], -1)
        return kernels.short_attention(kernels.project_packed(kv_BTD, self.k, self.v), q_BTF, rotary, self.heads, causal)

    def _heads(self, x_BTF: Tensor) -> Tensor:
        return x_BTF.view(*x_BTF.shape[:2], -1, self.head_width)


def _attend_up_to(position: Tensor, q_BM1E: Tensor, k_BKSE: Tensor, v_BKSE: Tensor) -> Tensor:
    """One query a sequence attends to the keys up to its own position, [B, M, 1, E]; what the cache holds beyond counts for nothing."""
    batch, heads, length, width = k_BKSE.shape
    q_BKGE = q_BM1E.reshape(batch, heads, -1, width)
    wide = torch.promote_types(q_BKGE.dtype, torch.float32)
    later_S = torch.arange(length, device=k_BKSE.device) > position
    scores_BKGS = (q_BKGE @ k_BKSE.mT).to(wide) * width**-0.5
    shares_BKGS = torch.softmax(scores_BKGS.masked_fill(later_S, -torch.inf), dim=-1)
    return (shares_BKGS.to(v_BKSE.dtype) @ v_BKSE).reshape(*q_BM1E.shape[:3], -1)
