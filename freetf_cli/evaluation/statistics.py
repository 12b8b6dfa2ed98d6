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
    """The ratio Σ values / Σ weights of N items (default: the mean), with its interval; NaN if a value is.

    clusters [N]: items of one cluster, such as the windows of a document, are resampled together if there are at least LEAST clusters.
    """
    top = np.asarray(values, np.float64)
    bottom = np.ones_like(top) if weights is None else np.asarray(weights, np.float64)
    sums = np.stack([top, bottom], axis=1)
    if clusters is not None:
        members, number = np.unique(np.asarray(clusters), return_inverse=True)
        if len(members) >= LEAST:
            sums = np.stack([np.bincount(number, column) for column in sums.T], axis=1)
    sums = sums[(sums != 0).any(1)]  # items that are zero in both sums do not count
    rng, count = np.random.default_rng(seed), len(sums)
    blocks = [rng.multinomial(count, np.full(count, 1 / count), size=_BLOCK) @ sums / count for _ in range(RESAMPLES // _BLOCK)]
    resampled = np.concatenate(blocks)
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(resampled[:, 0] / resampled[:, 1], [0.025, 0.975])
        return Estimate(float(top.sum() / bottom.sum()), float(low), float(high))
