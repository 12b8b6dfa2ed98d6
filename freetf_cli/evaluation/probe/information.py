"""Mutual information between Z and a discrete factor, from N samples under each of M latents Z_g from the prior:

    I(Z; f) = H(f) − mean_g H(f | Z_g)          bits

docs/probing.md (Intervention) explains the estimates and has simulations. H(f) is the entropy of the pooled counts with a delete-one-group
jackknife. H(f | Z_g) is an empirical Bayes estimate under free-form distributions (Kiefer and Wolfowitz; EM on a grid). It leans on the
pooled counts, which underestimate H(f) because they are M · N samples, so it has the same relative correction. The interval trusts no such
model: it holds every mean of H(f | Z_g) that fits the histogram of the counts (an F-localized interval: Ignatiadis and Wager,
doi 10.1080/01621459.2021.2008403), by linear programming over densities on a grid of p.

Samples in which the factor cannot be read are left out, and a group is weighted by the others. With several sites (is place s marked?) the
information is summed over them.

Shapes: S sites, M groups, N samples, A values of the factor, R rows of a mixture on a grid of G points, J counts, W weights of a peak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from freetf_cli.evaluation.probe.factors import probe_library
from freetf_cli.evaluation.statistics import Floats, check_enough
from freetf_cli.records import LN2
from freetf_cli.records.likelihood import Estimate
from freetf_cli.tasks.factors import Ints

_CONCENTRATIONS = torch.logspace(-3, 6, 28, dtype=torch.float64)  # β; a value in between is a mixture of two
_NULL_PRIOR = 10.0  # prior weight of the largest β in groups, as in adaptive shrinkage (Stephens, doi 10.1093/biostatistics/kxw041)
_PROBABILITIES = torch.sin(torch.linspace(0, math.pi / 2, 301, dtype=torch.float64)).square()  # evenly spaced in standard errors
_PEAKS = 1 - torch.logspace(-4, -0.05, 24, dtype=torch.float64)  # w of a peak
_ROUNDS, _SETTLED = 3000, 1e-8  # of EM, which converges slowly if a β fits a few groups by chance
_GRID = np.unique(np.concatenate([np.geomspace(1e-6, 1e-2, 60), np.sin(np.linspace(0, np.pi / 2, 601)) ** 2]))  # p in the linear programmes
_RESAMPLES, _LEVEL = 500, 0.95


@dataclass(frozen=True)
class Information:
    """I(Z; f), and the entropy H(f) that bounds it, in bits."""

    information: Estimate
    entropy: Estimate


def group_counts(values: Ints) -> Floats:
    """Counts [S, M, A] of values [M, N] or [M, N, S], without the unread ones."""
    sites_MNS = values[..., None] if values.ndim == 2 else values
    counts = [(sites_MNS == value).sum(1).T for value in range(max(int(sites_MNS.max()) + 1, 1))]
    return np.stack(counts, axis=-1).astype(np.float64)


def mutual_information(values: Ints, kinds: int, seed: int = 0) -> Information:
    """I(Z; f) of values [M, N] or marks [M, N, S] with `kinds` possible values. InputError with too few groups for an interval."""
    counts_SMA = group_counts(values)
    counts_SMA = counts_SMA[counts_SMA.sum((1, 2)) > 0][:, counts_SMA.sum((0, 2)) > 0]  # without sites and groups that were never read
    sites, groups, _ = counts_SMA.shape
    check_enough(groups, "groups in which the factor could be read", "raise --groups")
    total_S1A, most = counts_SMA.sum(1, keepdims=True), float(np.log2(kinds))
    pseudo_SM = groups * _entropy(total_S1A) - (groups - 1) * _entropy(total_S1A - counts_SMA)  # their mean: the jackknife of H(f)
    entropy = float(np.clip(pseudo_SM.mean(1), 0, most).sum())
    share_SM = counts_SMA.sum(-1) / counts_SMA.sum((1, 2))[:, None]
    (near, far), (least, largest) = _ranges_within(counts_SMA, share_SM, kinds, seed)
    within = float(np.clip((share_SM * _within(counts_SMA)).sum(), near, far))
    value = max(entropy - within, 0.0)
    error = 1.96 * float(pseudo_SM.sum(0).std(ddof=1)) / groups**0.5
    unseen = max(entropy - float(_entropy(total_S1A).sum()), 0.0)  # as much again as the jackknife has added may still be missing
    low = max(value - math.hypot(error, max(largest - within, 0.0)), 0.0)
    high = min(value + math.hypot(error, max(within - least, 0.0)) + unseen, most * sites)
    ends = max(entropy - error, 0.0), min(entropy + error + unseen, most * sites)
    return Information(Estimate(value, low, max(high, value)), Estimate(entropy, *ends))


def shuffled(values: Ints, seed: int = 0) -> Ints:
    """The same samples, assigned to groups at random. Their information with Z is zero, whatever the model does."""
    flat = values.reshape(-1, *values.shape[2:])
    return np.random.default_rng(seed).permutation(flat).reshape(values.shape)


def _entropy(counts: Floats) -> Floats:
    """Plug-in entropy of counts over the last axis, in bits."""
    p = counts / np.maximum(counts.sum(-1, keepdims=True), 1e-300)
    return np.asarray(-(p * np.log2(np.where(p > 0, p, 1.0))).sum(-1), np.float64)


def _within(counts_SMA: Floats) -> Floats:
    """Empirical Bayes estimates of H(f | Z_g) [S, M], in bits."""
    counts = torch.from_numpy(counts_SMA)
    within_SM = (_binary_entropies(counts) if counts.shape[-1] <= 2 else _shrunken_entropies(counts)).numpy()
    pooled_S1A = counts_SMA.sum(1, keepdims=True)
    counted_S1 = _entropy(pooled_S1A)
    lacking_S1 = _jackknife(pooled_S1A) - counted_S1
    return np.asarray(within_SM * (1 + lacking_S1 / np.maximum(counted_S1, 1e-9)), np.float64)


def _binary_entropies(counts_SMA: Tensor) -> Tensor:
    """E[H(p) | counts] [S, M] in bits, with p of all sites and groups from one free-form distribution."""
    counts_SMA = torch.nn.functional.pad(counts_SMA, (0, 2 - counts_SMA.shape[-1]))
    kinds_U2, where, repeats_U = torch.unique(counts_SMA.flatten(0, 1), dim=0, return_inverse=True, return_counts=True)
    p_G = _PROBABILITIES
    log_likelihood_UG = torch.special.xlogy(kinds_U2[:, :1], 1 - p_G) + torch.special.xlogy(kinds_U2[:, 1:], p_G)
    weights_UG = _mixture(log_likelihood_UG, repeats_U.double(), torch.zeros_like(p_G))
    entropy_G = (torch.special.entr(p_G) + torch.special.entr(1 - p_G)) / LN2
    entropies: Tensor = (weights_UG @ entropy_G)[where].view(counts_SMA.shape[:2])
    return entropies


def _shrunken_entropies(counts_SMA: Tensor) -> Tensor:
    """E[H(f | Z_g) | counts] [S, M] in bits, under Dirichlet priors around the pooled distribution."""
    pooled_SA = counts_SMA.sum(1)
    pooled_SA = pooled_SA / pooled_SA.sum(-1, keepdim=True).clamp_min(1e-300)
    n_SM = counts_SMA.sum(-1)
    likelihoods, entropies = [], []
    for beta in _CONCENTRATIONS:
        prior_S1A = (beta * pooled_SA)[:, None].clamp_min(1e-300)  # the terms of values that never occur cancel
        terms_SMA = torch.lgamma(counts_SMA + prior_S1A) - torch.lgamma(prior_S1A)
        likelihoods.append(terms_SMA.sum(-1) + torch.lgamma(beta) - torch.lgamma(n_SM + beta))
        posterior_SMA = counts_SMA + prior_S1A
        mean_SMA = posterior_SMA / (n_SM + beta)[..., None]
        entropies.append(torch.digamma(n_SM + beta + 1) - (mean_SMA * torch.digamma(posterior_SMA + 1)).sum(-1))
    for peak in _PEAKS:
        likelihood_SM, entropy_SM = _peaked(counts_SMA, pooled_SA[:, None], peak)
        likelihoods.append(likelihood_SM)
        entropies.append(entropy_SM)
    null_B = torch.zeros(len(likelihoods), dtype=torch.float64)
    null_B[len(_CONCENTRATIONS) - 1] = _NULL_PRIOR
    weights_RB = _mixture(torch.stack(likelihoods, dim=-1).flatten(0, 1), torch.ones(n_SM.numel(), dtype=torch.float64), null_B)
    return (weights_RB.view(*n_SM.shape, -1) * torch.stack(entropies, dim=-1)).sum(-1) / LN2


def _peaked(counts_SMA: Tensor, pooled_S1A: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood and expected entropy in nats [S, M] under w · (one value) + (1 − w) · pooled. The value is drawn from the pooled."""
    rest_S1A = ((1 - w) * pooled_S1A).clamp_min(1e-300)
    peak_S1A = rest_S1A + w
    gain_SMA = counts_SMA * (peak_S1A.log() - rest_S1A.log()) + pooled_S1A.clamp_min(1e-300).log()
    likelihood_SM = torch.special.xlogy(counts_SMA, rest_S1A).sum(-1) + gain_SMA.logsumexp(-1)
    entropy_S1A = torch.special.entr(rest_S1A).sum(-1, keepdim=True) - torch.special.entr(rest_S1A) + torch.special.entr(peak_S1A)
    return likelihood_SM, (gain_SMA.softmax(-1) * entropy_S1A).sum(-1)


def _ranges_within(counts_SMA: Floats, share_SM: Floats, kinds: int, seed: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """The smallest and largest mean of H(f | Z_g), summed over sites, in bits, that fit the counts: within half the band, and within it."""
    linprog, stats, entr = probe_library("scipy.optimize").linprog, probe_library("scipy.stats"), probe_library("scipy.special").entr
    n_SM, (sites, groups, _), two = counts_SMA.sum(-1), counts_SMA.shape, kinds <= 2
    n = int(min(np.quantile(n_SM[n_SM > 0], 0.1), n_SM.max(1).min()))  # samples of a group; smaller groups do not count
    weight_SM = share_SM * (n_SM >= n)
    weight_SM = groups * weight_SM / weight_SM.sum(1, keepdims=True)
    cells_SMA = counts_SMA[..., 1:] if two else counts_SMA  # p of one of two values tells that of the other
    j_J = np.arange(1, n + 1)
    at_least_MJ = np.zeros((groups, n))
    for size in np.unique(n_SM[n_SM >= n]):
        at_least_CJ = stats.hypergeom.sf(j_J - 1, size, np.arange(size + 1)[:, None], n)
        s, m = np.nonzero(n_SM == size)
        np.add.at(at_least_MJ, m, weight_SM[s, m, None] * at_least_CJ[cells_SMA[s, m].astype(int)].sum(1))
    p_G = np.unique(np.concatenate([[0.0, 1 / kinds], _GRID, counts_SMA.sum((0, 1)) / counts_SMA.sum()]))
    entropy_G = entr(p_G) + (entr(1 - p_G) if two else 0)
    fixed, equals = (np.ones((1, len(p_G))), [sites]) if two else (np.stack([np.ones_like(p_G), p_G]), [kinds * sites, sites])
    expected_JG = stats.binom.sf(j_J[:, None] - 1, n, p_G)
    mean_J, band_J = at_least_MJ.mean(0), _band(at_least_MJ, seed)
    found = []
    for width in (0.5, 1.0, 2.0, 4.0, 8.0):
        limits = np.concatenate([mean_J + width * band_J, width * band_J - mean_J])
        ends = [linprog(sign * entropy_G, np.concatenate([expected_JG, -expected_JG]), limits, fixed, equals) for sign in (1, -1)]
        if all(end.status == 0 for end in ends):  # else no density fits as closely
            found.append((ends[0].fun / LN2, -ends[1].fun / LN2))
            if width >= 1:
                return found[0], found[-1]
    return (0.0, math.log2(kinds) * sites), (0.0, math.log2(kinds) * sites)


def _band(statistics_MJ: Floats, seed: int) -> Floats:
    """Half the width [J] of the simultaneous 95 % band of the means over groups; what no group shows may be in one of 2 M."""
    groups = len(statistics_MJ)
    resampled = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=_RESAMPLES) @ statistics_MJ / groups
    error_J = np.maximum(resampled.std(0), 0.5 / groups)
    largest = (np.abs(resampled - statistics_MJ.mean(0)) / error_J).max(1)
    return np.asarray(max(float(np.quantile(largest, _LEVEL)), 2.0) * error_J)


def _mixture(log_likelihood_RG: Tensor, repeats_R: Tensor, belief_G: Tensor) -> Tensor:
    """The posterior of each row over the grid [R, G], under the maximum-likelihood distribution on the grid.

    repeats: how often each row occurs; belief: prior weight of each point of the grid, in rows.
    """
    relative = (log_likelihood_RG - log_likelihood_RG.amax(-1, keepdim=True)).exp()
    mixture_G = torch.full((relative.shape[1],), 1 / relative.shape[1], dtype=torch.float64)
    for _ in range(_ROUNDS):
        before = mixture_G
        mixture_G = mixture_G * ((repeats_R / (relative @ mixture_G)) @ relative) + belief_G
        mixture_G = mixture_G / mixture_G.sum()
        if float((mixture_G - before).abs().max()) < _SETTLED:
            break
    weighted = relative * mixture_G
    return weighted / weighted.sum(-1, keepdim=True)


def _jackknife(counts_SMA: Floats) -> Floats:
    """Delete-one-sample jackknife entropies of the groups [S, M], in bits."""
    n_SM, whole = counts_SMA.sum(-1), _entropy(counts_SMA)
    without = np.zeros_like(whole)
    for value, deleted in enumerate(np.eye(counts_SMA.shape[-1])):
        without += counts_SMA[..., value] / np.maximum(n_SM, 1) * _entropy(np.maximum(counts_SMA - deleted, 0))
    return np.where(n_SM > 1, n_SM * whole - (n_SM - 1) * without, whole)
