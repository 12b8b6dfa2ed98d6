"""Prefetched batches: the same ones, in order, with their errors, and no thread left behind."""

import threading

import numpy as np
import pytest

from freetf_cli.data.batches import IGNORE, Batch
from freetf_cli.training.prefetch import Prefetch, host_batch


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("freetf-prefetch")}


def test_each_batch_is_made_once_and_in_order() -> None:
    asked: list[int] = []

    def make(number: int) -> int:
        asked.append(number)
        return number * number

    with Prefetch(make, stop=20) as made:
        assert [made.take(n) for n in range(20)] == [n * n for n in range(20)]
    assert asked == list(range(20))  # in order, and nothing past the end


def test_batches_are_made_ahead() -> None:
    ahead = threading.Event()
    with Prefetch(lambda number: ahead.set() if number == 2 else None, stop=9, ahead=2) as made:
        made.take(0)
        assert ahead.wait(10)


def test_batches_may_be_taken_in_any_order() -> None:
    with Prefetch(lambda number: number, stop=10) as made:
        assert [made.take(n) for n in (0, 5, 3, 9, 12)] == [0, 5, 3, 9, 12]


def test_an_error_is_raised_when_its_batch_is_taken() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise OSError(5, "cannot read")
        return number

    with Prefetch(make, stop=5) as made:
        assert [made.take(0), made.take(1)] == [0, 1]
        with pytest.raises(OSError, match="cannot read"):
            made.take(2)
        assert made.take(3) == 3


def test_the_thread_ends_with_the_block() -> None:
    before = threads()
    with pytest.raises(KeyboardInterrupt), Prefetch(lambda number: number, stop=1000, ahead=50) as made:
        made.take(0)
        assert threads() - before
        raise KeyboardInterrupt
    assert threads() <= before


def test_a_batch_becomes_tensors() -> None:
    rows = np.arange(12).reshape(3, 4)
    targets = np.where(rows % 5 == 0, IGNORE, rows)[:, 1:]
    made = host_batch(Batch(rows[:, :-1], targets), pinned=False)
    assert made.inputs.tolist() == rows[:, :-1].tolist()
    assert made.targets.tolist() == targets.tolist()
    assert made.count == 7  # of 9: 5 and 10 do not count
