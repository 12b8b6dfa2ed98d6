"""What changes with the step: the learning rate, and the weights of the latent's terms. Pure functions of (recipe, step)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from freetf_cli.recipe import LatentConfig, TrainConfig

LN2 = math.log(2.0)


class LatentWeights(NamedTuple):
    """The scalars of the objective at a step. kappa: nats per token; slope: of the KL below κ; mismatch: of the aggregate mismatch."""

    kappa: float
    slope: float
    mismatch: float


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine from lr to lr_final · lr at the last step. step counts from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    return config.lr * (config.lr_final + (1 - config.lr_final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def latent_weights(step: int, config: LatentConfig | None, steps: int) -> LatentWeights:
    """At a step of a run of `steps`; at `steps` itself, what holds in the end. All zero for a baseline."""
    if config is None:
        return LatentWeights(0.0, 0.0, 0.0)
    points = config.schedule
    share = step / steps
    kappa = scheduled(points["kappa"], config.kappa, share) if "kappa" in points else _annealed(step, config, steps)
    slope, mismatch = (scheduled(points.get(name, ()), getattr(config, name), share) for name in ("slope", "mismatch"))
    return LatentWeights(kappa * LN2, slope, mismatch)


def scheduled(points: Sequence[Sequence[float]], final: float, share: float) -> float:
    """The value at a share of the run. Points are [share, value], the last is [share]: from there on it is `final`.

    Between two points the value moves in equal ratios where both are above zero, as scales want to be crossed, else in a straight line.
    """
    if not points or share >= points[-1][0]:
        return final
    path = [*((begin, value) for begin, value in points[:-1]), (points[-1][0], final)]
    if share <= path[0][0]:
        return path[0][1]
    (begin, a), (end, b) = next(pair for pair in pairwise(path) if pair[1][0] > share)
    part = (share - begin) / (end - begin)
    return float(a * (b / a) ** part) if min(a, b) > 0 else a + (b - a) * part


def _annealed(step: int, config: LatentConfig, steps: int) -> float:
    """κ in bits by `kappa_start` and `kappa_anneal`. A run shorter than the annealing anneals over all of its steps."""
    anneal = min(config.kappa_anneal, steps)
    if config.kappa_start is None or step >= anneal:
        return config.kappa
    return config.kappa_start + (config.kappa - config.kappa_start) * step / anneal
