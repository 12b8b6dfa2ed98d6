"""Signals. During training: finish the step, save, stop. In commands that keep nothing unfinished: clean up and stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType

from freetf_cli.errors import FreetfError, Interrupted, Stopped

STOPPING = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # the signals that stop a command
RESUME = "resume with the same command and --resume auto"


class StopRequest:
    """The signal that asked the loop to stop, if one did. An instance is the signal handler."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second SIGINT stops at once
        self.signal = signal.Signals(number)


def stop_error(number: signal.Signals, when: str, where: str = "", hint: str = RESUME) -> FreetfError:
    """The exception with which a command ends after a signal."""
    kind = Interrupted if number is signal.SIGINT else Stopped
    return kind(f"stopped by {number.name} {when}".rstrip(), where, hint)


@contextmanager
def signal_handler(
    handler: Callable[[int, FrameType | None], None], names: Sequence[str] = STOPPING, *, then_ignore: bool = False
) -> Iterator[None]:
    """Call `handler` on some signals inside the block, but not on ignored ones (`nohup` ignores SIGHUP). then_ignore: after the block."""
    with ExitStack() as stack:
        for name in names:
            number = getattr(signal, name, None)  # Windows has only SIGINT and SIGTERM
            if number is not None and (name == "SIGINT" or signal.getsignal(number) is not signal.SIG_IGN):
                before = signal.signal(number, handler)
                stack.callback(signal.signal, number, signal.SIG_IGN if then_ignore else before)
        yield


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Inside the block, a signal interrupts the work, which cleans up as for Ctrl-C; then the error of `stop_error` is raised."""
    request = StopRequest()

    def interrupt(number: int, frame: FrameType | None) -> None:
        request(number, frame)
        raise KeyboardInterrupt  # not an Exception, which a library could catch

    with signal_handler(interrupt):
        try:
            yield
        except KeyboardInterrupt:
            raise stop_error(request.signal or signal.SIGINT, "", hint="nothing is kept: run the command again") from None


@contextmanager
def stop_on_signals(*, then_ignore: bool = False) -> Iterator[StopRequest]:
    """Inside the block, signals set a StopRequest instead of ending the process.

    then_ignore: after the block they do nothing. An elastic agent sends SIGTERM to the processes that are still ending when the first one
    has stopped, and they must end with their own exit code.
    """
    request = StopRequest()
    with signal_handler(request, then_ignore=then_ignore):
        yield request
