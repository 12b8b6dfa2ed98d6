"""Kernels in Triton's interpreter, which has to be asked for before Triton is imported: hence a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton on this system"),
]


def interpreted(program: str, cases: dict[str, Any]) -> dict[str, Any]:
    """What a program prints, JSON, that is given the cases as its argument, JSON too."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program, json.dumps(cases)], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
