"""Work that is spread over torch's threads, and memory that is kept for the next operation."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from freetf_cli.device import on_threads

FAULTS = """
import resource, sys
import numpy as np
from freetf_cli.device import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
for repeat in range(11):
    if repeat == 1:  # the first round gets its memory from the system in any case
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(250_000) for _ in range(10)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            on_threads(lambda number: 1 / number, [(1,), (0,)])
        assert torch.get_num_threads() == 2 and on_threads(lambda number: -number, [(1,), (2,), (3,)]) == [-1, -2, -3]
    finally:
        torch.set_num_threads(1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another C library")
def test_freed_memory_is_kept_for_the_next_operation() -> None:
    """Counted as page faults: memory that was returned to the system faults again at each page."""
    found = [int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout) for how in ("keep", "return")]
    assert found[0] < 200 and found[1] > 10 * found[0]
