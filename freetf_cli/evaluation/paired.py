"""Costs of two models on the same sequences, and their paired difference B − A, in which the difficulty of a sequence cancels."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np

from freetf_cli.evaluation.likelihood import RowCosts
from freetf_cli.records import LN2
from freetf_cli.records.paired import METRICS, Difference, MetricPair, Positions


def pairs(a: RowCosts, b: RowCosts) -> dict[str, MetricPair]:
    """Each metric of A and of B, and B − A with its paired 95 % interval if both have it. A and B must have the same rows."""
    return {name: _pair(name, a, b) for name in METRICS}


def _pair(name: str, a: RowCosts, b: RowCosts) -> MetricPair:
    first, second = (one.cost(one.nats[name]) if name in one.nats else None for one in (a, b))
    if first is None or second is None:
        return MetricPair(first, second, difference=None, relative_percent=None)
    apart = a.cost(b.nats[name] - a.nats[name])
    difference = Difference(**asdict(apart), excludes_zero=apart.low > 0 or apart.high < 0)
    return MetricPair(first, second, difference, relative_percent(float(a.nats[name].sum()), float(b.nats[name].sum())))


def relative_percent(a: float, b: float) -> float:
    """100 (B − A) / |A|; 0 if both are zero, infinite if only A is."""
    if a == 0:
        return 0.0 if b == 0 else math.copysign(math.inf, b)
    return 100 * (b - a) / abs(a)


def positions(a: RowCosts, b: RowCosts) -> Positions:
    """CE + KL (a baseline's CE) at each position, in bits per token; NaN where no target is counted."""
    counted = np.where(a.position_targets, a.position_targets, np.nan)
    means_a, means_b = ((one.position_nats / (counted * LN2)).tolist() for one in (a, b))
    return Positions(means_a, means_b, a.position_targets.tolist())
