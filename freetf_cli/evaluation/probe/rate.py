"""The rate of Z on held-out sequences, and the decoder's use of Z (docs/probing.md, Rate and Latent ablation).

The mean KL over sequences is I(S; Z) + KL(Q(Z) ‖ P), Q(Z) = E_S Q(Z|S) (Hoffman and Johnson, "ELBO surgery", 2016): information, and the
mismatch of the aggregate posterior with the prior. N sequences give bounds on the first (Poole et al., arXiv 1905.06922), and so on the
second:

    lower  E log Q(Z_i|S_i) / mean_j Q(Z_i|S_j)              over all j; at most log2 N
    upper  E log Q(Z_i|S_i) / mean_{j ≠ i} Q(Z_i|S_j)        at most the KL

Shapes: N sequences, B at a time, T positions, H bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from freetf_cli.data.batches import DataSource
from freetf_cli.evaluation import Advance
from freetf_cli.evaluation.likelihood import cost
from freetf_cli.evaluation.posterior import PosteriorPass, posterior_draws, prior_draws
from freetf_cli.evaluation.statistics import Floats, bootstrap, check_enough, interval, resampled_means, share
from freetf_cli.latent.binary import BinaryDistribution, bit_logits, kl_per_token
from freetf_cli.latent.bits import at_least_float32, code_bits
from freetf_cli.model.decoder import Decoder
from freetf_cli.records import LEAST_KL, LN2
from freetf_cli.records.likelihood import Estimate
from freetf_cli.records.probe import LatentAblation, Rate

ACTIVE = 0.01  # variance of an active bit's probability over sequences (active units: Burda et al., arXiv 1509.00519)
MOST_PAIRED, _BLOCK = 4096, 256  # sequences in the bounds of I(S; Z), each paired with all others; rows of pairs at a time
_COLUMNS = 1024  # bits that are resampled at a time
_BATCH_TOKENS = {"cpu": 1 << 14, "cuda": 1 << 17}


@dataclass(frozen=True, eq=False)
class Posterior:
    """Posteriors of N held-out sequences and costs given Z, on the CPU."""

    bit_logits: Tensor  # [N, T, H]; 0, as under the prior, where the latent mask is 0
    latent_mask: Tensor  # [N, T], 1 where Z can reach a counted target
    z: Tensor  # a draw from each posterior [N, T]
    other: NDArray[np.int64]  # the number of another sequence for each sequence [N]
    ce: Floats  # nats per sequence with Z from the posterior [N]
    ce_other: Floats  # the same with the Z of the other sequence
    ce_prior: Floats  # the same with Z from the prior
    targets: Floats  # how many targets count [N]
    bytes: Floats  # of text, in the counted targets [N]; 0 for other data
    documents: NDArray[np.int64]  # the document in which each sequence begins [N]
    hidden: Tensor  # features of the hidden states below the injection [N, F]


@torch.inference_mode()
def read_posterior(
    model: Decoder, source: DataSource, split: str, sequences: int, seed: int, features: Callable[[Tensor], Tensor], advance: Advance
) -> Posterior:
    """Encode held-out sequences, and measure their CE with Z from their own posterior, another sequence's posterior, and the prior.

    features: maps hidden states [B, T, D] to features [B, F] for the probes. advance is called twice for each sequence. InputError for
    fewer than 20 sequences, and for a latent that has no bits.
    """
    device, length, row = model.embedding.weight.device, source.context, 0
    size = max(2, _BATCH_TOKENS.get(device.type, 1 << 16) // length)
    parts: list[list[Tensor]] = []
    sizes: list[Floats] = []
    for batch in source.held_out(split, sequences, size):
        passed, rows = PosteriorPass(model, batch), range(row, row + len(batch.inputs))
        logits_BTH = at_least_float32(bit_logits(passed.posterior)) * passed.latent_mask[..., None]
        assert isinstance(passed.posterior, BinaryDistribution)  # bit_logits refuses others
        z = posterior_draws(model, replace(passed.posterior, bit_logits=logits_BTH), rows, length, seed)
        costs = [_nats(passed, drawn) for drawn in (z, prior_draws(model, rows, length, seed))]
        targets = (passed.targets >= 0).sum(1).double()
        parts.append([one.cpu() for one in (logits_BTH, passed.latent_mask, z, targets, *costs, features(passed.x_BTD))])
        sizes.append(source.target_bytes(split, batch.targets))
        row = rows.stop
        advance(len(rows))
    check_enough(row, "sequences", f"--sequences, or more data in split '{split}'")
    logits, mask, z, targets, ce, ce_prior, hidden = (torch.cat(column) for column in zip(*parts, strict=True))
    documents = source.held_out_documents(split, sequences)
    other, ce_other = others(documents, seed), []
    for batch, others_z in zip(source.held_out(split, sequences, size), torch.split(z[other], size), strict=True):
        ce_other.append(_nats(PosteriorPass(model, batch), others_z.to(device)).cpu())
        advance(len(others_z))
    costs_N = (ce.numpy(), torch.cat(ce_other).numpy(), ce_prior.numpy())
    return Posterior(logits, mask, z, other, *costs_N, targets.numpy(), np.concatenate(sizes), documents, hidden)


def _nats(passed: PosteriorPass, z: Tensor) -> Tensor:
    """CE given Z, nats per sequence [B]."""
    return passed.nats(z).double().sum(1)


def others(documents: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A random other sequence for each sequence, if possible of another document."""
    rng, own = np.random.default_rng(seed), np.arange(len(documents))
    found = np.roll(own, 1)
    for _ in range(8):  # redraw for sequences that were paired with their own document
        drawn = rng.permutation(len(own))
        better = (documents[drawn] != documents) & ((documents[found] == documents) | (found == np.roll(own, 1)))
        found = np.where(better, drawn, found)
    return found


def rate(posterior: Posterior, kappa: float, floor: float | None, seed: int = 0) -> Rate:
    """The rate of Z and its decomposition. kappa in bits per token, floor in bits per sequence."""

    def estimate(values: ArrayLike, weights: ArrayLike | None = None, rows: NDArray[np.int64] | slice = slice(None)) -> Estimate:
        return bootstrap(values, weights, clusters=posterior.documents[rows], seed=seed)

    logits_NTH, mask_NT = posterior.bit_logits, posterior.latent_mask.double().numpy()
    bit_kl_NTH = ((kl_per_token(logits_NTH[..., None]) * posterior.latent_mask[..., None]).double() / LN2).numpy()
    kl_NT = bit_kl_NTH.sum(2)
    ce_N, kl_N = posterior.ce / LN2, kl_NT.sum(1)
    kl = estimate(kl_N)
    paired = np.random.default_rng(0).permutation(len(kl_N))[:MOST_PAIRED]
    lower_P, upper_P = information_bounds(logits_NTH[paired], posterior.z[paired])
    bounds = (lower_P, upper_P, kl_N[paired] - upper_P, kl_N[paired] - lower_P)
    low, high, mismatch_low, mismatch_high = (_within(estimate(terms_P, rows=paired), kl) for terms_P in bounds)
    imbalance, active = _single_bits(logits_NTH, posterior.documents, seed)
    return Rate(
        kl=kl,
        ce=estimate(ce_N),
        nelbo=estimate(ce_N + kl_N),
        by_position=_ratios(kl_NT, mask_NT, posterior.documents, seed),
        by_bit=_ratios(bit_kl_NTH.sum(1), np.ones((len(kl_N), 1)), posterior.documents, seed),
        kappa=kappa,
        above_kappa=share((kl_NT > kappa).sum(1), mask_NT.sum(1), clusters=posterior.documents, seed=seed),
        active_bits=active,
        all_bits=bit_kl_NTH[0].size,
        information_low=low,
        information_high=high,
        mismatch_low=mismatch_low,
        mismatch_high=mismatch_high,
        imbalance=_within(imbalance, mismatch_high),
        efficiency=None if floor is None or not kl.low > LEAST_KL else estimate(floor - ce_N, kl_N),
        floor=floor,
        sequences=len(kl_N),
        paired=len(paired),
        targets=float(posterior.targets.mean()),
    )


def _ratios(top_NF: Floats, bottom_NF: Floats, documents: NDArray[np.int64], seed: int) -> list[Estimate]:
    """Σ top / Σ bottom of each column with its interval; 0 where the bottom is zero."""
    resampled = resampled_means(np.concatenate([top_NF, bottom_NF], axis=1), clusters=documents, seed=seed)
    top_RF, bottom_RF = np.split(resampled, [top_NF.shape[1]], axis=1)
    values = top_NF.sum(0) / np.maximum(bottom_NF.sum(0), 1)
    ratios_RF = top_RF / np.where(bottom_RF > 0, bottom_RF, 1)
    return [interval(*both) for both in zip(values.tolist(), ratios_RF.T, strict=True)]


def _within(part: Estimate, whole: Estimate) -> Estimate:
    """The part, clipped to lie between 0 and the whole; its interval too."""
    low, value, high = np.clip([part.low, part.value, part.high], 0, [whole.value, whole.value, whole.high]).tolist()
    return Estimate(value, low, high)


def _single_bits(logits_NTH: Tensor, documents: NDArray[np.int64], seed: int) -> tuple[Estimate, Estimate]:
    """Σ KL(mean of a bit ‖ 1/2) in bits, and the number of active bits.

    The first is corrected for chance, 2 · variance of the mean / ln 2 per bit, and its resamples, which have it twice, for twice as much.
    """
    found = []
    for logits_NF in torch.split(logits_NTH.flatten(1), _COLUMNS, dim=1):
        p_NF = torch.sigmoid(logits_NF.double()).numpy()
        columns = np.concatenate([p_NF, np.square(p_NF), np.ones((len(p_NF), 1))], axis=1)
        means_RF = resampled_means(columns, clusters=documents, seed=seed)
        mean_RF, square_RF = np.split(means_RF[:, :-1] / means_RF[:, -1:], 2, axis=1)
        chance = 2 * mean_RF.var(0).sum() / LN2
        active = [(p_NF.var(0) > ACTIVE).sum(), (square_RF - np.square(mean_RF) > ACTIVE).sum(1)]
        found.append([_imbalance(p_NF.mean(0)) - chance, _imbalance(mean_RF) - 2 * chance, *active])
    imbalance, imbalance_R, active, active_R = (sum(parts) for parts in zip(*found, strict=True))
    return interval(float(imbalance), imbalance_R), interval(float(active), active_R)


def _imbalance(mean_RF: Floats) -> Floats:
    """Σ KL(mean of a bit ‖ 1/2) over the last axis, in bits."""
    p = np.clip(mean_RF, 1e-12, 1 - 1e-12)
    return np.asarray((1 + p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum(-1), np.float64)


def information_bounds(bit_logits_NTH: Tensor, z_NT: Tensor) -> tuple[Floats, Floats]:
    """Terms [N] in bits, one a sequence, whose means are the lower and the upper bound of I(S; Z). The N × N matrix is computed in blocks.

    A bootstrap of the terms needs no resampling of the mean over j: to first order its error cancels, since E Q(Z|S_j) / Q(Z) is 1.
    """
    logits_NF = bit_logits_NTH.flatten(1).double()
    count, bits = len(logits_NF), bit_logits_NTH.shape[-1]
    normaliser_N = F.softplus(logits_NF).sum(1)
    low, high = [], []
    for start in range(0, count, _BLOCK):
        chosen_BF = code_bits(z_NT[start : start + _BLOCK], bits).flatten(1).double()
        log_q_BN = chosen_BF @ logits_NF.T - normaliser_N  # [i, j]: log Q(Z_i | S_j)
        own = torch.arange(len(chosen_BF)), torch.arange(start, start + len(chosen_BF))
        own_B = log_q_BN[own]
        low.append(own_B - torch.logsumexp(log_q_BN, dim=1) + math.log(count))
        log_q_BN[own] = -torch.inf
        high.append(own_B - torch.logsumexp(log_q_BN, dim=1) + math.log(count - 1))
    return (torch.cat(low) / LN2).numpy(), (torch.cat(high) / LN2).numpy()


def latent_ablation(posterior: Posterior, seed: int = 0) -> LatentAblation:
    """CE with Z from the own posterior, another sequence's posterior, and the prior."""
    wrong = bootstrap(posterior.ce_other - posterior.ce, posterior.targets, clusters=posterior.documents, seed=seed)
    own, other, prior = (
        cost(nats, posterior.targets, posterior.bytes, seed, posterior.documents)
        for nats in (posterior.ce, posterior.ce_other, posterior.ce_prior)
    )
    return LatentAblation(own, other, prior, wrong)
