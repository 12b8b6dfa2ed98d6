"""Runs kernels in Triton's interpreter: in a process of its own, since the interpreter must be chosen before Triton is imported."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

interprets = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton on this system")

# numpy no longer turns an array of one element into a number, as the interpreter does with the bounds of a loop.
PROGRAM = """
import json, sys
from triton.runtime import interpreter

patch = interpreter._patch_lang_tensor

def patched(tensor, scope):
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

interpreter._patch_lang_tensor = patched
from {module} import {function} as check

print(json.dumps({{name: check(*case) for name, case in json.loads(sys.argv[1]).items()}}))
"""


def interpreted(check: Callable[..., Any], cases: dict[str, Any]) -> dict[str, Any]:
    """What a test module's function returns for each case, as JSON holds it. Kernels run in the interpreter on the CPU."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    program = PROGRAM.format(module=check.__module__, function=check.__name__)
    done = subprocess.run([sys.executable, "-c", program, json.dumps(cases)], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def relative(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    return float((ours.double() - theirs).norm() / theirs.norm())
