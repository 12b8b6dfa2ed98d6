"""The memory that a process of a run needs on the host and on its GPU, and whether it grows on the host from step to step."""

from __future__ import annotations

import os
import resource
import sys
from itertools import pairwise
from pathlib import Path

import torch

from freetf_cli.report.units import size

STRETCHES = 6  # of equal length, whose lowest values are compared
LEAST, MOST = 60, 240  # records that are judged, and that are kept
WORTH_BYTES, WORTH_SHARE = 256 << 20, 0.2  # growth is reported if it is larger than both: bytes, and a share of the first value


def host_memory() -> tuple[int, int]:
    """The resident bytes of this process, and how many of them are its own.

    Pages of mapped files, such as the tokens of a data folder, are not its own: they climb as a run reads them, and the system takes them
    back where it needs memory. Where there is no /proc, both are the largest value so far.
    """
    try:
        resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    except OSError:
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return largest, largest
    page = os.sysconf("SC_PAGE_SIZE")
    return resident * page, (resident - shared) * page


def gpu_peak() -> int | None:
    """The most bytes that tensors have had on this process's GPU so far; None without one."""
    return torch.cuda.max_memory_allocated() or None  # 0 where CUDA is not in use


class Growth:
    """The bytes of a process at the logged steps of a run, and the warning that they climb steadily."""

    def __init__(self) -> None:
        self._records: list[tuple[int, int]] = []  # the first step and the lowest value of each `_each` logged steps
        self._each, self._count, self._warned = 1, 0, False

    def add(self, step: int, own: int) -> None:
        if self._count % self._each == 0:
            if len(self._records) == MOST:
                self._records = [(first, min(a, b)) for (first, a), (_, b) in zip(self._records[::2], self._records[1::2], strict=True)]
                self._each *= 2
            self._records.append((step, own))
        else:
            first, lowest = self._records[-1]
            self._records[-1] = first, min(lowest, own)
        self._count += 1

    def warning(self) -> str:
        """The warning, the first time that memory climbs steadily; otherwise "". A leak may begin late: the later half is judged too."""
        for records in () if self._warned else (self._records, self._records[len(self._records) // 2 :]):
            if len(records) >= LEAST and (words := _steady_growth(records)):
                self._warned = True
                return words
        return ""


def _steady_growth(records: list[tuple[int, int]]) -> str:
    """A sentence about the growth; "" if it is small or not steady.

    The lowest values of consecutive stretches must rise each time, by at least half of what they rise on average. They do not where memory
    rises at once (a first checkpoint), levels off (caches), or falls now and then (a garbage collector).
    """
    length = len(records) // STRETCHES
    stretches = [records[start : start + length] for start in range(len(records) - STRETCHES * length, len(records), length)]
    lows = [min(own for _, own in stretch) for stretch in stretches]
    grown = lows[-1] - lows[0]
    if grown < max(WORTH_BYTES, WORTH_SHARE * lows[0]) or min(b - a for a, b in pairwise(lows)) < grown / (STRETCHES - 1) / 2:
        return ""
    first, last = stretches[0][0][0], stretches[-1][0][0]
    return (
        f"host memory of this process grows steadily: by {size(grown)} from step {first} to step {last}, {size(grown / (last - first))} per"
        " step; see rss in timing.jsonl. If it runs out, resume the run from its last checkpoint"
    )
