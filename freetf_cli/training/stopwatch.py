"""The time of a training step.

Kernel launches return before the work is done, so the time of a single step means nothing; the mean over many steps does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Mean seconds per step since the last reading, without the time that was spent in `paused` blocks."""

    def __init__(self, step: int) -> None:
        self._since, self._step = time.perf_counter(), step

    def read(self, step: int) -> float:
        """Return the mean up to this step, and start over. The device must have finished its work."""
        now = time.perf_counter()
        mean = (now - self._since) / (step - self._step)
        self._since, self._step = now, step
        return mean

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of the block."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began
