"""Scores of hand-made items."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from freetf_cli.evaluation.benchmarks import metrics


def answers(*pairs: tuple[float, int]) -> list[dict]:
    return [{"loglikelihood": log, "greedy": False, "tokens": tokens} for log, tokens in pairs]


def test_each_normalisation_chooses_another_answer() -> None:
    """Log-likelihoods: −4, −6, −9; per character: −2, −1, −1.125; per token: −4, −6, −3."""
    doc = {"choices": ["ab", "abcdef", "abcdefgh"], "gold": 0}
    found = answers((-4.0, 1), (-6.0, 1), (-9.0, 3))
    assert metrics.choices(doc, found) == {"acc": 1.0, "acc_char": 0.0, "acc_token": 0.0}
    assert metrics.choices({**doc, "gold": 1}, found) == {"acc": 0.0, "acc_char": 1.0, "acc_token": 0.0}  # -1 beats -9/8
    assert metrics.choices({**doc, "gold": 2}, found) == {"acc": 0.0, "acc_char": 0.0, "acc_token": 1.0}


def test_acc_completion_is_what_the_question_adds() -> None:
    """After "Answer:" alone the answers have −1, −9 and −8; the question adds −3, 3 and −1 to them."""
    doc = {"choices": ["ab", "abcdef", "abcdefgh"], "gold": 1}
    found = [{**one, "alone": alone} for one, alone in zip(answers((-4.0, 1), (-6.0, 1), (-9.0, 3)), (-1.0, -9.0, -8.0), strict=True)]
    assert metrics.choices(doc, found)["acc_completion"] == 1.0 and metrics.choices(doc, found)["acc"] == 0.0
    assert metrics.choices({**doc, "gold": 0}, found)["acc_completion"] == 0.0


def test_characters_are_not_bytes() -> None:
    """Per character the second wins, −1.33 against −1.5; per byte the first would, −0.75 against −1.33."""
    doc = {"choices": ["éé", "abc"], "gold": 1}
    assert metrics.choices(doc, answers((-3.0, 2), (-4.0, 1)))["acc_char"] == 1.0


def test_of_equal_answers_the_first_is_chosen() -> None:
    doc = {"choices": ["A", "B"], "gold": 1}
    assert metrics.choices(doc, answers((-1.0, 1), (-1.0, 1))) == {"acc": 0.0, "acc_char": 0.0, "acc_token": 0.0}


def test_partial_scoring_divides_by_the_common_ending() -> None:
    doc = {"choices": ["so Al", "so Alexander"], "continuation": "won.", "gold": 0}
    assert metrics.choices(doc, answers((-4.0, 2), (-5.0, 2)))["acc_char"] == 1.0  # by its own length the longer option would win


def test_another_model_does_not_tell_the_tokens() -> None:
    found = metrics.choices(
        {"choices": ["A", "B"], "gold": 0}, [{"loglikelihood": -1.0, "greedy": True}, {"loglikelihood": -2.0, "greedy": False}]
    )
    assert found == {"acc": 1.0, "acc_char": 1.0}


@pytest.mark.parametrize(
    ("text", "right"),
    [(" The Moon.", 1), ("moon\nQuestion: next", 1), ("moon-", 1), ("a  half  moon", 1), ("moons", 0), ("", 0), ("it is the moon", 0)],
)
def test_exact_match_ignores_case_punctuation_and_articles(text: str, right: int) -> None:
    assert metrics.em({"answers": ["The moon", "half moon!"]}, [text]) == {"em": right}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("so 9 + 9.\n#### 1,800", 1),
        ("#### $1800", 1),
        ("####1800. Done", 1),
        ("1800", 0),
        ("#### 180", 0),
        ("#### 1800.5", 0),
        ("#### 7 #### 1800", 0),
    ],
)
def test_a_final_number_is_matched_in_its_form(text: str, right: int) -> None:
    assert metrics.number({"answers": ["1,800"]}, [text]) == {"em": right}


def test_pass_at_k_is_the_share_of_draws_with_a_right_program() -> None:
    for count, right, k in ((5, 2, 3), (4, 0, 2), (6, 6, 1), (7, 1, 7), (10, 3, 1)):
        draws = list(itertools.combinations([True] * right + [False] * (count - right), k))
        assert metrics.pass_at_k(count, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert metrics.code({}, ["passed"]) == {"pass@1": 1.0}
    found = metrics.code({}, ["passed", "timed out"] + ["AssertionError: "] * 18)
    assert (
        list(found) == ["pass@1", "pass@10", "pass@20"]
        and found["pass@1"] == pytest.approx(0.05)
        and found["pass@10"] == pytest.approx(0.5)
    )


def test_averages_have_wilsons_interval() -> None:
    found = metrics.average([1.0, 0.0, 0.0, 0.0])
    assert (found.value, round(found.low, 3), round(found.high, 3)) == (0.25, 0.046, 0.699)


def test_averages_of_shares_have_a_bootstrap_interval() -> None:
    found = metrics.average([0.5, 0.25, 1.0] * 10)
    assert found.low < found.value < found.high and found.value == pytest.approx(7 / 12)
    assert math.isnan(metrics.average([0.5, 0.25]).low)


def test_the_macro_average_counts_groups_alike() -> None:
    values, groups = [1.0] * 30 + [0.0, 1.0] * 5, ["big"] * 30 + ["small"] * 10
    found = metrics.average(values, groups)
    assert found.value == 0.75 != np.mean(values)
    assert 0.55 < found.low < 0.75 < found.high < 0.95
    half = 1.96 * math.sqrt(0.25 / 10) / 2  # only the small group varies, and has half of the weight
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)


def test_the_macro_average_of_groups_of_one() -> None:
    assert metrics.average([1.0, 0.0], ["a", "b"]) == metrics.average([1.0, 0.0])
    mixed = metrics.average([1.0] * 20 + [0.0], ["a"] * 20 + ["b"])
    assert mixed.value == pytest.approx(0.5) and mixed.low < 0.4


def test_chance_is_that_of_guessing() -> None:
    docs = [{"choices": ["a"] * 4, "subject": "x"}, {"choices": ["a"] * 2, "subject": "x"}, {"choices": ["a"] * 2, "subject": "y"}]
    assert metrics.chance(docs, "") == pytest.approx(5 / 12)
    assert metrics.chance(docs, "subject") == pytest.approx((3 / 8 + 1 / 2) / 2)
    assert metrics.chance([{"answer": "x"}], "") is None


def test_attempts_at_solutions_and_lines() -> None:
    doc = {"answers": ["1,200"], "answer": " x + 1"}
    assert metrics.solution(doc, ["so\n#### 1200", "#### 1201", "1200", "#### $1,200"]) == {"pass@1": 0.5, "pass@4": 1.0}
    assert metrics.solution(doc, ["#### 12"]) == {"pass@1": 0.0}
    assert metrics.line(doc, [" x + 1 \nreturn", " x + 1", "x + 1", " x + 10"]) == {"pass@1": 0.5, "pass@4": 1.0}
    assert set(metrics.passes([True] * 16)) == {"pass@1", "pass@10", "pass@16"}
