"""The posterior pass, draws of Z, and costs given Z, shared by likelihood, answers and probes.

The lower half and the encoder run once per sequence; the upper half runs once per Z.

Shapes: B sequences, K draws, T positions. Costs are in nats, in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from freetf_cli.data.batches import IGNORE, Batch
from freetf_cli.model.attention.registry import attention_weights_per_token
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import Distribution, Latent
from freetf_cli.model.loss import latent_mask
from freetf_cli.streams import keyed

_TOKENS_AT_ONCE = {"cpu": 1 << 14, "cuda": 1 << 18}  # through the upper half
_LOGITS_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 30}  # elements of [tokens, V]


@dataclass(frozen=True)
class PosteriorPass:
    """The output of a Free model's lower half and encoder for a batch.

    tokens, targets: [B, T]. mask: the latent mask [B, T], 1 where Z can reach a counted target. x: the hidden states below the latent
    [B, T, D]. posterior: Q(Z|S).
    """

    tokens: Tensor
    targets: Tensor
    mask: Tensor
    x: Tensor
    posterior: Distribution


def latent_of(model: Decoder) -> Latent:
    """The model's latent; ValueError for a baseline."""
    if model.latent is None:
        raise ValueError("a baseline has no latent")
    return model.latent


def posterior_pass(model: Decoder, batch: Batch) -> PosteriorPass:
    """Run the lower half and the encoder."""
    tokens_BT, targets_BT = tensors(model, batch)
    ctx = model.context(tokens_BT)
    x_BTD = model.lower(tokens_BT, ctx)
    return PosteriorPass(tokens_BT, targets_BT, latent_mask(targets_BT), x_BTD, model.infer_latent(x_BTD, tokens_BT, ctx))


def draw(latent: Latent, posterior: Distribution, streams: Sequence[np.random.Generator], length: int, count: int = 1) -> Tensor:
    """`count` draws of Z for each of B sequences, each sequence from its own stream: [B · count, …], sequence by sequence."""
    shape = latent.noise_shape(length)
    noise = np.stack([stream.random((count, *shape), dtype=np.float32) for stream in streams])
    rows = posterior.rows(torch.arange(len(streams)).repeat_interleave(count)) if count > 1 else posterior
    return rows.sample(torch.from_numpy(noise.reshape(-1, *shape)).to(next(latent.parameters()).device))


def prior_draws(model: Decoder, rows: range, length: int, seed: int, count: int = 1) -> Tensor:
    """`count` Zs from the prior for each held-out row, each row from its own stream: [rows · count, …], row by row."""
    latent = latent_of(model)
    streams = [keyed(seed, "prior", row) for row in rows]
    drawn = [latent.prior(stream, length) for stream in streams for _ in range(count)]
    return torch.from_numpy(np.stack(drawn)).to(model.embedding.weight.device)


def target_nats(model: Decoder, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    """−log P of each target in nats [B, T]; 0 where a target does not count."""
    logits_BTV = model.logits(hidden_BTD)
    wide = torch.promote_types(logits_BTV.dtype, torch.float32)  # bfloat16 is too coarse for sums over positions
    return F.cross_entropy(logits_BTV.to(wide).transpose(1, 2), targets_BT, ignore_index=IGNORE, reduction="none")


def given_z_nats(model: Decoder, batch: PosteriorPass, z: Tensor) -> Tensor:
    """−log P(target | Z) in nats [B · K, T], for K Zs for each of the B sequences; computed in pieces to limit memory."""
    draws = len(z) // len(batch.tokens)
    owner = torch.arange(len(batch.tokens), device=batch.tokens.device).repeat_interleave(draws)
    at_once = rows_at_once(model, batch.tokens.shape[1])
    parts = []
    for part, of_row in zip(torch.split(z, at_once), torch.split(owner, at_once), strict=True):
        hidden_BTD = model.upper(batch.x[of_row], part, model.context(batch.tokens[of_row]))
        parts.append(target_nats(model, hidden_BTD, batch.targets[of_row]))
    return torch.cat(parts)


def tensors(model: Decoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """A batch's inputs and targets on the model's device."""
    device = model.embedding.weight.device
    return torch.from_numpy(batch.inputs).to(device), torch.from_numpy(batch.targets).to(device)


def rows_at_once(model: Decoder, context: int) -> int:
    """Rows of T positions that fit through the upper half together."""
    device = model.embedding.weight.device.type
    per_token = max(model.lm_head_weight.shape[0], attention_weights_per_token(model.config, context))
    tokens = min(_TOKENS_AT_ONCE.get(device, 1 << 16), _LOGITS_AT_ONCE.get(device, 1 << 26) // per_token)
    return max(1, tokens // context)
