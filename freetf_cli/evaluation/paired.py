"""Costs of two models on the same sequences, and their paired difference B − A, in which the difficulty of a sequence cancels."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np

from freetf_cli.evaluation.likelihood import Floats, RowCosts
from freetf_cli.records import LN2
from freetf_cli.records.paired import METRICS, Difference, MetricPair, Positions


def pairs(a: RowCosts, b: RowCosts, bytes_per_token: float | None, seed: int = 0) -> dict[str, MetricPair]:
    """Each metric of A and of B, and B − A with its paired 95 % interval if both have it. A and B must have the same rows."""
    ours, theirs = a.metrics(), b.metrics()
    return {name: _pair(ours[name], theirs[name], a, bytes_per_token, seed) for name in METRICS}


def relative_percent(a: float, b: float) -> float:
    """100 (B − A) / |A|; 0 if both are zero, infinite if only A is."""
    if a == 0:
        return 0.0 if b == 0 else math.copysign(math.inf, b)
    return 100 * (b - a) / abs(a)


def positions(a: RowCosts, b: RowCosts) -> Positions:
    """CE + KL (a baseline's CE) at each position, in bits per token."""
    (sums_a, counted), (sums_b, _) = a.by_position, b.by_position
    return Positions(a=_means(sums_a, counted), b=_means(sums_b, counted), targets=counted.astype(int).tolist())


def _pair(a: Floats | None, b: Floats | None, rows: RowCosts, bytes_per_token: float | None, seed: int) -> MetricPair:
    """A metric of both models. a, b: nats per sequence [N]."""
    first, second = (None if nats is None else rows.cost(nats, bytes_per_token, seed) for nats in (a, b))
    if a is None or b is None:
        return MetricPair(first, second, difference=None, relative_percent=None)
    apart = rows.cost(b - a, bytes_per_token, seed)
    difference = Difference(**asdict(apart), excludes_zero=apart.low > 0 or apart.high < 0)
    return MetricPair(first, second, difference, relative_percent(float(a.sum()), float(b.sum())))


def _means(sums: Floats, counted: Floats) -> list[float]:
    """Means in bits per token; NaN where no target was counted."""
    means = np.divide(sums, counted * LN2, out=np.full_like(sums, np.nan), where=counted > 0)
    return [float(mean) for mean in means]
