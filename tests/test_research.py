"""The trainer of searches holds itself against the library's model."""

import subprocess
import sys
from pathlib import Path

import pytest

STACK = Path(__file__).parent.parent / "scripts" / "stack.py"


@pytest.mark.slow
def test_a_stack_is_the_library_model_by_model() -> None:
    done = subprocess.run([sys.executable, str(STACK), "--check"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the same\n"
