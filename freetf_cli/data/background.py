"""Run work in another thread so that signals can interrupt it: Python runs signal handlers only in the main thread, between bytecodes."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def start(work: Callable[[], Result]) -> Future[Result]:
    """Start `work` in a daemon thread."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # not a thread pool: the interpreter would wait for it at exit
    return future


def wait(future: Future[Result]) -> Result:
    """Wait for the result of `start`. Signals are handled meanwhile."""
    while not future.done():
        concurrent.futures.wait([future], timeout=0.1)  # short waits: a signal delivered to another thread would not end a long one
    return future.result()
