"""Batches made ahead: while the device works on a step, a thread makes the rows of the next ones.

Which rows a step has does not change by that, since they are a function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

import torch
from torch import Tensor

from freetf_cli.data.batches import IGNORE, Batch

AHEAD = 2
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class HostBatch:
    """inputs and targets [B, T] int64 on the host, and how many targets count.

    Where these are a process's rows of a batch, the count is that of the whole.
    """

    inputs: Tensor
    targets: Tensor
    count: int


def host_batch(batch: Batch, rows: slice = slice(None), *, pinned: bool = False) -> HostBatch:
    """Some rows of a batch as tensors; pinned: in memory that a GPU may read while the host goes on."""
    inputs, targets = (torch.from_numpy(each[rows]).contiguous() for each in (batch.inputs, batch.targets))
    if pinned:
        inputs, targets = inputs.pin_memory(), targets.pin_memory()
    return HostBatch(inputs, targets, int((batch.targets != IGNORE).sum()))


class Prefetch(Generic[T]):
    """`with Prefetch(make, stop) as made: made.take(0), made.take(1), …`: what make(n) gives, or raises, for n < stop.

    `make` runs in one thread of its own, up to `ahead` numbers before they are asked for.
    """

    def __init__(self, make: Callable[[int], T], stop: int, ahead: int = AHEAD) -> None:
        self._make, self._stop, self._ahead = make, stop, ahead
        self._made: dict[int, Future[T]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="freetf-prefetch")

    def take(self, number: int) -> T:
        """make(number), and the start of those after it."""
        last = max(number + 1, min(number + 1 + self._ahead, self._stop))
        self._made = {n: self._made.get(n) or self._pool.submit(self._make, n) for n in range(number, last)}
        return self._made.pop(number).result()

    def close(self) -> None:
        """End the thread, after what it is making."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
