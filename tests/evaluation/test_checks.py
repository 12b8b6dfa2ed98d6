"""--fail-if: what can be said, what is refused, and how a condition is decided."""

from __future__ import annotations

import math

import pytest

from freetf_cli.errors import CheckFailed, InputError, InputErrors
from freetf_cli.evaluation.checks import check_kinds, parse_check, parse_checks, raise_if_failed
from freetf_cli.records.compare import CheckResult
from freetf_cli.records.paired import Difference, MetricPair


def pair(percent: float | None, bits: float) -> MetricPair:
    return MetricPair(None, None, Difference(bits * math.log(2), 0.0, 0.0, bits, None, None, False), percent)


@pytest.mark.parametrize(
    ("expression", "want"),
    [
        ("nll>+0.5%", ("nll", ">", 0.5, True)),
        (" ce_prior  <= -1e-3 ", ("ce_prior", "<=", -0.001, False)),
        ("elbo >= .25 %", ("elbo", ">=", 0.25, True)),
        ("kl<- 2.", ("kl", "<", -2.0, False)),
    ],
)
def test_conditions(expression, want):
    check = parse_check(expression)
    assert (check.metric, check.operator, check.limit, check.percent) == want


@pytest.mark.parametrize(
    "expression", ["", "nll", "nll=1", "nll==1", ">1", "nll>", "nll>1%%", "nll>nan", "nll>inf", "nll>1e999", "nll>1 2", "nll>1,5"]
)
def test_an_invalid_condition_is_refused_with_an_example(expression):
    with pytest.raises(InputError) as caught:
        parse_check(expression)
    assert "--fail-if 'nll>+0.5%'" in caught.value.hint
    assert repr(expression) in caught.value.where


@pytest.mark.parametrize(
    ("expression", "near"),
    [("nl>1", "did you mean 'nll'?"), ("ce-prior>1%", "did you mean 'ce_prior'?"), ("elbow", "did you mean 'elbo'?")],
)
def test_the_nearest_metric_is_named(expression, near):
    with pytest.raises(InputError) as caught:
        parse_check(expression)
    assert near in caught.value.hint


def test_all_errors_are_reported_together():
    with pytest.raises(InputErrors) as caught:
        parse_checks(["nl>1", "nll>0.5%", "nll"])
    assert len(caught.value.lines()) == 2


@pytest.mark.parametrize(
    ("expression", "percent", "bits", "found", "passed"),
    [
        ("nll>+0.5%", 0.6, -9.0, 0.6, False),  # the share decides, not the bits
        ("nll>+0.5%", 0.5, 9.0, 0.5, True),
        ("nll>=0.5%", 0.5, 9.0, 0.5, False),
        ("nll<-0.1", 9.0, -0.2, -0.2, False),  # the bits decide, not the share
        ("nll<=-0.2", 9.0, -0.2, -0.2, False),
        ("nll<-0.2", 9.0, -0.2, -0.2, True),
        ("nll>1%", math.inf, 0.0, math.inf, False),
    ],
)
def test_a_condition_describes_the_failure(expression, percent, bits, found, passed):
    result = parse_check(expression).decide(pair(percent, bits))
    assert (result.found, result.passed) == (found, passed)
    assert result.unit == ("%" if "%" in expression else "bits/token")


@pytest.mark.parametrize("expression", ["nll>1%", "nll<1%", "nll>1", "nll<=1"])
def test_nan_fails(expression):
    assert not parse_check(expression).decide(pair(math.nan, math.nan)).passed


@pytest.mark.parametrize(("expression", "passed"), [("nll>+0.5%", True), ("nll>-1%", False), ("nll>=0", False), ("kl<0", True)])
def test_equal_models_have_a_difference_of_zero(expression, passed):
    result = parse_check(expression).decide(None)
    assert (result.found, result.passed) == (0.0, passed)


@pytest.mark.parametrize("metric", ["ce_posterior", "ce_prior", "kl"])
@pytest.mark.parametrize("kinds", [("baseline", "free"), ("free", "baseline"), ("baseline", "baseline")])
def test_a_check_of_a_metric_that_a_baseline_lacks_is_refused(metric, kinds):
    with pytest.raises(InputError) as caught:
        check_kinds([parse_check("nll>1"), parse_check(f"{metric}>1%")], *kinds)
    assert "baseline" in caught.value.what
    assert caught.value.hint == "use nll or elbo"


def test_a_check_of_a_metric_that_both_have_is_accepted():
    check_kinds([parse_check("nll>1"), parse_check("elbo>1")], "baseline", "free")
    check_kinds([parse_check("ce_posterior>1")], "free", "free")


def test_the_reason_names_a_posterior_ce():
    with pytest.raises(InputError, match="a posterior CE cannot be compared with a baseline's CE: B is a baseline"):
        check_kinds([parse_check("ce_posterior>1")], "free", "baseline")


def test_failed_checks_are_reported_in_one_line_with_their_values():
    results = [CheckResult("nll>1%", "nll", "%", 2.5, False), CheckResult("kl>1", "kl", "bits/token", 0.0, True)]
    results.append(CheckResult("elbo>1", "elbo", "bits/token", math.nan, False))
    with pytest.raises(CheckFailed) as caught:
        raise_if_failed(results)
    assert caught.value.lines() == ["2 checks failed: 'nll>1%' (found +2.5 %), 'elbo>1' (found no number)"]
    raise_if_failed(results[1:2])
