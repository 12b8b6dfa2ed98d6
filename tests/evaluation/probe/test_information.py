"""Mutual information where it is known: latents that decide all, nothing, or something in between."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from freetf_cli.errors import InputError
from freetf_cli.evaluation.probe.information import group_counts, mutual_information, shuffled
from freetf_cli.tasks.factors import UNREAD

PLACES = 57


def bits(p: np.ndarray) -> np.ndarray:
    return -(p * np.log2(np.where(p > 0, p, 1))).sum(-1)


def drawn(p_MA: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """count samples from each row's distribution, [M, count]."""
    return np.stack([rng.choice(len(p), size=count, p=p) for p in p_MA])


@pytest.mark.parametrize("seed", range(3))
def test_a_latent_that_is_the_position_gives_all_of_it(seed: int) -> None:
    starts = np.random.default_rng(seed).integers(PLACES, size=(128, 1))
    found = mutual_information(np.repeat(starts, 64, axis=1), PLACES)
    assert found.information.low <= math.log2(PLACES) <= found.information.high + 1e-9
    assert found.information.value == pytest.approx(math.log2(PLACES), abs=0.2)
    assert found.entropy.value <= found.entropy.high <= math.log2(PLACES) + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_a_latent_that_is_ignored_gives_none(seed: int) -> None:
    values = np.random.default_rng(seed).integers(PLACES, size=(128, 64))
    for each in (values, shuffled(values, seed)):
        found = mutual_information(each, PLACES).information
        assert found.low <= 0 <= found.high
        assert abs(found.value) < 0.03


def test_shuffled_samples_have_no_information() -> None:
    starts = np.repeat(np.random.default_rng(0).integers(PLACES, size=(128, 1)), 64, axis=1)
    dealt = shuffled(starts, 1)
    assert sorted(dealt.flatten()) == sorted(starts.flatten()) and not (dealt == starts).all()
    control = mutual_information(dealt, PLACES).information
    assert control.low <= 0 <= control.high and control.value < 0.03


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0])
def test_latents_that_partly_decide(alpha: float) -> None:
    """Each latent has a distribution of its own, uniform only on the whole: counting would give 0.7 too much."""
    rng = np.random.default_rng(1)
    p_MA = rng.dirichlet(np.full(PLACES, alpha), size=256)
    truth = math.log2(PLACES) - bits(rng.dirichlet(np.full(PLACES, alpha), size=20_000)).mean()
    found = mutual_information(drawn(p_MA, 64, rng), PLACES)
    assert found.information.value == pytest.approx(truth, abs=0.1)
    assert found.information.low < truth < found.information.high < found.information.low + 0.5


@pytest.mark.parametrize(("low", "high", "share"), [(0.04, 0.5, 0.05), (0.0, 0.125, 0.5), (0.01, 0.115, 0.5), (1 / 16, 1 / 16, 0.0)])
def test_few_latents_that_mark_a_place(low: float, high: float, share: float) -> None:
    """Most latents leave a place at its base rate and a few mark it: groups must not be pulled to the mean."""
    rng = np.random.default_rng(0)
    p = np.where(rng.random((128, 64)) < share, high, low)
    values = (rng.random((128, 64, 64)) < p[:, None]).astype(np.int64)
    whole = np.array([share * high + (1 - share) * low])
    truth = 64 * float((_binary(whole) - share * _binary(np.array([high])) - (1 - share) * _binary(np.array([low])))[0])
    found = mutual_information(values, 2).information
    assert found.value == pytest.approx(truth, abs=0.4)
    assert found.low <= truth + 1e-9 and truth <= found.high


def _binary(p: np.ndarray) -> np.ndarray:
    return bits(np.stack([p, 1 - p], axis=-1))


@pytest.mark.parametrize(("groups", "count"), [(24, 4), (20, 2), (24, 16), (128, 8)])
def test_few_samples_give_no_information_by_chance(groups: int, count: int) -> None:
    found = mutual_information(np.random.default_rng(0).integers(PLACES, size=(groups, count)), PLACES).information
    assert found.low <= 0 <= found.high and found.value < 0.1


def test_groups_are_weighted_by_their_readings() -> None:
    """Half of the groups always say 1, the others toss a coin and are seldom read: I is that of what was read."""
    values = np.full((128, 64), UNREAD)
    values[:64] = 1
    values[64:, :8] = np.random.default_rng(0).integers(2, size=(64, 8))
    weight = 8 / 72
    truth = float(_binary(np.array([1 - weight / 2]))[0]) - weight
    found = mutual_information(values, 2).information
    assert found.value == pytest.approx(truth, abs=0.03) and found.low < truth < found.high


def test_half_of_the_latents_decide() -> None:
    rng = np.random.default_rng(2)
    values = rng.integers(PLACES, size=(512, 64))
    decided = np.arange(512) % 2 == 0
    values[decided] = rng.integers(PLACES, size=(256, 1))
    assert mutual_information(values, PLACES).information.value == pytest.approx(math.log2(PLACES) / 2, abs=0.1)


def test_noise_is_summed_over_its_sites() -> None:
    rng = np.random.default_rng(0)
    encoded = np.repeat(rng.random((256, 1, 64)) < 1 / 16, 64, axis=1)
    free = rng.random((256, 64, 64)) < 1 / 16
    each = -(math.log2(1 / 16) + 15 * math.log2(15 / 16)) / 16
    all_encoded = mutual_information(encoded.astype(np.int64), 2)
    assert all_encoded.information.value == pytest.approx(64 * each, rel=0.08)
    assert all_encoded.information.low < 64 * each < all_encoded.information.high
    half = np.concatenate([encoded[..., :32], free[..., 32:]], axis=-1).astype(np.int64)
    assert mutual_information(half, 2).information.value == pytest.approx(32 * each, rel=0.08)
    nothing = mutual_information(free.astype(np.int64), 2).information
    assert nothing.low <= 0 <= nothing.high and abs(nothing.value) < 0.03


@pytest.mark.parametrize(("groups", "count", "trials"), [(24, 4, 20), (128, 64, 10)])
@pytest.mark.parametrize("rest", [0.05, 0.25, 0.9])
def test_the_interval_covers_peaks_with_a_rest_anywhere(rest: float, groups: int, count: int, trials: int) -> None:
    """No Dirichlet distribution is like these: an interval around such a model misses the truth."""
    rng, hits = np.random.default_rng(4), 0
    p_AA = (1 - rest) * np.eye(PLACES) + rest / PLACES
    truth = math.log2(PLACES) - bits(p_AA)[0]
    for seed in range(trials):
        found = mutual_information(drawn(p_AA[rng.integers(PLACES, size=groups)], count, rng), PLACES, seed).information
        hits += 0 <= found.low <= truth <= found.high
    assert hits / trials >= 0.9


def test_unread_samples_are_left_out() -> None:
    values = np.repeat(np.random.default_rng(0).integers(4, size=(64, 1)), 20, axis=1)
    full = mutual_information(values, 4)
    values[:, ::2] = UNREAD
    assert mutual_information(values, 4).information.value == pytest.approx(full.information.value, abs=1e-3)
    values[:50] = UNREAD
    with pytest.raises(InputError, match=r"too few groups in which the factor could be read.*14, and at least 20"):
        mutual_information(values, 4)


def test_sites_that_are_seldom_or_never_read() -> None:
    """One site is read everywhere, one in three samples, one nowhere: no site has a weight of 0/0."""
    marks = np.full((64, 20, 3), UNREAD)
    marks[..., 0] = np.random.default_rng(0).integers(2, size=(64, 1))
    alone = mutual_information(marks[..., :1], 2)
    assert mutual_information(marks, 2) == mutual_information(marks[..., [0, 2]], 2) == alone
    marks[:3, 0, 1] = 1
    found = mutual_information(marks, 2).information
    assert found.value == pytest.approx(alone.information.value, abs=0.02) and found.low <= found.value <= found.high <= 2


def test_group_counts() -> None:
    values = np.array([[0, 1, 1], [2, UNREAD, 2]])
    assert group_counts(values).tolist() == [[[1, 2, 0], [0, 0, 2]]]
    marks = np.array([[[0, 1], [1, 1]]])
    assert group_counts(marks).tolist() == [[[1, 1]], [[0, 2]]]


def test_without_scipy_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(InputError, match=r"probing needs scipy, which is not installed; pip install 'freetf\[probe\]'"):
        mutual_information(np.zeros((20, 4), int), 3)
