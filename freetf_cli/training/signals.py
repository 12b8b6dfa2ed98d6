"""Signals during training: finish the step, save, stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from freetf_cli.errors import FreetfError, Interrupted, Stopped

RESUME = "resume with the same command and --resume auto"


class StopRequest:
    """The signal that asked the loop to stop, if one did. An instance is the signal handler."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second SIGINT stops at once
        self.signal = signal.Signals(number)


def stop_error(number: signal.Signals, when: str, where: str = "") -> FreetfError:
    """The exception with which training ends after a signal."""
    kind = Interrupted if number is signal.SIGINT else Stopped
    return kind(f"stopped by {number.name} {when}", where, RESUME)


def handled_signals() -> list[signal.Signals]:
    """SIGINT, and SIGTERM, SIGUSR1 and SIGHUP where the system has them and they are not ignored (`nohup` ignores SIGHUP)."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
    return [number for number in numbers if number is signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the handled signals into a StopRequest while the block runs."""
    request = StopRequest()
    before = {}
    try:
        for number in handled_signals():
            before[number] = signal.signal(number, request)
    except ValueError:  # only the main thread may set handlers
        pass
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
