"""The rate of Z on held-out sequences, and the decoder's use of Z (docs/probing.md, Rate and Latent ablation).

The mean KL over sequences is I(S; Z) + KL(Q(Z) ‖ P), Q(Z) = E_S Q(Z|S) (Hoffman and Johnson, "ELBO surgery", 2016): information, and the
mismatch of the aggregate posterior with the prior. N sequences give bounds on the first (Poole et al., arXiv 1905.06922), and so on the
second:

    lower  E log Q(Z_i|S_i) / mean_j Q(Z_i|S_j)              over all j; at most log2 N
    upper  E log Q(Z_i|S_i) / mean_{j ≠ i} Q(Z_i|S_j)        at most the KL

Where tokens share a Z (`latent.every`), each Z counts once: of the T positions, those that have one of their own are measured.

Shapes: N sequences, B at a time, T positions, U units (bits or numbers) of a Z, F units of all Zs of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from freetf_cli.data.batches import DataSource
from freetf_cli.evaluation import Advance
from freetf_cli.evaluation.likelihood import cost
from freetf_cli.evaluation.posterior import PosteriorPass, information_bounds, latent_of, posterior_draws, prior_draws
from freetf_cli.evaluation.statistics import Floats, bootstrap, check_enough, interval, resampled_means, share
from freetf_cli.model.decoder import Decoder
from freetf_cli.model.latent import Distribution, Units, joined
from freetf_cli.records import LEAST_KL, LN2
from freetf_cli.records.likelihood import Estimate
from freetf_cli.records.probe import LatentAblation, Rate

ACTIVE = 0.01  # variance over sequences of the posterior mean of an active unit (Burda et al., arXiv 1509.00519); of a bit: P(bit = 1)
ACTIVE_KL = 0.01  # mean KL of an active dimension, bits
MOST_PAIRED = 4096  # sequences in the bounds of I(S; Z), each paired with all others
_COLUMNS = 1024  # units that are resampled at a time
_BATCH_TOKENS = {"cpu": 1 << 14, "cuda": 1 << 17}


@dataclass(frozen=True, eq=False)
class Posterior:
    """Posteriors of N held-out sequences and costs given Z, on the CPU."""

    distribution: Distribution  # of the N sequences; the prior where the latent mask is 0
    latent_mask: Tensor  # [N, T], 1 where Z can reach a counted target
    z: Tensor  # a draw from each posterior [N, …]
    positions: NDArray[np.int64]  # those with a Z of their own, less than T where tokens share one
    other: NDArray[np.int64]  # the number of another sequence for each sequence [N]
    ce: Floats  # nats per sequence with Z from the posterior [N]
    ce_other: Floats  # the same with the Z of the other sequence
    ce_prior: Floats  # the same with Z from the prior
    targets: Floats  # how many targets count [N]
    bytes: Floats  # of text, in the counted targets [N]; 0 for other data
    documents: NDArray[np.int64]  # the document in which each sequence begins [N]
    hidden: Tensor  # features of the hidden states below the injection [N, F]
    row_bits: int = 0  # of the bits of a Z, the highest that a row has once

    def own(self, values_NT: Tensor) -> Floats:
        """Values [N, T, …] at the positions with a Z of their own."""
        return np.ascontiguousarray(values_NT.numpy()[:, self.positions])


@torch.inference_mode()
def read_posterior(
    model: Decoder, source: DataSource, split: str, sequences: int, seed: int, features: Callable[[Tensor], Tensor], advance: Advance
) -> Posterior:
    """Encode held-out sequences, and measure their CE with Z from their own posterior, another sequence's posterior, and the prior.

    features: maps hidden states [B, T, D] to features [B, F] for the probes. advance is called twice for each sequence. InputError for
    fewer than 20 sequences.
    """
    device, length, row = model.embedding.weight.device, source.context, 0
    size = max(2, _BATCH_TOKENS.get(device.type, 1 << 16) // length)
    parts: list[list[Tensor]] = []
    distributions: list[Distribution] = []
    sizes: list[Floats] = []
    for batch in source.held_out(split, sequences, size):
        passed, rows = PosteriorPass(model, batch), range(row, row + len(batch.inputs))
        distributions.append(passed.posterior.within(passed.latent_mask))
        z = posterior_draws(model, distributions[-1], rows, length, seed)
        costs = [_nats(passed, drawn) for drawn in (z, prior_draws(model, rows, length, seed))]
        targets = (passed.targets >= 0).sum(1).double()
        parts.append([one.cpu() for one in (passed.latent_mask, z, targets, *costs, features(passed.x_BTD))])
        sizes.append(source.target_bytes(split, batch.targets))
        row = rows.stop
        advance(len(rows))
    check_enough(row, "sequences", f"--sequences, or more data in split '{split}'")
    mask, z, targets, ce, ce_prior, hidden = (torch.cat(column) for column in zip(*parts, strict=True))
    documents = source.held_out_documents(split, sequences)
    other, ce_other = others(documents, seed), []
    for batch, others_z in zip(source.held_out(split, sequences, size), torch.split(z[other], size), strict=True):
        ce_other.append(_nats(PosteriorPass(model, batch), others_z.to(device)).cpu())
        advance(len(others_z))
    costs_N = (ce.numpy(), torch.cat(ce_other).numpy(), ce_prior.numpy())
    latent = latent_of(model)
    own = np.arange(length)[latent.own]
    whole = joined(distributions)
    return Posterior(whole, mask, z, own, other, *costs_N, targets.numpy(), np.concatenate(sizes), documents, hidden, latent.row_bits)


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

    mask_NT, units = posterior.own(posterior.latent_mask.double()), posterior.distribution.units()
    if units is None:
        kl_NT = posterior.own((posterior.distribution.kl() * posterior.latent_mask).double() / LN2)
    else:
        unit_kl_NTU = posterior.own((units.kl * posterior.latent_mask[..., None]).double() / LN2)
        kl_NT = unit_kl_NTU.sum(2)
    row_bits = posterior.row_bits
    limited_NT = unit_kl_NTU[..., :-row_bits].sum(2) if row_bits else kl_NT
    ce_N, kl_N = posterior.ce / LN2, kl_NT.sum(1)
    kl = estimate(kl_N)
    paired = np.random.default_rng(0).permutation(len(kl_N))[:MOST_PAIRED]
    lower_P, upper_P = information_bounds(posterior.distribution.rows(torch.from_numpy(paired)), posterior.z[paired])
    bounds = (lower_P, upper_P, kl_N[paired] - upper_P, kl_N[paired] - lower_P)
    low, high, mismatch_low, mismatch_high = (_within(estimate(terms_P, rows=paired), kl) for terms_P in bounds)
    by_unit = {} if units is None else _by_unit(units, unit_kl_NTU, posterior, mismatch_high, seed)
    return Rate(
        kl=kl,
        ce=estimate(ce_N),
        nelbo=estimate(ce_N + kl_N),
        by_position=_ratios(limited_NT, mask_NT, posterior.documents, seed),
        positions=posterior.positions.tolist(),
        kappa=kappa,
        above_kappa=share((limited_NT > kappa).sum(1), mask_NT.sum(1), clusters=posterior.documents, seed=seed),
        information_low=low,
        information_high=high,
        mismatch_low=mismatch_low,
        mismatch_high=mismatch_high,
        efficiency=None if floor is None or not kl.low > LEAST_KL else estimate(floor - ce_N, kl_N),
        floor=floor,
        sequences=len(kl_N),
        paired=len(paired),
        targets=float(posterior.targets.mean()),
        row_bits=row_bits,
        row_kl=estimate(kl_N - limited_NT.sum(1)) if row_bits else None,
        **dict.fromkeys(("by_bit", "active_bits", "all_bits", "imbalance")) | by_unit,
    )


def _by_unit(units: Units, kl_NTU: Floats, posterior: Posterior, mismatch: Estimate, seed: int) -> dict[str, Any]:
    """What is known of single bits or dimensions, by the names of `Rate`. kl_NTU: bits."""
    documents, kl_NU, mean_NTU = posterior.documents, kl_NTU.sum(1), posterior.own(units.mean.double())
    by_unit = _ratios(kl_NU, np.ones((len(kl_NU), 1)), documents, seed)
    imbalance, active = _single_units(mean_NTU, documents, seed)
    if units.name == "bit":
        all_bits = kl_NTU[0].size - (len(kl_NTU[0]) - 1) * posterior.row_bits
        return {"by_bit": by_unit, "active_bits": active, "all_bits": all_bits, "imbalance": _within(imbalance, mismatch)}
    return {"by_dim": by_unit, "active_dims": _active_by_kl(kl_NTU, documents, seed), "active_units": active, "all_dims": kl_NTU[0].size}


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


def _single_units(mean_NTU: Floats, documents: NDArray[np.int64], seed: int) -> tuple[Estimate, Estimate]:
    """Σ KL(mean of a bit ‖ 1/2) in bits, which means nothing for dimensions, and the number of active units.

    The first is corrected for chance, 2 · variance of the mean / ln 2 per bit, and its resamples, which have it twice, for twice as much.
    """
    found = []
    mean_NF = mean_NTU.reshape(len(mean_NTU), -1)
    for start in range(0, mean_NF.shape[1], _COLUMNS):
        p_NF = mean_NF[:, start : start + _COLUMNS]
        columns = np.concatenate([p_NF, np.square(p_NF), np.ones((len(p_NF), 1))], axis=1)
        means_RF = resampled_means(columns, clusters=documents, seed=seed)
        mean_RF, square_RF = np.split(means_RF[:, :-1] / means_RF[:, -1:], 2, axis=1)
        chance = 2 * mean_RF.var(0).sum() / LN2
        active = [(p_NF.var(0) > ACTIVE).sum(), (square_RF - np.square(mean_RF) > ACTIVE).sum(1)]
        found.append([_imbalance(p_NF.mean(0)) - chance, _imbalance(mean_RF) - 2 * chance, *active])
    imbalance, imbalance_R, active, active_R = (sum(parts) for parts in zip(*found, strict=True))
    return interval(float(imbalance), imbalance_R), interval(float(active), active_R)


def _active_by_kl(kl_NTU: Floats, documents: NDArray[np.int64], seed: int) -> Estimate:
    """The number of units whose mean KL is above ACTIVE_KL. kl_NTU: bits."""
    kl_NF = kl_NTU.reshape(len(kl_NTU), -1)
    active, active_R = 0, np.zeros(())
    for start in range(0, kl_NF.shape[1], _COLUMNS):
        part_NF = kl_NF[:, start : start + _COLUMNS]
        means_RF = resampled_means(np.concatenate([part_NF, np.ones((len(part_NF), 1))], axis=1), clusters=documents, seed=seed)
        active += (part_NF.mean(0) > ACTIVE_KL).sum()
        active_R = active_R + (means_RF[:, :-1] / means_RF[:, -1:] > ACTIVE_KL).sum(1)
    return interval(float(active), active_R)


def _imbalance(mean_RF: Floats) -> Floats:
    """Σ KL(mean of a bit ‖ 1/2) over the last axis, in bits."""
    p = np.clip(mean_RF, 1e-12, 1 - 1e-12)
    return np.asarray((1 + p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum(-1), np.float64)


def latent_ablation(posterior: Posterior, seed: int = 0) -> LatentAblation:
    """CE with Z from the own posterior, another sequence's posterior, and the prior."""
    wrong = bootstrap(posterior.ce_other - posterior.ce, posterior.targets, clusters=posterior.documents, seed=seed)
    own, other, prior = (
        cost(nats, posterior.targets, posterior.bytes, seed, posterior.documents)
        for nats in (posterior.ce, posterior.ce_other, posterior.ce_prior)
    )
    return LatentAblation(own, other, prior, wrong)
