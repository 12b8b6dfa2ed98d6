"""How long a step takes. Launches return before the work is done, so one step's time means nothing: a mean over many does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Mean seconds of a step since the last reading, evaluations and the like left out."""

    def __init__(self) -> None:
        self._seconds, self._steps, self._since = 0.0, 0, time.perf_counter()

    def count(self) -> None:
        """A step was given to the device."""
        self._steps += 1

    def read(self) -> float:
        """Read, and start anew; the device must have caught up."""
        self._halt()
        mean = self._seconds / max(1, self._steps)
        self._seconds, self._steps = 0.0, 0
        return mean

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What the block takes is no part of a step."""
        self._halt()
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def _halt(self) -> None:
        now = time.perf_counter()
        self._seconds, self._since = self._seconds + now - self._since, now
