"""Bootstrap intervals, against theory and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest

from freetf_cli.errors import InputError
from freetf_cli.evaluation.statistics import bootstrap, check_enough, repeated, share, wilson


def test_the_interval_of_a_mean_has_its_theoretical_width() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    found = bootstrap(values)
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 2 / 20, rel=0.1)
    assert bootstrap(values) == found
    ratio = bootstrap(values * np.arange(1, 401), np.arange(1, 401))
    assert ratio.value == pytest.approx(np.average(values, weights=np.arange(1, 401)))


def test_too_few_items_are_refused_with_the_number_needed() -> None:
    check_enough(20, "sequences", "")
    with pytest.raises(InputError, match="too few sequences for an interval: 19, and at least 20 are needed; --sequences"):
        check_enough(19, "sequences", "--sequences")


def test_a_share_of_nothing_or_all_has_an_interval_too() -> None:
    """No resample of zeros holds a one, but 24 zeros do not show that there are none."""
    some = np.arange(24) < 5
    assert share(some) == bootstrap(some)
    assert share(np.zeros(24)) == wilson(0, 24) and share(np.zeros(24)).high == pytest.approx(0.138, abs=1e-3)
    assert share(np.ones(24)) == wilson(24, 24)
    assert share(np.zeros(240), clusters=np.repeat(np.arange(24), 10)) == wilson(0, 24)
    assert share(np.zeros(48), np.arange(48) % 2) == wilson(0, 24)  # half of the items do not count
    assert np.isnan(share(np.zeros(24), np.zeros(24)).value) and np.isnan(bootstrap([]).low)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_of_repetitions_is_students(count: int) -> None:
    from scipy import stats

    values = np.random.default_rng(count).normal(0.4, 0.1, size=count)
    found = repeated(values.tolist())
    theirs = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(theirs, rel=1e-4) and found.value == pytest.approx(values.mean())


def test_intervals_agree_with_scipy() -> None:
    """Of a mean and of a ratio, up to the noise of 2,000 resamples."""
    from scipy import stats

    rng = np.random.default_rng(0)
    values, weights = rng.exponential(2, size=300), rng.integers(1, 9, size=300).astype(float)
    for found, data, statistic in (
        (bootstrap(values), (values,), np.mean),
        (bootstrap(values, weights), (values, weights), lambda a, b, axis: a.sum(axis) / b.sum(axis)),
    ):
        theirs = stats.bootstrap(data, statistic, paired=True, method="percentile", n_resamples=20_000, rng=1).confidence_interval
        width = theirs.high - theirs.low
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.05 * width)
