"""The mean time of a training step."""

import pytest

from freetf_cli.training import stopwatch
from freetf_cli.training.stopwatch import Stopwatch


def test_a_mean_over_the_steps_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: clock[0])
    watch = Stopwatch()

    def run(steps: int, seconds: float) -> None:
        for _ in range(steps):
            watch.count()
        clock[0] += seconds

    run(1, 8.0)
    assert watch.read() == 8.0
    run(3, 6.0)
    with watch.paused():
        clock[0] += 1000.0  # an evaluation
    run(1, 2.0)
    assert watch.read() == 2.0
    run(5, 1.0)
    assert watch.read() == 0.2
