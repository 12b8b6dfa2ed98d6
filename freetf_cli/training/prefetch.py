"""Batches prepared ahead: while the device works on a step, a thread makes those of the next ones."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from freetf_cli.data.batches import IGNORE, Batch

AHEAD = 2  # batches


@dataclass(frozen=True, eq=False)
class HostBatch:
    """This process's inputs and targets [B, T] int64 on the host. count: the targets that count; bytes: of their text."""

    inputs: Tensor
    targets: Tensor
    count: int
    bytes: float = 0.0


def host_batch(batch: Batch, size_bytes: float = 0.0, *, pinned: bool = False) -> HostBatch:
    """A batch as tensors. pinned: in page-locked memory, from which a GPU copies asynchronously."""
    inputs, targets = (torch.from_numpy(each).contiguous() for each in (batch.inputs, batch.targets))
    if pinned:
        inputs, targets = inputs.pin_memory(), targets.pin_memory()
    return HostBatch(inputs, targets, int((batch.targets != IGNORE).sum()), size_bytes)


class Prefetch:
    """Calls make(0), make(1), … make(stop - 1) in a thread, up to `ahead` numbers before their batches are taken."""

    def __init__(self, make: Callable[[int], HostBatch], stop: int, ahead: int = AHEAD) -> None:
        self._make, self._stop, self._ahead = make, stop, ahead
        self._futures: dict[int, Future[HostBatch]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="freetf-prefetch")

    def take(self, number: int) -> HostBatch:
        """What make(number) returned, or the exception that it raised. Starts making the next ones."""
        last = max(number + 1, min(number + 1 + self._ahead, self._stop))
        self._futures = {n: self._futures.get(n) or self._pool.submit(self._make, n) for n in range(number, last)}
        return self._futures.pop(number).result()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
