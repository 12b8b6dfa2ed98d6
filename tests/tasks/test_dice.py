"""dice: entropies by enumeration, and readings of generated rows."""

import itertools
import math

import pytest

from freetf_cli.tasks import make_task


def test_entropy_by_enumeration() -> None:
    task = make_task("dice", {"length": 4, "favour": 0.7})
    rows = list(itertools.product(range(6), repeat=4))
    probabilities = [sum(math.prod(0.7 if roll == face else 0.06 for roll in row) for face in range(6)) / 6 for row in rows]
    assert task.entropy()["sequence"] == pytest.approx(-sum(p * math.log2(p) for p in probabilities), abs=1e-9)


def test_reading() -> None:
    task = make_task("dice", {})
    assert task.read("1335333").factors == {"face": 3}
    assert task.read("133").factors == {"face": 3}
    assert task.read("112").factors == {"face": None}
