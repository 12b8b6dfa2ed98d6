"""Runs kernels in Triton's interpreter, in a process of its own: the interpreter must be chosen before Triton is imported."""

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


def each_case(cases: dict[str, Any]) -> Callable[[Any], Any]:
    """Decorator: run a test for the name of each case, where there is Triton."""
    return lambda test: interprets(pytest.mark.slow(pytest.mark.parametrize("name", cases)(test)))


def outcomes_of(check: Callable[..., Any], cases: dict[str, Any]) -> Any:
    """A fixture: `interpreted(check, cases)`, once a module."""
    return pytest.fixture(scope="module")(lambda: interpreted(check, cases))


# The interpreter turns the bounds of a loop, arrays of one element, into numbers, which numpy no longer allows.
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
    """The result of a test module's function for each case, passed through JSON. Kernels run in the interpreter on the CPU."""
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
