"""The mean time of a training step."""

import pytest

from freetf_cli.training import stopwatch
from freetf_cli.training.stopwatch import Stopwatch


def test_a_mean_over_the_steps_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: clock[0])
    watch = Stopwatch(0)
    clock[0] += 8.0
    assert watch.read(1) == 8.0
    clock[0] += 6.0
    with watch.paused():
        clock[0] += 1000.0  # an evaluation
    clock[0] += 2.0
    assert watch.read(5) == 2.0
    clock[0] += 1.0
    assert watch.read(10) == 0.2
