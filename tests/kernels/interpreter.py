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


# numpy makes no number of an array with one element any more, as the interpreter does with the bounds of a loop.
BOUNDS = """
from triton.runtime import interpreter
patch = interpreter._patch_lang_tensor

def patched(tensor, scope):
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

interpreter._patch_lang_tensor = patched
"""


def interpreted(program: str, cases: dict[str, Any]) -> dict[str, Any]:
    """What a program prints, JSON, that is given the cases as its argument, JSON too."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", BOUNDS + program, json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
