"""95 % percentile bootstrap intervals of means and ratios over sequences or documents.

SciPy's `bootstrap` gives the same intervals (a test compares them). It has no clusters, is several times slower than multinomial counts
times the data, and belongs to the extra `probe`, which `evaluate` and `compare` must not need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from freetf_cli.errors import InputError
from freetf_cli.records.likelihood import Estimate

RESAMPLES = 2000
LEAST = 20  # items; with fewer, a percentile bootstrap covers less than 95 %
_BLOCK = 100  # resamples at a time
# Student's 97.5 % quantiles for 1 to 9 degrees of freedom. SciPy computes them, but belongs to the extra `probe`.
_STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)

Floats = NDArray[np.float64]


def check_enough(count: int, what: str, hint: str) -> None:
    """Raise InputError if there are fewer items than an interval needs."""
    if count < LEAST:
        raise InputError(f"too few {what} for an interval: {count}, and at least {LEAST} are needed", hint=hint)


def bootstrap(values: ArrayLike, weights: ArrayLike | None = None, *, clusters: ArrayLike | None = None, seed: int = 0) -> Estimate:
    """The ratio Σ values / Σ weights of N items (default: the mean), with its interval; NaN if a value is.

    clusters [N]: items of one cluster, such as the windows of a document, are resampled together if there are at least LEAST clusters.
    """
    top = np.asarray(values, np.float64)
    bottom = np.ones_like(top) if weights is None else np.asarray(weights, np.float64)
    resampled = resampled_means(np.stack([top, bottom], axis=1), clusters=clusters, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        return interval(float(top.sum() / bottom.sum()), resampled[:, 0] / resampled[:, 1])


def share(values: ArrayLike, weights: ArrayLike | None = None, *, clusters: ArrayLike | None = None, seed: int = 0) -> Estimate:
    """`bootstrap` of a share. If it is 0 or 1, all resamples are equal, and the interval is Wilson's over items or clusters."""
    found = bootstrap(values, weights, clusters=clusters, seed=seed)
    if found.value not in (0, 1):
        return found
    items = np.arange(len(np.asarray(values))) if clusters is None else np.asarray(clusters)
    count = len(np.unique(items if weights is None else items[np.asarray(weights) > 0]))
    return wilson(found.value * count, count)


def repeated(values: Sequence[float]) -> Estimate:
    """The mean of 2 to 10 independent repetitions of a measurement, with Student's 95 % interval."""
    mean = float(np.mean(values))
    half = _STUDENT[len(values) - 2] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def wilson(part: float, total: float) -> Estimate:
    """part / total with Wilson's 95 % interval, which also holds near 0 and 1. SciPy has it too, but belongs to the extra `probe`."""
    z, mean = 1.959964, part / total
    middle = (mean + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(mean * (1 - mean) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return Estimate(mean, max(0.0, middle - half), min(1.0, middle + half))


def resampled_means(columns_NF: Floats, *, clusters: ArrayLike | None = None, seed: int = 0) -> Floats:
    """Means of the columns in each bootstrap resample [RESAMPLES, F], up to a factor that all columns share. clusters: see `bootstrap`."""
    if clusters is not None:
        members, number = np.unique(np.asarray(clusters), return_inverse=True)
        if len(members) >= LEAST:
            columns_NF = np.stack([np.bincount(number, column) for column in columns_NF.T], axis=1)
    columns_NF = columns_NF[(columns_NF != 0).any(1)]  # items that are zero in all columns do not count
    rng, count = np.random.default_rng(seed), len(columns_NF)
    if not count:
        return np.full((RESAMPLES, columns_NF.shape[1]), np.nan)
    share = np.full(count, 1 / count)
    return np.concatenate([rng.multinomial(count, share, size=_BLOCK) @ columns_NF / count for _ in range(RESAMPLES // _BLOCK)])


def interval(value: float, resampled: Floats) -> Estimate:
    """The value with the percentile interval of its resamples."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
