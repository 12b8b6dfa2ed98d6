"""Paired differences against cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from freetf_cli.evaluation.compare import pairs, positions, relative_percent
from freetf_cli.evaluation.likelihood import RowCosts

TOKENS = np.array([10, 20, 30, 40] * 10)
COSTS = np.random.default_rng(0).uniform(0.5, 3.0, 40) * TOKENS


def costs(nats: np.ndarray, tokens: np.ndarray = TOKENS, *, free: bool = False, by_position=None, bytes_per_token: float = 0.0) -> RowCosts:
    more = {"nll": nats - 1.0, "ce_posterior": nats - 2.0, "ce_prior": nats + 1.0, "kl": np.full(len(nats), 2.0)}
    position_nats, position_targets = by_position or (np.zeros(1), np.zeros(1, int))
    return RowCosts(
        targets=tokens,
        bytes=tokens * bytes_per_token,
        documents=np.arange(len(nats)),
        nats={"nll": nats, "elbo": nats, **(more if free else {})},
        proposal="posterior" if free else "none",
        posterior_bound={},
        prior_bound={},
        above_kappa=0.5 if free else None,
        frequencies=1.0,
        position_nats=position_nats,
        position_targets=position_targets,
        seconds=0.0,
    )


def test_the_difficulty_of_a_sequence_cancels():
    """B costs 0.1 nats a token more on every sequence: the interval has no width, though the costs themselves vary widely."""
    pair = pairs(costs(COSTS), costs(COSTS + 0.1 * TOKENS))["nll"]
    found = pair.difference
    assert (found.nats_per_token, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.bits_per_token == pytest.approx(0.1 / math.log(2))
    assert (found.excludes_zero, found.direction) == (True, "higher")
    assert pair.a.high - pair.a.low > 0.2
    assert pair.relative_percent == pytest.approx(100 * 0.1 * TOKENS.sum() / COSTS.sum())


def test_the_mean_is_by_tokens_not_by_sequences():
    """Sequences of 10 and 30 tokens, of which only the long one costs more: 3 nats over 40 tokens."""
    tokens = np.array([10, 30] * 20)
    pair = pairs(costs(np.ones(40), tokens), costs(np.ones(40) + np.array([0.0, 3.0] * 20), tokens))["nll"]
    assert pair.difference.nats_per_token == pytest.approx(3 / 40)


def test_the_width_of_an_interval():
    """Differences of ±1 on 400 sequences of one token: the standard error is 1/20, the interval ±1.96 of it."""
    signs = np.tile([1.0, -1.0], 200)
    pair = pairs(costs(np.full(400, 5.0), np.ones(400, int)), costs(5.0 + signs, np.ones(400, int)))["nll"]
    assert (pair.difference.high - pair.difference.low) / 2 == pytest.approx(1.96 / 20, rel=0.08)
    assert (pair.difference.excludes_zero, pair.difference.direction) == (False, "none")


def test_a_lower_cost_has_direction_lower():
    assert pairs(costs(COSTS), costs(COSTS - TOKENS))["elbo"].difference.direction == "lower"


def test_units_of_a_difference():
    equal = np.full(40, 16)
    pair = pairs(costs(equal * 1.0, equal, bytes_per_token=4.0), costs(equal * 2.0, equal))["nll"]
    bits = 1 / math.log(2)
    found = pair.difference
    assert (found.bits_per_token, found.bits_per_byte, found.bits_per_sequence) == pytest.approx((bits, bits / 4, 16 * bits))
    assert pairs(costs(COSTS), costs(COSTS))["nll"].difference.bits_per_sequence is None  # rows of several lengths


def test_a_baseline_has_nll_and_elbo_only_and_the_rest_is_not_compared():
    found = pairs(costs(COSTS), costs(COSTS + TOKENS, free=True))
    assert list(found) == ["nll", "elbo", "ce_posterior", "ce_prior", "kl"]
    assert all(found[name].difference for name in ("nll", "elbo"))
    for name in ("ce_posterior", "ce_prior", "kl"):
        pair = found[name]
        assert pair.a is None and pair.b is not None and pair.difference is None and pair.relative_percent is None


def test_equal_costs_are_no_difference():
    pair = pairs(costs(COSTS), costs(COSTS))["nll"]
    assert (pair.difference.nats_per_token, pair.difference.direction, pair.relative_percent) == (0.0, "none", 0.0)


def test_a_nan_cost_shows_no_difference():
    broken = COSTS.copy()
    broken[3] = math.nan
    pair = pairs(costs(COSTS), costs(broken))["nll"]
    assert math.isnan(pair.difference.nats_per_token) and math.isnan(pair.relative_percent)
    assert not pair.difference.excludes_zero


@pytest.mark.parametrize(
    ("a", "b", "want"), [(2.0, 3.0, 50.0), (-2.0, -3.0, -50.0), (0.0, 0.0, 0.0), (0.0, 1.0, math.inf), (0.0, -1.0, -math.inf)]
)
def test_relative_percent(a, b, want):
    assert relative_percent(a, b) == want


def test_positions_without_a_target_have_no_cost():
    counted = np.array([0, 4, 2])
    a = costs(COSTS, by_position=(np.array([0.0, 4.0, 1.0]), counted))
    b = costs(COSTS, by_position=(np.array([0.0, 8.0, 3.0]), counted))
    found = positions(a, b)
    assert found.targets == [0, 4, 2]
    assert math.isnan(found.a[0]) and math.isnan(found.b[0])
    assert found.a[1:] == pytest.approx([1 / math.log(2), 0.5 / math.log(2)])
    assert found.b[1:] == pytest.approx([2 / math.log(2), 1.5 / math.log(2)])
