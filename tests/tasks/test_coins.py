"""coins: entropies by enumeration, and readings of generated rows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from freetf_cli.tasks import make_task
from freetf_cli.tasks.coins import Coins

GOLDEN = (  # rows 0 and 2,000 of seed 7: if they change, runs are no longer reproducible
    ("1010111110111011111111111111101111110111111111101111111111111111", {"z": 1}),
    ("0000010000000000000001000010000000000000000101000000000011000000", {"z": 0}),
)


def test_golden_rows() -> None:
    rows = [make_task("coins", {}).examples(7, i, 1)[0] for i in (0, 2000)]
    assert tuple((row.text, row.factors) for row in rows) == GOLDEN


def coins_by_enumeration(length: int, flip: float) -> dict[tuple[int, ...], float]:
    """The probability of every sequence, from the story: Z is fair, each symbol is Z flipped with probability flip."""
    return {
        x: sum(0.5 * math.prod(1 - flip if symbol == z else flip for symbol in x) for z in (0, 1))
        for x in itertools.product((0, 1), repeat=length)
    }


@pytest.mark.parametrize("flip", [0.1, 0.25, 0.5, 0.9])
def test_coins_by_enumeration(flip: float) -> None:
    length = 9
    task = make_task("coins", {"length": length, "flip": flip})
    entropy = -sum(p * math.log2(p) for p in coins_by_enumeration(length, flip).values())
    assert task.entropy()["sequence"] == pytest.approx(entropy, abs=1e-12)
    assert task.floor_bits == pytest.approx(entropy, abs=1e-12)


@pytest.mark.parametrize("flip", [0.1, 0.25, 0.5, 0.9])
def test_the_probability_of_the_next_toss_by_enumeration(flip: float) -> None:
    task = make_task("coins", {"length": 7, "flip": flip})
    assert isinstance(task, Coins)
    for seen in range(6):
        before, after = coins_by_enumeration(seen, flip), coins_by_enumeration(seen + 1, flip)
        for x, p in before.items():
            expected = after[(*x, 1)] / p
            assert task.predictive(np.array(sum(x)), np.array(seen)) == pytest.approx(expected, abs=1e-12)


def test_coins_without_noise_and_with_long_rows() -> None:
    assert make_task("coins", {"flip": 0, "length": 12}).entropy() == {"z": 1.0, "sequence": 1.0}
    long = make_task("coins", {"flip": 0.5, "length": 2000})
    assert long.entropy()["sequence"] == pytest.approx(2000, rel=1e-9)


def test_coins_factor_and_frequency() -> None:
    rows = make_task("coins", {"flip": 0.1}).examples(0, 0, 2000)
    flips = sum(row.text.count(str(1 - row.factors["z"])) for row in rows)
    assert abs(flips - 2000 * 64 * 0.1) < 5 * math.sqrt(2000 * 64 * 0.09)
    assert abs(sum(row.factors["z"] for row in rows) - 1000) < 5 * math.sqrt(500)


@pytest.mark.parametrize(
    ("text", "z", "valid"), [("0001", 0, True), ("0111", 1, True), ("1010", None, True), ("101", 1, False), ("", None, False)]
)
def test_reading_the_coin(text: str, z: int | None, valid: bool) -> None:
    """The commoner symbol. Every row of the right length is possible."""
    reading = make_task("coins", {"length": 4}).read(text)
    assert (reading.factors["z"], reading.valid) == (z, valid)


def test_spans_and_prompts() -> None:
    task = make_task("coins", {})
    assert task.spans("01101") == [("0", "noise"), ("11", "target"), ("0", "noise"), ("1", "target")]
    assert task.spans("10") == [("10", "plain")]
    assert task.prompt(0, 1) == task.other_prompt({"z": 1}) == "", "no prompt tells the coin"
