"""The processes that train one run together: how they join, agree, and notice that one is gone.

All of it is torch.distributed over gloo, and about decisions of the host, such as when to stop; gradients and weights are the business
of training/parallel.py. Process 0 is the main process, and the only one that writes the run's records. A process that dies, or hangs, is
noticed by the others at their next agreement.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from freetf_cli.errors import FreetfError, InputError, Interrupted, Stopped, is_out_of_memory
from freetf_cli.training.elastic import LOST, launched, started_processes
from freetf_cli.training.signals import RESUME, StopRequest, stop_error

JOIN_TIMEOUT = 300.0  # seconds that processes wait for each other at the start
ANSWER = 45.0  # seconds, between two steps, after which a process that does not answer counts as lost
BEAT = 3.0  # seconds between two signs of life
PATIENCE = timedelta(hours=2)  # for what one process does alone, or all do once: samples, a report, compiling

# Whether this process has joined a group: it must exit without the interpreter's clean-up, during which gloo's threads can abort it.
joined = False


class PeerLost(FreetfError):
    """Another process of the run died or hangs. The launcher knows which one and reports it; without a launcher this error is shown."""

    def __init__(self) -> None:
        super().__init__(f"another process of the run died, or did not answer for {ANSWER:.0f} s", hint=RESUME)
        if launched():
            self.exit_code = LOST

    def lines(self) -> list[str]:
        return [] if self.exit_code == LOST else super().lines()


@dataclass(frozen=True)
class World:
    """This process's rank among `size` processes. With one process every operation returns its argument and needs no process group.

    short: the group whose operations fail after ANSWER seconds. long: the group of those that may take hours.
    """

    rank: int = 0
    size: int = 1
    short: Any = None
    long: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def rows(self, batch: int, parts: int = 1) -> list[range]:
        """This process's rows of a batch: an equal share of each of the `parts` whose gradients are accumulated."""
        share = batch // parts // self.size
        starts = (part * share * self.size + self.rank * share for part in range(parts))
        return [range(start, start + share) for start in starts]

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sums over the processes, in float64. Raises PeerLost if one does not answer in time."""
        if self.size == 1:
            return list(numbers)
        summed = torch.tensor(numbers, dtype=torch.float64)
        with peer_errors():
            dist.all_reduce(summed, group=self.short)
        return summed.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in every process. For small things, and for long waits."""
        values = [value]
        if self.size > 1:
            values *= self.size
            with peer_errors():
                dist.all_gather_object(values, value, group=self.long)
        return values

    def broadcast(self, value: Any) -> Any:
        """The value of process 0, in every process."""
        return self.gather(value if self.is_main else None)[0]

    def barrier(self) -> None:
        """Wait, for hours if need be, until all processes are here."""
        if self.size > 1:
            with peer_errors():
                dist.barrier(group=self.long)

    def expect_answers(self, groups: Sequence[Any], queued: float) -> None:
        """After the first step, which compiles: operations of these groups fail ANSWER seconds after the time that they may be queued."""
        if self.size > 1:
            from torch.distributed.distributed_c10d import _set_pg_timeout  # there is no public name; torchtitan uses it too

            for group in groups:
                _set_pg_timeout(timedelta(seconds=ANSWER + queued), group)


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
    timeouts = timedelta(seconds=ANSWER), PATIENCE, timedelta(seconds=ANSWER)
    short, long, of_beats = (dist.new_group(backend="gloo", timeout=timeout) for timeout in timeouts)
    leaving, stopped = threading.Event(), None
    beats = threading.Thread(target=_beat, args=(of_beats, leaving), name="freetf-beats", daemon=True)
    beats.start()
    try:
        yield World(dist.get_rank(), size, short, long)
    except (Stopped, Interrupted) as error:  # all processes stop at the same step
        stopped = error
    leaving.set()
    beats.join()
    dist.destroy_process_group()  # not after other errors: it would wait for processes that may be dead
    if stopped:
        raise stopped


def _beat(group: Any, leaving: threading.Event) -> None:
    """In a thread of each process: show the others that it runs, until all are leaving. If one does not, for ANSWER seconds, exit.

    The main thread may wait for another process for hours, where that one works alone; this thread notices one that was suspended.
    """
    while True:
        left = torch.tensor(float(leaving.wait(BEAT)))
        try:
            dist.all_reduce(left, group=group)
        except RuntimeError as error:
            if "timed out" not in str(error).lower():
                return  # a process has ended: the main thread will notice, and knows more
            lost = PeerLost()
            sys.stderr.write("".join(f"freetf: error: {line}\n" for line in lost.lines()))
            sys.stderr.flush()
            os._exit(lost.exit_code)
        if int(left) == dist.get_world_size(group):
            return


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


@contextmanager
def peer_errors() -> Iterator[None]:
    """Raise PeerLost when a collective operation in the block fails because a process is gone or does not answer."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) or not re.search("gloo|nccl|connection|peer|timed out", str(error), re.IGNORECASE):
            raise
        raise PeerLost from error
