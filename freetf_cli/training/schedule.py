"""What changes with the step: the learning rate and the weights of the latent's terms. Pure functions of (recipe, step)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from freetf_cli.config.recipe import LatentConfig, TrainConfig
from freetf_cli.model.latent import ObjectiveWeights
from freetf_cli.records import LN2


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine from lr to min_lr_ratio · lr at the last step. step counts from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - 1 - config.warmup)
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def objective_weights(step: int, config: LatentConfig | None, steps: int) -> ObjectiveWeights:
    """The objective's weights at a step of a run of `steps` steps; at `steps` the final ones. All 0 for a baseline. κ in nats."""
    if config is None:
        return ObjectiveWeights(0.0, 0.0, 0.0)

    objective = config.objective

    def now(name: Literal["kappa", "slope", "mismatch"], final: float) -> float:
        return scheduled(objective.schedule.get(name, ()), final, step / steps)

    return ObjectiveWeights(now("kappa", config.kappa) * LN2, now("slope", objective.slope), now("mismatch", objective.mismatch))


def scheduled(points: Sequence[Sequence[float]], final: float, share: float) -> float:
    """The value of a schedule after a share of the run.

    Points are [share, value] with straight lines between them; the last is [share], and from there on the value is `final`.
    """
    if not points or share >= points[-1][0]:
        return final
    path = [*((begin, value) for begin, value in points[:-1]), (points[-1][0], final)]
    if share <= path[0][0]:
        return path[0][1]
    (begin, a), (end, b) = next(pair for pair in pairwise(path) if pair[1][0] > share)
    return a + (b - a) * (share - begin) / (end - begin)
