"""What changes with the step: the learning rate and the weights of the latent's terms. Pure functions of (recipe, step)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

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
        return ObjectiveWeights(0.0, 0.0, 0.0, 0.0)

    objective = config.objective

    def now(name: Literal["kappa", "slope", "mismatch", "beta"], final: float) -> float:
        return scheduled(objective.schedule.get(name, ()), final, step / steps)

    kappa, beta = now("kappa", config.kappa) * LN2, now("beta", objective.beta)
    return ObjectiveWeights(kappa, now("slope", objective.slope), now("mismatch", objective.mismatch), beta)


def scheduled(points: Sequence[Sequence[float]], final: float, share: float) -> float:
    """The value of a schedule after a share of the run.

    Points are [share, value] with straight lines between them; the last is [share], and from there on the value is `final`.
    """
    if not points:
        return final
    begins = [begin for begin, *_ in points]
    return float(np.interp(share, begins, [*(value for _, value in points[:-1]), final]))
