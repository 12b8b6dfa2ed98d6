"""The trials of docs/reliability.md: `python -m tests.reliability.trials NAME COUNT FOLDER` runs COUNT of them and prints a JSON object.

    {"trials": 50, "passed": 50, "failures": [], "control": {"what": "…", "trials": 10, "passed": 0}}

A control runs the same trials without the thing under test: it must fail, or the trials show nothing. Each trial runs in a forked
process, so that it can be killed at a chosen call without any clean-up; for that this module is a program of its own, with one thread.
Without arguments it reads `NAME COUNT FOLDER` from stdin line by line, and runs each in a fork: test_trials.py imports torch only once.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import freetf_cli
from tests.reliability.commands import inputs, listeners, outputs, readonly
from tests.reliability.files import damaged, fallback, hostile
from tests.reliability.kills import disk, kills, overwrites, saves, small_disk, streams, system_calls
from tests.reliability.processes import faults, processes, signals, starters
from tests.reliability.ranks import gpu, hung, launched, ranks
from tests.reliability.world import forked

PARTS = (
    *(kills, saves, overwrites, streams, damaged, fallback, hostile, disk, signals, starters, faults, ranks, hung),
    *(outputs, listeners, inputs, readonly, processes),
)
TRIALS: dict[str, Callable[[int, Path], dict[str, Any]]] = {each.__name__: each for each in PARTS}
LAZY = ("torch._dynamo", "jinja2", "matplotlib.figure", "matplotlib.backends.backend_svg")  # what a training run imports late
SOAK_ONLY = {each.__name__: each for each in (system_calls, small_disk, launched, gpu)}


def main(*words: str) -> None:
    torch.set_num_threads(1)
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else an import that asks for a GPU initialises CUDA, which does not survive a fork
    ours = [module.name for module in pkgutil.walk_packages(freetf_cli.__path__, "freetf_cli.")]
    lazy = () if torch.version.cuda else LAZY  # torch._dynamo uses the GPU
    for name in (*ours, *lazy):  # so that the forks need not import them
        if not name.endswith(("_triton", "__main__")):
            with suppress(ModuleNotFoundError):  # an extra is not installed
                importlib.import_module(name)
    if words:
        run(*words)
    for line in sys.stdin if not words else ():
        folder = line.split()[2]
        if forked(lambda line=line: run(*line.split()), Path(folder) / "printed"):  # type: ignore[misc]
            print(json.dumps({"trials": 1, "passed": 0, "failures": [(Path(folder) / "printed").read_text()[-3000:]]}), flush=True)
        else:
            print((Path(folder) / "printed").read_text().splitlines()[-1], flush=True)


def run(name: str, count: str, folder: str) -> None:
    print(json.dumps({**TRIALS, **SOAK_ONLY}[name](int(count), Path(folder))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
