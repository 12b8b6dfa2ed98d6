"""The short form of the trials of docs/reliability.md; `make soak` runs the full numbers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.trials import TRIALS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")]
# Each place, kind of damage, signal and command once, and about half of the hostile files.
COUNTS = {"kills": 4, "saves": 4, "overwrites": 11, "streams": 4, "damaged": 8, "fallback": 3, "hostile": 35, "disk": 2, "signals": 4}
COUNTS |= {"starters": 1, "faults": 4, "ranks": 2, "hung": 3, "outputs": 35, "listeners": 4, "readonly": 7, "inputs": 33, "processes": 1}


@pytest.fixture(scope="module")
def trial() -> Iterator[Callable[[str, Path], dict[str, Any]]]:
    """Runs a trial in a fork of a process that has imported everything."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-m", "tests.reliability.trials"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdin is not None and server.stdout is not None
        yield lambda name, folder: (
            server.stdin.write(f"{name} {COUNTS[name]} {folder}\n"),
            server.stdin.flush(),
            json.loads(server.stdout.readline()),
        )[-1]
        server.stdin.close()


@pytest.mark.parametrize("name", TRIALS)
def test_all_trials_pass_and_their_control_fails(name: str, trial: Callable[[str, Path], dict[str, Any]], tmp_path: Path) -> None:
    found = trial(name, tmp_path)
    assert found["passed"] == found["trials"] >= COUNTS[name], found["failures"]
    if "control" in found:
        assert found["control"]["passed"] == 0 < found["control"]["trials"], found["control"]
