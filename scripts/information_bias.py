"""Measure the bias of the estimate of I(Z; factor), the mutual information by intervention, where the truth is known.

    python scripts/information_bias.py > docs/results/information-bias.json      # a quarter of an hour on one core

Each case draws M latents, each with a distribution over 57 values whose mean over latents is uniform, and N samples under each latent.
The table of docs/probing.md comes from its result.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable

import numpy as np
from scipy.stats import entropy

from freetf_cli.evaluation.probe.information import mutual_information
from freetf_cli.records.likelihood import Estimate

VALUES = 57
SIZES = ((24, 4, 100), (128, 64, 40), (1024, 128, 20))  # M, N, repetitions
SITES = ((0.0625, 0.0625, 0.0), (0.04, 0.5, 0.05), (0.03, 0.5, 0.07), (0.0, 0.125, 0.5), (0.01, 0.115, 0.5))  # low, high, share of high
Draw = Callable[[int, np.random.Generator], np.ndarray]


def ignores(groups: int, rng: np.random.Generator) -> np.ndarray:
    return np.full((groups, VALUES), 1 / VALUES)


def places(width: int, rest: float, count: int = 1) -> Draw:
    """A share 1 − rest lies in `count` random windows of so many values each, the rest anywhere."""

    def draw(groups: int, rng: np.random.Generator) -> np.ndarray:
        away = (np.arange(VALUES) - rng.integers(VALUES, size=(groups, count, 1))) % VALUES
        return (1 - rest) * (away < width).mean(1) / width + rest / VALUES

    return draw


def half_decides(groups: int, rng: np.random.Generator) -> np.ndarray:
    return np.where((np.arange(groups) % 2 == 0)[:, None], places(1, 0.0)(groups, rng), ignores(groups, rng))


def dirichlet(alpha: float) -> Draw:
    return lambda groups, rng: rng.dirichlet(np.full(VALUES, alpha), size=groups)


def near(width: float) -> Draw:
    """Values near a random centre; on a ring, so that the mean over latents is uniform."""

    def draw(groups: int, rng: np.random.Generator) -> np.ndarray:
        away = np.abs(np.arange(VALUES) - rng.integers(VALUES, size=groups)[:, None])
        p = np.exp(-np.minimum(away, VALUES - away) / width)
        return p / p.sum(1, keepdims=True)

    return draw


CASES: dict[str, Draw] = {
    "Z is ignored": ignores,
    "Z decides": places(1, 0.0),
    "Z decides, but for 5 % anywhere": places(1, 0.05),
    "Z decides, but for 10 % anywhere": places(1, 0.1),
    "Z decides, but for 25 % anywhere": places(1, 0.25),
    "Z decides, but for 50 % anywhere": places(1, 0.5),
    "a pull of 20 % to a place": places(1, 0.8),
    "a pull of 10 % to a place": places(1, 0.9),
    "a window of 5 places": places(5, 0.0),
    "a window of 5 places, but for 25 % anywhere": places(5, 0.25),
    "a window of 15 places, but for 10 % anywhere": places(15, 0.1),
    "one of two places": places(1, 0.0, 2),
    "one of two places, but for 25 % anywhere": places(1, 0.25, 2),
    "half of the Zs decide, the others say nothing": half_decides,
    "Dirichlet 1": dirichlet(1.0),
    "Dirichlet 0.2": dirichlet(0.2),
    "Dirichlet 0.05": dirichlet(0.05),
    "near a place, width 15": near(15.0),
    "near a place, width 4": near(4.0),
    "near a place, width 1": near(1.0),
}


def summary(estimates: list[Estimate], truth: float) -> dict[str, float]:
    """Bias and deviation of the estimates, bits, and how many of their intervals cover the truth."""
    errors = [estimate.value - truth for estimate in estimates]
    covered = sum(estimate.low - 1e-3 <= truth <= estimate.high + 1e-3 for estimate in estimates)
    return {
        "truth": round(truth, 3),
        "bias": round(float(np.mean(errors)), 4),
        "deviation": round(float(np.std(errors)), 4),
        "covered": covered / len(estimates),
    }


def measure(draw: Draw, groups: int, count: int, repetitions: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    truth = math.log2(VALUES) - float(entropy(draw(50_000, rng), base=2, axis=1).mean())
    estimates = []
    for repetition in range(repetitions):
        p = draw(groups, rng)
        values = np.stack([rng.choice(VALUES, size=count, p=row) for row in p])
        estimates.append(mutual_information(values, VALUES, seed=repetition).information)
    return summary(estimates, truth)


def measure_sites(low: float, high: float, share: float, groups: int, count: int, repetitions: int) -> dict[str, float]:
    """64 places: at each, a share of the Zs sets a mark with probability `high`, the others with `low`."""
    mean = share * high + (1 - share) * low
    whole, marked, others = (entropy([p, 1 - p], base=2) for p in (mean, high, low))
    truth = 64 * float(whole - share * marked - (1 - share) * others)
    estimates = []
    for repetition in range(repetitions):
        rng = np.random.default_rng(repetition)
        p = np.where(rng.random((groups, 64)) < share, high, low)
        values = (rng.random((groups, count, 64)) < p[:, None]).astype(np.int64)
        estimates.append(mutual_information(values, 2, seed=repetition).information)
    return summary(estimates, truth)


def main() -> None:
    found = {
        f"M={groups}, N={count}, {repetitions} repetitions": {
            name: measure(draw, groups, count, repetitions) for name, draw in CASES.items()
        }
        for groups, count, repetitions in SIZES
    }
    for groups, count, repetitions in SIZES:
        found[f"64 places, M={groups}, N={count}, {repetitions} repetitions"] = {
            f"{share:.0%} of the Zs at {high}, the others at {low}": measure_sites(low, high, share, groups, count, repetitions)
            for low, high, share in SITES
        }
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
