"""Fixtures for all tests: the program in this process, and as a process of its own."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny: more threads only wait for each other
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job: tests of Ctrl-C would wait for ever
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker of xdist is left with a long test at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


class Outcome(NamedTuple):
    """How an invocation of freetf ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def shell(environment: dict[str, str]) -> Callable[[str], Outcome]:
    """`shell("freetf recipe list | head -n 1")`: run a line of bash; the exit code is that of the first part that fails."""

    def run(line: str) -> Outcome:
        program = line.replace("freetf", f"'{sys.executable}' -m freetf_cli", 1)
        command = ["bash", "-c", f"set -o pipefail; {program}"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def run_cli() -> Callable[..., Outcome]:
    """`run_cli("recipe", "list")`: call main() in this process, with captured streams that are not a terminal."""

    def run(*args: object, input: str | bytes | None = None) -> Outcome:
        from freetf_cli.cli.app import main

        fed = input.encode() if isinstance(input, str) else input or b""
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(fed), encoding="utf-8"))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            code = main([str(arg) for arg in args])
        return Outcome(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))

    return run


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment variables for a process that imports this checkout."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}


@pytest.fixture
def run_process(environment: dict[str, str]) -> Callable[..., Outcome]:
    """`run_process("recipe", "list", cwd=…)`: run freetf in a process of its own, for streams, signals and start-up."""

    def run(*args: object, input: str | None = None, timeout: float = 240, **settings: object) -> Outcome:
        variables = {**environment, **settings.pop("env", {})}  # type: ignore[dict-item]
        command = [sys.executable, "-m", "freetf_cli", *(str(arg) for arg in args)]
        done = subprocess.run(command, input=input, capture_output=True, text=True, timeout=timeout, env=variables, **settings)  # type: ignore[call-overload]
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have titles in place of charts, whose drawing takes longer than a few training steps do. tests/report draws all kinds."""
    from freetf_cli.report import charts

    for kind in ("_chart", "_intervals", "_heat_map"):
        monkeypatch.setattr(charts, kind, lambda made, _: charts._nothing(made))


RECIPE = """\
description = "a small Free model"

[data]
task = "letters"

[model]
layers = 4
width = 64
heads = 4

[latent]
kappa = 0.25

[train]
steps = 100
batch = 8
lr = 1e-3

[smoke]
train = { steps = 3 }
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A valid recipe of a Free model, alone in its folder."""
    path = tmp_path / "small.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path
