"""Shares of splits, and the documents that they assign."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest

from freetf_cli.data.splits import SplitAssigner, parse_split
from freetf_cli.errors import InputError


def test_splits_are_read() -> None:
    assert parse_split("train=0.9, val=0.1") == {"train": Fraction(9, 10), "val": Fraction(1, 10)}
    assert parse_split("train=1") == {"train": 1}
    assert parse_split("train=1/3,val=1/3,test=1/3")["test"] == Fraction(1, 3)
    assert parse_split("train=90,val=10", count=100) == parse_split("train=0.9,val=0.1")


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("train=0.9,val=0.2", None, "sum to 1.1"),
        ("train=180/2,val=10", 100, "sum to 100, not to 1"),
        ("train=90,val=20", 100, "sum to 110, not to the count, 100"),
        ("train=90,val=10", None, "not known in advance"),
        ("train", None, "takes NAME=SHARE"),
        ("train=0.5,train=0.5", None, "takes NAME=SHARE"),
        ("../up=1", None, "takes NAME=SHARE"),
        ("train=x", None, "'x' is not a number"),
        ("train=1/0", None, "is not a number"),
        ("train=1e999999999", None, "is not a number"),
        ("train=-1,val=2", None, "more than 0"),
        ("", None, "takes NAME=SHARE"),
    ],
)
def test_splits_that_are_refused(text: str, count: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_split(text, count)


def test_shares_that_cannot_be_assigned() -> None:
    with pytest.raises(InputError, match="not to 1"):
        SplitAssigner({"train": 0.9}, 0)
    with pytest.raises(InputError, match="too fine"):
        SplitAssigner({"train": Fraction(1, 10**7), "val": 1 - Fraction(1, 10**7)}, 0)


@pytest.mark.parametrize("shares", [{"train": 0.9, "val": 0.1}, {"train": 0.85, "val": 0.15}, {"a": 0.98, "b": 0.01, "c": 0.01}])
def test_proportions_are_exact_in_every_run(shares: dict[str, float]) -> None:
    assigner = SplitAssigner(shares, seed=3)
    names = [assigner.split(i) for i in range(600)]
    for start in range(0, 600, 100):
        assert Counter(names[start : start + 100]) == {name: round(100 * share) for name, share in shares.items()}
    assert names != [SplitAssigner(shares, seed=4).split(i) for i in range(600)]
    assert [assigner.split(i) for i in (599, 0, 250)] == [names[i] for i in (599, 0, 250)]
