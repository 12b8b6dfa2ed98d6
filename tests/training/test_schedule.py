"""Schedules as functions of the step."""

import math

import pytest

from freetf_cli.config.recipe import LatentConfig, ObjectiveConfig, TrainConfig
from freetf_cli.records import LN2
from freetf_cli.training.schedule import learning_rate, objective_weights, scheduled

TRAIN = TrainConfig(steps=110, batch=4, lr=1.0, min_lr_ratio=0.1, warmup=10)


def test_learning_rate_warms_up_and_follows_one_cosine_to_the_end() -> None:
    assert learning_rate(0, TRAIN) == pytest.approx(0.1)
    assert learning_rate(9, TRAIN) == pytest.approx(1.0)
    middle = 10 + 99 / 2
    assert learning_rate(int(middle), TRAIN) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (int(middle) - 10) / 99)))
    assert learning_rate(109, TRAIN) == pytest.approx(0.1)
    rates = [learning_rate(step, TRAIN) for step in range(10, 110)]
    assert rates == sorted(rates, reverse=True)


def test_points_are_joined_by_straight_lines() -> None:
    path = [[0.1, 8.0], [0.3, 8.0], [0.5]]
    assert [scheduled(path, 0.5, share) for share in (0, 0.1, 0.2, 0.3)] == pytest.approx([8.0] * 4)
    assert [scheduled(path, 0.5, share) for share in (0.35, 0.4, 0.45)] == pytest.approx([6.125, 4.25, 2.375])
    assert [scheduled(path, 0.5, share) for share in (0.5, 0.9, 1)] == [0.5] * 3
    assert scheduled([], 3.0, 0.2) == 3.0


def test_points_are_shares_of_the_run_and_without_a_schedule_a_weight_is_constant() -> None:
    latent = LatentConfig(kappa=0.5, bits=8, objective=ObjectiveConfig(schedule={"kappa": [[0, 4.5], [0.1]]}))
    assert [objective_weights(step, latent, 1000).kappa / LN2 for step in (0, 50, 100, 500)] == pytest.approx([4.5, 2.5, 0.5, 0.5])
    assert [objective_weights(step, latent, 100).kappa / LN2 for step in (0, 5, 10, 50)] == pytest.approx([4.5, 2.5, 0.5, 0.5])
    assert objective_weights(0, LatentConfig(kappa=2.0), 9) == pytest.approx((2 * LN2, 0.0, 0.0, 1.0))
    assert objective_weights(7, None, 9) == (0.0, 0.0, 0.0, 0.0)


def test_each_weight_follows_its_own_schedule() -> None:
    schedule = {"kappa": [[0, 2.0], [1.0]], "slope": [[0, 0.0], [0.5]], "mismatch": [[0.5, 0.0], [1.0]], "beta": [[0, 0.0], [1.0]]}
    latent = LatentConfig(kappa=0.5, bits=8, objective=ObjectiveConfig(slope=0.4, mismatch=3.0, schedule=schedule))
    assert objective_weights(50, latent, 100) == pytest.approx((1.25 * LN2, 0.4, 0.0, 0.5))
    assert objective_weights(75, latent, 100) == pytest.approx((0.875 * LN2, 0.4, 1.5, 0.75))
    assert objective_weights(100, latent, 100) == pytest.approx((0.5 * LN2, 0.4, 3.0, 1.0))
