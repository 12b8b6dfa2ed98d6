"""The Free Transformer: Algorithm 2 of Fleuret, "The Free Transformer", arXiv 2510.17558.

    x = lower(tokens)                      lines 2–5    embedding, blocks 1 … L/2, causal
    bit_logits = infer_latent(x)           lines 7–8    the encoder: one block, non-causal, its query the constant ζ
    z = posterior, prior or given          lines 9, 11
    x = upper(x, post_sampler(z))          lines 13–18  block L/2+1 reads keys and values from x + r, then the rest
    logits = read_out(x)                   line 19

Z is always an argument: codes z [B, T], one integer in [0, 2^H) a position. Nothing here draws random numbers; the caller
brings the noise.

Shapes: B sequences, T positions, D width, H latent bits, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from freetf_cli.config.recipe import LatentConfig, ModelConfig
from freetf_cli.latent.binary import PostSampler, sample_codes
from freetf_cli.model.attention.registry import initialise_kinds
from freetf_cli.model.attention.softmax import Rotary
from freetf_cli.model.decoder import Cache, Decoder, initialise
from freetf_cli.model.layers import Block


@dataclass(frozen=True)
class PosteriorPass:
    """A pass with Z ~ Q(Z | S): the normed stream [B, T, D], the logits of Z's bits [B, T, H] and the codes drawn [B, T]."""

    hidden: Tensor
    bit_logits: Tensor
    z: Tensor


class FreeTransformer(Decoder):
    """A decoder with a latent Z injected in its middle, and the encoder that infers Z."""

    def __init__(self, config: ModelConfig, latent: LatentConfig) -> None:
        super().__init__(config)
        self.latent = latent
        self.depth = latent.depth or config.layers // 2
        self.encoder = Encoder(config, latent, own_blocks=self.depth if latent.encoder == "full" else 0)
        self.post_sampler = PostSampler(latent.bits, config.width, latent.numerics.gradient, latent.numerics.float8)

    def forward(self, tokens_BT: Tensor, z_BT: Tensor, cache: Cache | None = None) -> Tensor:  # type: ignore[override]
        """Logits of the next token, [B, T, V], for given codes z_BT."""
        return self.read_out(self.hidden(tokens_BT, z_BT, cache))

    def hidden(self, tokens_BT: Tensor, z_BT: Tensor, cache: Cache | None = None) -> Tensor:  # type: ignore[override]
        """The normed stream before the read-out, [B, T, D], for given codes."""
        documents_BS = None if cache is not None else self.documents(tokens_BT)
        return self.upper(self.lower(tokens_BT, cache), self.post_sampler(z_BT), cache, documents_BS)

    def forward_posterior(self, tokens_BT: Tensor, noise_BTH: Tensor) -> PosteriorPass:
        """The training pass: Z from the encoder, with uniform noise_BTH in [0, 1)."""
        x_BTD = self.lower(tokens_BT)
        bit_logits_BTH = self.infer_latent(x_BTD, tokens_BT)
        z_BT = sample_codes(bit_logits_BTH.detach(), noise_BTH)
        r_BTD = self.post_sampler(z_BT, bit_logits_BTH)
        return PosteriorPass(self.upper(x_BTD, r_BTD, documents_BS=self.documents(tokens_BT)), bit_logits_BTH, z_BT)

    def lower(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Embedding and the blocks below the injection: x [B, T, D]."""
        return self.run_blocks(range(self.depth), self.embedding(tokens_BT), cache, self.documents(tokens_BT, cache))

    def infer_latent(self, x_BTD: Tensor, tokens_BT: Tensor) -> Tensor:
        """Logits of the bits of Z given the whole sequence, [B, T, H]; 0, the prior, from `latent.window` on.

        tokens_BT is read only by a full encoder, and to tell documents apart.
        """
        rotary, documents_BS = self.rotary(x_BTD), self.documents(tokens_BT)
        if self.encoder.blocks:
            x_BTD = self.encoder.read(self.embedding(tokens_BT), rotary, documents_BS)
        bit_logits_BTH: Tensor = self.encoder(x_BTD, rotary, documents_BS)
        if self.latent.window is None:
            return bit_logits_BTH
        inferred_T = torch.arange(x_BTD.shape[1], device=x_BTD.device) < self.latent.window
        return bit_logits_BTH * inferred_T[:, None]

    def upper(self, x_BTD: Tensor, r_BTD: Tensor, cache: Cache | None = None, documents_BS: Tensor | None = None) -> Tensor:
        """The injection block, the blocks above it and the norm: [B, T, D].

        documents_BS: those of the tokens, where documents are kept apart; a cache has them from `lower`.
        """
        if cache is not None:
            documents_BS = cache.documents(x_BTD.shape[1])
        if documents_BS is None and self.config.separator is not None:
            raise ValueError("the model keeps documents apart: upper needs their numbers, as `documents` gives them")
        rotary = self.rotary(x_BTD, cache)
        x_BTD = self.run_block(self.depth, x_BTD, rotary, cache, keys_from=x_BTD + r_BTD, documents_BS=documents_BS)
        x_BTD = self.run_blocks(range(self.depth + 1, self.config.layers), x_BTD, cache, documents_BS)
        if cache is not None:
            cache.advance(x_BTD.shape[1])
        return self.norm(x_BTD)


class Encoder(nn.Module):
    """One non-causal block whose query and residual stream start at the learned vector ζ, RMSNorm, and a read-out of H logits.
    Its attention is softmax attention whatever the decoder's: mixing rows of a map says little where all of them have one query.

    ζ is the same at every position; the rotary embedding tells the positions apart. With `own_blocks` it is the classic
    conditional VAE's encoder instead (paper, Figure 1b): a non-causal stack of its own over the token embeddings.
    """

    def __init__(self, config: ModelConfig, latent: LatentConfig, own_blocks: int = 0) -> None:
        super().__init__()
        self.zeta = nn.Parameter(torch.empty(config.width))
        self.block = Block(config)
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.readout = nn.Linear(config.width, latent.bits, bias=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(own_blocks))

    def forward(self, x_BTD: Tensor, rotary: Rotary, documents_BT: Tensor | None = None) -> Tensor:
        """Bit logits [B, T, H] from a stream [B, T, D]."""
        zeta_11D = self.zeta[None, None]
        y_BTD = self.block(zeta_11D, rotary, keys_from=x_BTD, causal=False, documents_BS=documents_BT)
        return self.readout(self.norm(y_BTD))

    def read(self, x_BTD: Tensor, rotary: Rotary, documents_BT: Tensor | None = None) -> Tensor:
        """The full encoder's own stack, non-causal."""
        for block in self.blocks:
            x_BTD = block(x_BTD, rotary, causal=False, documents_BS=documents_BT)
        return x_BTD


def build_model(config: ModelConfig, latent: LatentConfig | None) -> Decoder:
    """A Free Transformer, or its baseline twin when `latent` is None; parameters not yet set."""
    return Decoder(config) if latent is None else FreeTransformer(config, latent)


@torch.no_grad()
def initialise_model(model: Decoder, seed: int) -> None:
    """Set all parameters from a seed. A Free model and its baseline get the same weights where they share them."""
    generators = [torch.Generator().manual_seed(2 * seed + part) for part in (0, 1)]
    shared = nn.ModuleDict({name: child for name, child in model.named_children() if name not in ("encoder", "post_sampler")})
    initialise(shared, model.config.layers, generators[0])
    initialise_kinds(model, torch.Generator().manual_seed(-seed - 1))  # a stream of its own: softmax attention has the other weights alike
    if isinstance(model, FreeTransformer):
        initialise(model.encoder, model.config.layers, generators[1])
        model.encoder.zeta.copy_(torch.randn(model.config.width, generator=generators[1]) * 0.02)
        model.post_sampler.initialise(model.latent.table_init, model.latent.table_std, generators[1])
