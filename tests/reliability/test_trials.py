"""The short form of docs/reliability.md's trials; `make soak` has the full numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.trials import TRIALS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")]
COUNTS = {"kills": 8, "saves": 8, "streams": 6, "damaged": 16, "fallback": 6, "hostile": 63, "disk": 4, "signals": 16, "starters": 3}
COUNTS |= {"faults": 8, "ranks": 4, "launched": 4, "outputs": 46, "listeners": 4, "readonly": 7, "inputs": 99, "processes": 2}


@pytest.mark.parametrize("name", TRIALS)
def test_all_trials_pass_and_their_control_does_not(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-m", "tests.reliability.trials", name, str(COUNTS[name]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["passed"] == found["trials"] >= COUNTS[name], found["failures"]
    if "control" in found:
        assert found["control"]["passed"] == 0 < found["control"]["trials"], found["control"]
