"""Data-parallel training: the processes that train one run together, each on its part of every batch.

All have the same weights, since all begin alike and make the same updates: those of the gradient summed over the processes, which is the
gradient of the whole batch. What the host decides, such as where to stop, is agreed on over gloo; gradients on CUDA go over NCCL.
Process 0 leads: it alone writes the run. Where one of them ends before its time, the others find out at their next agreement.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from freetf_cli.errors import FreetfError, InputError, Interrupted, Stopped, is_out_of_memory
from freetf_cli.training.launch import LOST, RESUME, launched, started_processes
from freetf_cli.training.signals import StopRequest

JOIN_LIMIT = 300.0  # seconds that processes wait for each other at the start
BUCKET = 2**24  # numbers that are summed at once: a copy of all gradients would double them


class PeerLost(FreetfError):
    """Another process of the run ended before its time. Which one knows who started them all, and says so."""

    def __init__(self) -> None:
        super().__init__("another process of the run is gone", hint=RESUME)
        if launched():
            self.exit_code = LOST

    def lines(self) -> list[str]:
        return [] if self.exit_code == LOST else super().lines()


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is. One process alone needs no group: for it every method gives back what it is given."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """Which of a batch's rows are this process's."""
        share = batch // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor its sum over the processes, in place; all of one device and type."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            with _watched():
                dist.all_reduce(flat)
            for tensor, summed in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def largest(self, number: int) -> int:
        """The largest number that any process gives."""
        if self.size == 1:
            return number
        agreed = torch.tensor([number])
        with _watched():
            dist.all_reduce(agreed, dist.ReduceOp.MAX)
        return int(agreed)

    def alike(self, numbers: Tensor) -> bool:
        """Whether all processes give the same integers."""
        if self.size == 1:
            return True
        ends = torch.stack((numbers, -numbers)).cpu()
        with _watched():
            dist.all_reduce(ends, dist.ReduceOp.MAX)
        return bool((ends[0] == -ends[1]).all())

    def told(self, words: str) -> str:
        """What process 0 gives, to all."""
        if self.size == 1:
            return words
        raw = os.fsencode(words)
        data = torch.zeros(self.largest(len(raw) if self.leads else 0), dtype=torch.uint8)
        if self.leads and raw:
            data = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        with _watched():
            dist.broadcast(data, 0)
        return os.fsdecode(bytes(data.tolist()))

    def wait(self) -> None:
        """Until all processes are here."""
        self.largest(0)


def own_device(device: torch.device) -> torch.device:
    """The device of this kind that is this process's: of several processes on a machine each has a GPU of its own."""
    if device.type != "cuda" or started_processes() == 1:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


@contextmanager
def joined(device: torch.device, stop: StopRequest) -> Iterator[World]:
    """The world that the environment tells of (torchrun's variables), for a block; it is made when all its processes have come.

    Raises Stopped or Interrupted when `stop` asks while they are waited for, FreetfError when they do not come.
    """
    if (size := started_processes()) == 1:
        yield World()
        return
    if device.type == "cuda":
        _check_devices(size)
        torch.cuda.set_device(own_device(device))
    global left_open
    left_open = True
    _meet("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", size, stop)
    try:
        yield World(dist.get_rank(), size)
    except (Stopped, Interrupted):
        _part()  # all leave at the same step
        raise
    _part()


left_open = False  # whether this process is in a group that it could not leave: then it must end without the interpreter's clean-up


def _part() -> None:
    global left_open
    dist.destroy_process_group()
    left_open = False


def _check_devices(size: int) -> None:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", int(os.environ["LOCAL_RANK"]) + 1))
    if here > torch.cuda.device_count():
        what = f"parallel.processes = {size}: {here} on a machine with {torch.cuda.device_count()} CUDA devices"
        raise InputError(what, hint="one process a device, or --device cpu")


def _meet(backend: str, size: int, stop: StopRequest) -> None:
    """Wait for the others in a thread of its own: it is deaf to signals."""
    failed: list[BaseException] = []

    def meet() -> None:
        try:
            dist.init_process_group(backend)
        except BaseException as error:
            failed.append(error)

    thread, began = threading.Thread(target=meet, daemon=True, name="freetf-join"), time.monotonic()
    thread.start()
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    while thread.is_alive():
        thread.join(0.05)
        if stop.signal is not None and thread.is_alive():
            kind = Interrupted if stop.signal.name == "SIGINT" else Stopped
            raise kind(f"stopped by {stop.signal.name} before its first step", hint=RESUME)
        if time.monotonic() - began > JOIN_LIMIT:
            raise FreetfError(f"{size} processes were to meet at {where} (WORLD_SIZE, MASTER_ADDR), and did not within {JOIN_LIMIT:.0f} s")
    if failed:
        reason = (str(failed[0]).splitlines() or [type(failed[0]).__name__])[0][:200]
        raise FreetfError(f"{size} processes were to meet at {where} (WORLD_SIZE, MASTER_ADDR), and could not: {reason}")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@contextmanager
def _watched() -> Iterator[None]:
    """What a collective says when a process is gone, in our words."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise PeerLost from error
