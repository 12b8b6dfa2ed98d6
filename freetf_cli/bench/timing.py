"""Timing of repeated work, and the peak rates of the machine."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch.utils.benchmark import Timer

from freetf_cli.device import autocast_dtype, describe
from freetf_cli.generation.decode_loop import captured
from freetf_cli.records.bench import Machine, Timing

WARM_UP = 3
PRODUCT = {"cuda": 8192, "cpu": 1024}  # side of the square matrices of the largest measured FLOP/s
COPIED = {"cuda": 1 << 30, "cpu": 1 << 27}  # bytes of the copy that measures bandwidth


class Effort(NamedTuple):
    """`repeats` rounds of `steps` calls each."""

    steps: int
    repeats: int


def timed(work: Callable[[], object], effort: Effort) -> Timing:
    """Seconds of one call. Waits for the device at the end of a round, not between calls."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    rounds = [timer.timeit(effort.steps).mean for _ in range(effort.repeats)]
    return Timing(median(rounds), min(rounds), max(rounds), *effort)


def replayed(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The work after a warm-up; on CUDA as a graph, so that short kernels do not wait for Python."""
    if device.type == "cuda":
        return captured(work, device, WARM_UP).replay
    for _ in range(WARM_UP):
        work()
    return work


def machine(device: torch.device, precision: str, effort: Effort) -> Machine:
    """This machine, with the rates of a large matrix product in the precision's dtype, a large copy and a large sum."""
    about = describe(device)
    dtype = autocast_dtype(precision, device) or torch.float32
    side = PRODUCT.get(device.type, PRODUCT["cpu"])
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = timed(replayed(lambda: left @ right, device), effort)
    source = torch.ones(COPIED.get(device.type, COPIED["cpu"]) // 4, device=device)
    target = torch.empty_like(source)
    copy = timed(replayed(lambda: target.copy_(source), device), effort)
    total = timed(replayed(source.sum, device), effort)
    ceiling, bandwidth, reading = 2.0 * side**3 / product.median, 2 * source.nbytes / copy.median, source.nbytes / total.median
    name = str(dtype).removeprefix("torch.")
    return Machine(about["device"], about["name"], about["torch"], name, about["threads"], ceiling, bandwidth, reading)
