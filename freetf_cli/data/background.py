"""Work in another thread that a signal can interrupt: Python handles signals between steps of the main thread only."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def start(work: Callable[[], Result]) -> Future[Result]:
    """Start work in a thread of its own, which ends with the program."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # not a pool's: the end of the program would wait for that
    return future


def wait(future: Future[Result]) -> Result:
    """The result of started work."""
    while not future.done():
        concurrent.futures.wait([future], timeout=0.1)  # again and again: a signal that another thread receives does not end a longer wait
    return future.result()
