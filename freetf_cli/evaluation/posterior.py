"""The posterior of held-out sequences, draws of Z, and costs given Z, shared by likelihood, answers and probes.

Shapes: B sequences, K draws of Z for each, T positions. Costs are in nats, in float32 or wider.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from freetf_cli.data.batches import IGNORE, Batch
from freetf_cli.device import on_threads
from freetf_cli.model.attention.registry import attention_weights_per_token
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import Distribution, Latent, joined
from freetf_cli.model.loss import latent_mask
from freetf_cli.records import LN2
from freetf_cli.streams import keyed

_TOKENS_AT_ONCE = {"cpu": 1 << 12, "cuda": 1 << 18}  # through the upper half; on a CPU, activations then stay in its cache
_PAIRS_AT_ONCE = 256  # Zs whose probabilities under all distributions are computed together
_LOGITS_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 30}  # elements of [tokens, V]


class PosteriorPass:
    """The pass of a batch through a Free model: the lower half once, the encoder once where it is needed, the upper half once per Z."""

    def __init__(self, model: Decoder, batch: Batch) -> None:
        self._model = model
        self.tokens, self.targets = tensors(model, batch)  # [B, T] each
        self.latent_mask = latent_mask(self.targets)  # [B, T], 1 where Z can reach a counted target
        self._ctx = model.context(self.tokens)
        self.x_BTD = model.lower(self.tokens, self._ctx)  # the hidden states below the latent

    @cached_property
    def posterior(self) -> Distribution:
        """Q(Z|S) of each sequence."""
        return self._model.infer_latent(self.x_BTD, self.tokens, self._ctx)

    def nats(self, z: Tensor) -> Tensor:
        """−log P(target | Z) [B · K, T], from K Zs for each sequence, sequence by sequence. Computed in pieces to limit memory."""
        rows, context = self.tokens.shape
        owner = torch.arange(rows, device=z.device).repeat_interleave(len(z) // rows)
        count = -(-len(z) // rows_at_once(self._model, context))
        if spreads := z.device.type == "cpu" and not torch.is_grad_enabled():
            threads = torch.get_num_threads()
            count = min(len(z), -(-count // threads) * threads)
        pieces = zip(torch.tensor_split(z, count), torch.tensor_split(owner, count), strict=True)
        return torch.cat(on_threads(self._piece, pieces) if spreads else [self._piece(*piece) for piece in pieces])

    def _piece(self, z: Tensor, own: Tensor) -> Tensor:
        """−log P(target | Z) of the rows `own`, each with its own Z."""
        hidden_BTD = self._model.upper(self.x_BTD[own], z, self._model.context(self.tokens[own]))
        return target_nats(self._model, hidden_BTD, self.targets[own])


def latent_of(model: Decoder) -> Latent:
    """The latent of a Free model."""
    if model.latent is None:
        raise ValueError("a baseline has no latent")
    return model.latent


def posterior_draws(model: Decoder, posterior: Distribution, rows: range, length: int, seed: int, count: int = 1) -> Tensor:
    """`count` Zs from the posterior of each held-out row, each row from its own stream: [rows · count, …], row by row."""
    shape = latent_of(model).noise_shape(length)
    noise = np.concatenate([keyed(seed, "posterior", row).random((count, *shape), dtype=np.float32) for row in rows])
    repeated = posterior.rows(torch.arange(len(rows)).repeat_interleave(count))
    return repeated.sample(torch.from_numpy(noise).to(model.embedding.weight.device))


def prior_draws(model: Decoder, rows: range, length: int, seed: int, count: int = 1) -> Tensor:
    """`count` Zs from the prior for each held-out row, each row from its own stream: [rows · count, …], row by row."""
    latent = latent_of(model)
    streams = [keyed(seed, "prior", row) for row in rows]
    drawn = [latent.prior(stream, length) for stream in streams for _ in range(count)]
    return torch.from_numpy(np.stack(drawn)).to(model.embedding.weight.device)


@torch.no_grad()
def information(model: Decoder, batches: Iterable[Batch], noise: Callable[[int], Tensor]) -> float:
    """The lower bound of I(S; Z) of the batches' N sequences, nats: the mean of log Q(Z_i|S_i) − log mean_j Q(Z_i|S_j), at most ln N.

    It is the estimate of He et al. (arXiv 1901.05534): their KL minus that of the aggregate posterior, both with one draw of Z.
    noise: makes the uniform noise of a given number of sequences.
    """
    distributions, zs = [], []
    for batch in batches:
        passed = PosteriorPass(model, batch)
        distributions.append(passed.posterior.within(passed.latent_mask))
        zs.append(passed.posterior.sample(noise(len(passed.tokens))).cpu())
    low, _ = information_bounds(joined(distributions), torch.cat(zs))
    return float(low.mean()) * LN2


def information_bounds(distribution: Distribution, z: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Terms [N] in bits, one a sequence, whose means are the lower and the upper bound of I(S; Z). The N × N matrix is computed in blocks.

    A bootstrap of the terms needs no resampling of the mean over j: to first order its error cancels, since E Q(Z|S_j) / Q(Z) is 1.
    """
    count, low, high = len(z), [], []
    for number, log_q_BN in enumerate(distribution.log_prob_pairs(z, _PAIRS_AT_ONCE)):  # [i, j]: log Q(Z_i | S_j)
        start = number * _PAIRS_AT_ONCE
        own = torch.arange(len(log_q_BN)), torch.arange(start, start + len(log_q_BN))
        own_B = log_q_BN[own]
        low.append(own_B - torch.logsumexp(log_q_BN, dim=1) + math.log(count))
        log_q_BN[own] = -torch.inf
        high.append(own_B - torch.logsumexp(log_q_BN, dim=1) + math.log(count - 1))
    return (torch.cat(low) / LN2).numpy(), (torch.cat(high) / LN2).numpy()


def target_nats(model: Decoder, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    """−log P of each target in nats [B, T]; 0 where a target does not count."""
    logits_BTV = model.logits(hidden_BTD)
    wide = torch.promote_types(logits_BTV.dtype, torch.float32)  # bfloat16 is too coarse for sums over positions
    nats = F.cross_entropy(logits_BTV.to(wide).flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE, reduction="none")
    return nats.view_as(targets_BT)


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
