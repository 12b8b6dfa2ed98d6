"""Signals during training: finish the step, save, stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Which signal asked the loop to stop, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second one stops at once
        self.signal = signal.Signals(number)


def heeded() -> list[signal.Signals]:
    """SIGINT, SIGTERM, SIGUSR1 and SIGHUP, where they are and unless `nohup` or the like has them ignored; SIGINT always."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
    return [number for number in numbers if number is signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the signals that are `heeded` into a request while the block runs."""
    request = StopRequest()
    before = {}
    try:
        for number in heeded():
            before[number] = signal.signal(number, request)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
