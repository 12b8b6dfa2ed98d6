"""95 % percentile bootstrap intervals of means and ratios over sequences or documents.

SciPy's `bootstrap` gives the same intervals (a test compares them). It has no clusters, is several times slower than multinomial counts
times the data, and belongs to the extra `probe`, which `evaluate` and `compare` must not need.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from freetf_cli.errors import InputError
from freetf_cli.records.likelihood import Estimate

RESAMPLES = 2000
LEAST = 20  # items; with fewer, a percentile bootstrap covers less than 95 %
_BLOCK = 100  # resamples at a time

Floats = NDArray[np.float64]


def check_enough(count: int, what: str, hint: str) -> None:
    """Raise InputError if there are fewer items than an interval needs."""
    if count < LEAST:
        raise InputError(f"{count} {what} are too few for an interval: at least {LEAST} are needed", hint=hint)


def bootstrap(values: ArrayLike, weights: ArrayLike | None = None, *, clusters: ArrayLike | None = None, seed: int = 0) -> Estimate:
    """The ratio Σ values / Σ weights of N items (default: the mean), with its interval.

    clusters [N]: items of one cluster, such as the windows of a document, are resampled together if there are at least LEAST clusters.
    """
    top = np.asarray(values, np.float64)
    bottom = np.ones_like(top) if weights is None else np.asarray(weights, np.float64)
    columns = _clustered(np.stack([top, bottom], axis=1), clusters)
    drawn = resampled(columns[(columns != 0).any(1)], seed)  # items that are zero in both sums do not count
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = drawn[:, 0] / drawn[:, 1]
        ratios = ratios[~np.isnan(ratios)]  # drop resamples in which nothing counts
        low, high = np.quantile(ratios, [0.025, 0.975]) if len(ratios) else (np.nan, np.nan)
        return Estimate(float(top.sum() / bottom.sum()), float(low), float(high))


def _clustered(columns: Floats, clusters: ArrayLike | None) -> Floats:
    """Sum the rows of each cluster; with too few clusters, return the rows."""
    if clusters is None:
        return columns
    _, where = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(where.max()) + 1
    if count < LEAST:
        return columns
    return np.stack([np.bincount(where, column, minlength=count) for column in columns.T], axis=1)


def resampled(columns: Floats, seed: int = 0) -> Floats:
    """Means of columns [N, C] over RESAMPLES bootstrap draws of the rows [RESAMPLES, C]. All columns share the draws."""
    rng, count = np.random.default_rng(seed), len(columns)
    if not count:
        return np.empty((0, columns.shape[1]))
    parts = [rng.multinomial(count, np.full(count, 1 / count), size=_BLOCK) @ columns / count for _ in range(RESAMPLES // _BLOCK)]
    return np.concatenate(parts)
