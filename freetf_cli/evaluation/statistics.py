"""Intervals for everything that is evaluated: a 95 % percentile bootstrap of means and ratios over sequences or documents.

SciPy's `bootstrap` gives the same (a test compares them), but it does not know clusters, is several times slower than one product of
multinomial counts with the data, and belongs to the extra `probe`, while `evaluate` and `compare` need intervals without it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from freetf_cli.errors import InputError
from freetf_cli.records.likelihood import Estimate

RESAMPLES = 2000
LEAST = 20  # items to resample: with fewer, the percentiles of a bootstrap are too narrow to be called 95 %
_BLOCK = 100  # resamples at a time

Floats = NDArray[np.float64]


def check_enough(count: int, what: str, hint: str) -> None:
    """Raise InputError for fewer items than an interval needs."""
    if count < LEAST:
        raise InputError(f"{count} {what} are too few for an interval: at least {LEAST} are needed", hint=hint)


def bootstrap(values: ArrayLike, weights: ArrayLike | None = None, *, clusters: ArrayLike | None = None, seed: int = 0) -> Estimate:
    """Σ values / Σ weights of N items, by default the mean, with its interval.

    clusters [N]: items of one cluster, such as windows of one document, are drawn together, if there are at least LEAST clusters.
    """
    top = np.asarray(values, np.float64)
    bottom = np.ones_like(top) if weights is None else np.asarray(weights, np.float64)
    columns = _clustered(np.stack([top, bottom], axis=1), clusters)
    drawn = resampled(columns[(columns != 0).any(1)], seed)  # an item that counts in neither sum is none
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = drawn[:, 0] / drawn[:, 1]
        ratios = ratios[~np.isnan(ratios)]  # without draws in which nothing counts
        low, high = np.quantile(ratios, [0.025, 0.975]) if len(ratios) else (np.nan, np.nan)
        return Estimate(float(top.sum() / bottom.sum()), float(low), float(high))


def _clustered(columns: Floats, clusters: ArrayLike | None) -> Floats:
    """The sums of each cluster's rows, or the rows themselves with too few clusters."""
    if clusters is None:
        return columns
    _, where = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(where.max()) + 1
    if count < LEAST:
        return columns
    return np.stack([np.bincount(where, column, minlength=count) for column in columns.T], axis=1)


def resampled(columns: Floats, seed: int = 0) -> Floats:
    """Means of columns [N, C] over bootstrap draws of the rows [RESAMPLES, C]; all columns have the same draws."""
    rng, count = np.random.default_rng(seed), len(columns)
    if not count:
        return np.empty((0, columns.shape[1]))
    parts = [rng.multinomial(count, np.full(count, 1 / count), size=_BLOCK) @ columns / count for _ in range(RESAMPLES // _BLOCK)]
    return np.concatenate(parts)
