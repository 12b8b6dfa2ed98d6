"""Data-parallel training: processes that train one run together, each on its rows of every batch.

All processes start with the same weights and apply the same updates: gradients are summed over the processes, which gives the gradient of
the whole batch. Decisions of the host, such as when to stop, are agreed on over gloo; gradients on CUDA go over NCCL. Process 0 is the
main process, and the only one that writes the run. If a process dies, the others notice at their next collective operation.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from freetf_cli.errors import FreetfError, InputError, Interrupted, Stopped, is_out_of_memory
from freetf_cli.training.elastic import LOST, launched, started_processes
from freetf_cli.training.signals import RESUME, StopRequest, stop_error

JOIN_TIMEOUT = 300.0  # seconds that processes wait for each other at the start
BUCKET = 2**24  # numbers per all-reduce; reducing all gradients at once would need a copy of them all

# Whether this process has joined a group: it must exit without the interpreter's clean-up, during which gloo's threads can abort it.
joined = False


class PeerLost(FreetfError):
    """Another process of the run died. The launcher knows which one and reports it; without a launcher this error is shown."""

    def __init__(self) -> None:
        super().__init__("another process of the run died", hint=RESUME)
        if launched():
            self.exit_code = LOST

    def lines(self) -> list[str]:
        return [] if self.exit_code == LOST else super().lines()


@dataclass(frozen=True)
class World:
    """This process's rank among `size` processes. With one process every operation returns its argument and needs no process group."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """This process's rows of a batch of `batch` rows."""
        share = batch // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes. All must have one device and dtype."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            with _peer_errors():
                dist.all_reduce(flat)
            for tensor, summed in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def all_reduce_max(self, number: int) -> int:
        """The maximum of a number over the processes."""
        return int(self._maxima(torch.tensor([number])))

    def all_equal(self, numbers: Tensor) -> bool:
        """Whether all processes have the same integers."""
        bounds = self._maxima(torch.stack((numbers, -numbers)).cpu())
        return bool((bounds[0] == -bounds[1]).all())

    def _maxima(self, numbers: Tensor) -> Tensor:
        """Replace each number of a tensor on the CPU by its maximum over the processes."""
        if self.size > 1:
            with _peer_errors():
                dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return numbers

    def broadcast(self, text: str) -> str:
        """The text of process 0, in every process."""
        if self.size == 1:
            return text
        sent = os.fsencode(text) if self.is_main else b""
        data = torch.zeros(self.all_reduce_max(len(sent)), dtype=torch.uint8)
        data[: len(sent)] = torch.tensor(list(sent))
        with _peer_errors():
            dist.broadcast(data, 0)
        return os.fsdecode(bytes(data.tolist()))

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.all_reduce_max(0)


ALONE = World()


def local_device(device: torch.device) -> torch.device:
    """This process's own device of the given kind: with several processes on a machine each has its own GPU."""
    if device.type != "cuda" or started_processes() == 1:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


@contextmanager
def process_group(device: torch.device, stop: StopRequest) -> Iterator[World]:
    """Join the process group that the environment describes (torchrun's variables), inside the `with` block.

    Raises Stopped or Interrupted if a signal comes while this process waits for the others, FreetfError if they do not come.
    """
    if (size := started_processes()) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        here, devices = int(os.environ.get("LOCAL_WORLD_SIZE", int(os.environ["LOCAL_RANK"]) + 1)), torch.cuda.device_count()
        if here > devices:
            what = f"parallel.processes = {size}: {here} on a machine with {devices} CUDA devices"
            raise InputError(what, hint="use one process per device, or --device cpu")
        torch.cuda.set_device(local_device(device))
    global joined
    joined = True
    _rendezvous("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", size, stop)
    stopped: FreetfError | None = None
    try:
        yield World(dist.get_rank(), size)
    except (Stopped, Interrupted) as error:  # all processes stop at the same step
        stopped = error
    dist.destroy_process_group()  # not after other errors: it would wait for processes that may be dead
    if stopped:
        raise stopped


def _rendezvous(backend: str, size: int, stop: StopRequest) -> None:
    """Initialise the process group in a thread, because the call blocks and does not react to signals."""
    began, joining = time.monotonic(), ThreadPoolExecutor(1, "freetf-rendezvous").submit(dist.init_process_group, backend)
    what = f"{size} processes could not connect at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (WORLD_SIZE, MASTER_ADDR)"
    while not wait([joining], timeout=0.05).done and stop.signal is None:
        if time.monotonic() - began > JOIN_TIMEOUT:
            raise FreetfError(f"{what} within {JOIN_TIMEOUT:.0f} s")
    error = joining.exception() if joining.done() else None
    if stop.signal is not None and (error or not joining.done()):  # a launcher reports it, or why it ended this process
        raise PeerLost if launched() else stop_error(stop.signal, "before its first step")
    if error:
        raise FreetfError(f"{what}: {[*str(error).splitlines(), type(error).__name__][0][:200]}")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in groups of at most BUCKET numbers; a larger tensor is alone in its group."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    yield bucket


@contextmanager
def _peer_errors() -> Iterator[None]:
    """Raise PeerLost when a collective operation fails because a process is gone."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise PeerLost from error
