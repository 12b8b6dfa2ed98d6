"""The time of a training step.

Kernel launches return before the work is done, so the time of a single step means nothing; the mean over many steps does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Mean seconds per step since the last reading, without the time that was spent in `paused` blocks."""

    def __init__(self) -> None:
        self._since, self._steps = time.perf_counter(), 0

    def count(self) -> None:
        """Count a step that was launched."""
        self._steps += 1

    def read(self) -> float:
        """Return the mean and start over. The device must have finished its work."""
        now = time.perf_counter()
        mean = (now - self._since) / max(1, self._steps)
        self._since, self._steps = now, 0
        return mean

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began
