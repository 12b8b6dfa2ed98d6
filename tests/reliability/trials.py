"""The trials of docs/reliability.md: `python -m tests.reliability.trials NAME COUNT FOLDER` makes COUNT of them and prints one JSON object.

    {"trials": 50, "passed": 50, "failures": [], "control": {"what": "…", "trials": 10, "passed": 0}}

A control makes the same trials with the thing under test taken away: it must not pass, or the trials show nothing. Each trial runs in a
forked process, so that it can be killed at a chosen call and none of its clean-up happens; for that this module is its own program, with
one thread. Continuous integration runs it with small counts (test_trials.py), `make soak` with those of the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.reliability.commands import inputs, listeners, outputs, readonly
from tests.reliability.files import damaged, fallback, hostile
from tests.reliability.kills import disk, kills, saves, small_disk, streams, system_calls
from tests.reliability.processes import faults, processes, signals, starters
from tests.reliability.ranks import gpu, launched, ranks

PARTS = (
    *(kills, saves, streams, damaged, fallback, hostile, disk, signals, starters, faults, ranks, launched),
    *(outputs, listeners, inputs, readonly, processes),
)
TRIALS: dict[str, Callable[[int, Path], dict[str, Any]]] = {each.__name__: each for each in PARTS}
SOAK_ONLY = {each.__name__: each for each in (system_calls, small_disk, gpu)}


def main(name: str, count: str, folder: str) -> None:
    torch.set_num_threads(1)
    print(json.dumps({**TRIALS, **SOAK_ONLY}[name](int(count), Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
