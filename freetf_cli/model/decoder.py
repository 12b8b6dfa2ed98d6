"""The decoder: a Llama-style Transformer, with or without a latent Z in its middle.

Without a latent it is the baseline. With one it is the Free Transformer, Algorithm 2 (A2) of Fleuret (arXiv 2510.17558):

    A2 lines 2–5    x = embedding(tokens), then the first `depth` blocks (L/2 in the paper)      `lower`
    A2 lines 7–8    Q(Z | tokens) from the encoder                                              `infer_latent`
    A2 line 9       Z sampled from Q, with noise that the caller brings                         `posterior.sample`
    A2 line 11      or Z given: drawn from the prior, shared or replayed by the caller
    A2 line 13      r = W[Z] (the paper's post-sampler)                                         `latent.inject`
    A2 lines 14–18  keys and values of the next block from x + r, queries and residual from x;  `upper`
                    the blocks above it, norm
    A2 line 19      logits = lm_head(x)                                                         `logits`

A forward draws no random numbers. The terms of the loss are sums over the batch, in nats.

Shapes, as suffixes of names: B sequences, T positions, S cached and new positions, D width, H latent bits, V vocabulary. Z of the
paper's latent is [B, T] (codes, int64), its noise [B, T, H] uniform in [0, 1); other kinds have shapes of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freetf_cli.config.recipe import ModelConfig
from freetf_cli.kernels import Embedding, linear_cross_entropy
from freetf_cli.model.attention.softmax import Attention
from freetf_cli.model.block import Block
from freetf_cli.model.context import PADDING, Cache, Context, make_context
from freetf_cli.model.latent import Distribution, Injection, Latent, ObjectiveWeights
from freetf_cli.model.loss import IGNORE, LossTerms, latent_mask
from freetf_cli.model.weights import Draws

EMBEDDING_STD = 0.02


@dataclass(frozen=True)
class Output:
    """The result of a forward: logits [B, T, V], and Q(Z | S) and Z if there are any.

    A forward with targets sets only `losses`. A compiled training step then has no other outputs, which would cost it gradients.
    """

    logits: Tensor | None = None
    losses: LossTerms | None = None
    posterior: Distribution | None = None
    z: Tensor | None = None


class Decoder(nn.Module):
    """Embedding, L blocks, RMSNorm, lm_head; `latent` makes it a Free Transformer."""

    def __init__(self, config: ModelConfig, latent: Latent | None = None) -> None:
        super().__init__()
        if config.vocab is None:
            raise ValueError("model.vocab must be known to build a model")
        self.config = config
        self.embedding = Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab, bias=False)
        self.latent = latent
        self.depth = config.layers if latent is None else latent.depth

    def forward(
        self,
        tokens_BT: Tensor,
        z: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        targets_BT: Tensor | None = None,
        weights: ObjectiveWeights | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
    ) -> Output:
        """One pass. A Free model needs z, or noise to sample Z from its posterior; if both are given, z wins. A baseline ignores both.

        targets_BT: the next token of each position, already shifted; the loss's terms are returned instead of logits, and positions
        with -100 do not count. weights: of the objective (κ and others), needed where Z is sampled and targets are given. last_only:
        logits of the last position only, [B, 1, V]. Raises ValueError if a Free model gets neither z nor noise.
        """
        ctx = self.context(tokens_BT, cache)
        x_BTD = self.lower(tokens_BT, ctx)
        posterior = None
        if self.latent is not None and z is None:
            if noise is None:
                raise ValueError("a Free model needs z, or noise to sample z from its posterior")
            posterior = self.infer_latent(x_BTD, tokens_BT, ctx)
            z = posterior.sample(noise)
        credited = posterior
        if self.training and self.latent is not None and posterior is not None and targets_BT is not None:
            credited, targets_BT = self.latent.credited(posterior, targets_BT)
        hidden_BTD = self.upper(x_BTD, z, ctx, credited)
        if cache is not None:
            cache.length += tokens_BT.shape[1]  # a tensor stays where it is: a CUDA graph has captured its address
        if targets_BT is not None:
            return Output(losses=self.losses(hidden_BTD, targets_BT, posterior, weights))
        return Output(logits=self.logits(hidden_BTD[:, -1:] if last_only else hidden_BTD), posterior=posterior, z=z)

    def lower(self, tokens_BT: Tensor, ctx: Context) -> Tensor:
        """Lines 2–5: embedding and the blocks below the latent (a baseline: all blocks), [B, T, D]."""
        x_BTD = self.embedding(tokens_BT)
        for index in range(self.depth):
            x_BTD = self.blocks[index](x_BTD, ctx)
        return x_BTD

    def infer_latent(self, x_BTD: Tensor, tokens_BT: Tensor, ctx: Context) -> Distribution:
        """Lines 7–8: Q(Z | tokens), from the whole sequence in tokens_BT. A Free model only."""
        assert self.latent is not None
        embedded_BTD = self.embedding(tokens_BT) if self.latent.reads_embeddings else x_BTD
        return self.latent.posterior(x_BTD, embedded_BTD, ctx.non_causal())

    def upper(self, x_BTD: Tensor, z: Tensor | None, ctx: Context, posterior: Distribution | None = None) -> Tensor:
        """Lines 13–18: Z's injection, the blocks above it, and the norm, [B, T, D].

        posterior: the distribution that Z was sampled from, through which gradients reach the encoder; None where Z was given.
        """
        injection = Injection() if self.latent is None or z is None else self.latent.inject(z, posterior)
        ctx, reach = ctx.with_memory(injection.memory_size), None if self.latent is None else self.latent.reach
        for index in range(self.depth, self.config.layers):
            x_BTD = injection.stream(index, x_BTD)
            kv_BTD = injection.kv(index, x_BTD)
            if reach is not None and kv_BTD is not None:
                kv_BTD = torch.where((ctx.token_positions < reach)[..., None], kv_BTD, x_BTD)
            x_BTD = self.blocks[index](x_BTD, ctx, kv_BTD, injection.memory(index))
        return injection.hidden(self.norm(x_BTD))

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Line 19: logits [B, T, V] of the normed stream."""
        return F.linear(hidden_BTD, self.lm_head_weight)

    @property
    def lm_head_weight(self) -> Tensor:
        """[V, D]: the embedding table where they are tied."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    def losses(self, hidden_BTD: Tensor, targets_BT: Tensor, posterior: Distribution | None, weights: ObjectiveWeights | None) -> LossTerms:
        """The terms of the objective, summed over the batch. Without a posterior (a baseline, or Z given) all latent terms are 0.

        weights.kappa is in nats per token, as the KL is.
        """
        ce = linear_cross_entropy(hidden_BTD.flatten(0, 1), self.lm_head_weight, targets_BT.flatten(), IGNORE)
        mask_BT = latent_mask(targets_BT)
        if self.latent is None or posterior is None:
            zero = torch.zeros_like(ce)
            return LossTerms(ce, zero, zero, zero, mask_BT.sum())
        assert weights is not None
        kl_BT = posterior.kl() * mask_BT
        penalty = weights.beta * self.latent.penalty(posterior, kl_BT, mask_BT, weights)
        own, limited_BT = self.latent.own, self.latent.limited_kl(posterior, kl_BT)
        return LossTerms(ce, kl_BT.sum(), penalty, (limited_BT[:, own] > weights.kappa).float().sum(), mask_BT[:, own].sum())

    @property
    def no_weight_decay(self) -> set[str]:
        """Names of the matrices that are tables of rows: AdamW must not decay rows that a batch did not read."""
        of_latent = () if self.latent is None else self.latent.no_weight_decay
        return {"embedding.weight", *(f"latent.{name}" for name in of_latent)}

    def context(self, tokens_BT: Tensor, cache: Cache | None = None) -> Context:
        """What all blocks of this forward share. With a cache, call it once a step: it writes the new positions' document ids there."""
        ids_BS = self._document_ids(tokens_BT, cache)
        config = self.config
        return make_context(tokens_BT.shape[1], config.head_width, config.rope_theta, tokens_BT.device, ids_BS, cache)

    def _document_ids(self, tokens_BT: Tensor, cache: Cache | None) -> Tensor | None:
        """The document id of each position, [B, S], of cached positions first; None where only causality hides keys.

        A separator begins a document: packed rows are cut out of `SEP d1 SEP d2 SEP …`. Left padding is a document of its own.
        """
        separator = self.config.separator
        if cache is None:
            return None if separator is None else (tokens_BT == separator).cumsum(-1)
        if cache.document_ids_BS is None:
            return None
        new_T = cache.length + torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        begun_BT = torch.zeros_like(tokens_BT) if separator is None else (tokens_BT == separator).cumsum(-1)
        # the id of the last earlier position; 0 at the start of a row, and after padding, whose id is negative
        before_B1 = cache.document_ids_BS[:, (new_T[:1] - 1).clamp(min=0)].clamp(min=0)
        ids_BT = before_B1 + begun_BT
        if cache.padding_B is not None:
            ids_BT = ids_BT.masked_fill(new_T < cache.padding_B[:, None], PADDING)
        cache.document_ids_BS.index_copy_(1, new_T, ids_BT)
        return cache.document_ids_BS

    def new_cache(
        self,
        sequences: int,
        length: int,
        dtype: torch.dtype | None = None,
        padding: Tensor | None = None,
        part: Literal["all", "lower", "upper"] = "all",
    ) -> Cache:
        """An empty cache for `length` positions of `sequences` sequences. padding [B]: left padding of each. part: of which blocks."""
        weight = self.embedding.weight
        lower, upper = (length if part in ("all", half) else 0 for half in ("lower", "upper"))
        rooms = (lower if index < self.depth else upper for index in range(self.config.layers))
        each = zip(self.attentions(), rooms, strict=True)
        layers = [attention.new_cache(sequences, room, dtype or weight.dtype) for attention, room in each]
        masked = self.config.separator is not None or padding is not None
        return Cache(layers, padding, torch.zeros(sequences, length, dtype=torch.long, device=weight.device) if masked else None)

    def attentions(self) -> Iterator[Attention]:
        """The attention of every block of the decoder, in order."""
        return (block.attention for block in self.blocks)  # type: ignore[misc]


@torch.no_grad()
def initialise(module: nn.Module, layers: int, draws: Draws) -> None:
    """Set weights: normal with deviation fan_in^-1/2, output projections of residual branches (2 L)^-1/2 times that, embeddings 0.02.

    Vectors and the kernels of a kind of attention keep the values that they were built with.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() != 2:
            continue
        std = EMBEDDING_STD if "embedding" in name else parameter.shape[-1] ** -0.5
        if name.endswith(("attention.out.weight", "ffn.down.weight")):
            std *= (2 * layers) ** -0.5
        draws.normal(name, parameter, std)
