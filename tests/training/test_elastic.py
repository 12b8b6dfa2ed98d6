"""The launcher, with small scripts in place of training processes. tests/cli/test_train_processes.py launches real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from freetf_cli.training.pool import freetf_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")
LAUNCHER = """
import sys
from freetf_cli.cli import failures
from freetf_cli.training import elastic
elastic.freetf_command = lambda words: [sys.executable, "-c", *words]
elastic.GRACE = 1
sys.exit(failures.attempt(lambda: elastic.launch([sys.argv[1]], 2), []))
"""
BEGIN = """
import os, pathlib, signal, sys, time
from freetf_cli.training.elastic import stop_when_orphaned
from freetf_cli.training.signals import stop_on_signals
assert len("$$") == 2  # the agent substitutes nothing in the words
rank = int(os.environ["RANK"])
with stop_on_signals(then_ignore=True) as stop:
    stop_when_orphaned()
    pathlib.Path(f"rank-{rank}").write_text(str(os.getpid()))
"""
# Waits for a signal. Process 0 takes longer to end: the agent sends it SIGTERM meanwhile.
RANK = (
    BEGIN
    + """
    while stop.signal is None:
        time.sleep(0.01)
    sys.stderr.write(f"rank {rank}: {stop.signal.name}\\n")
time.sleep(0.5 * (1 - rank))
sys.exit(130 if stop.signal == signal.SIGINT else 75)
"""
)
# Process 0 loses process 1, which ends in some way.
LOSING = BEGIN + "    time.sleep(0.5)\n    if rank == 0:\n        sys.exit(76)\n    "
FAILS = LOSING + "sys.exit('rank 1: its own error')"
DIES = LOSING + "os.kill(os.getpid(), signal.SIGKILL)"
STOPS = LOSING + "os.kill(os.getpid(), signal.SIGSTOP)"
HANGS = LOSING + "time.sleep(100)"
HINT = "resume with the same command and --resume auto\n"


@pytest.fixture
def launched(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], list[int]]]]:
    """`launched(RANK)`: a launcher, and the pids of its two processes once they have started."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str) -> tuple[subprocess.Popen[str], list[int]]:
        command, pipe = [sys.executable, "-c", LAUNCHER, script], subprocess.PIPE
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        files, end = [tmp_path / f"rank-{rank}" for rank in range(2)], time.monotonic() + 30
        while not all(file.exists() and file.read_text() for file in files):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        return process, [int(file.read_text()) for file in files]

    yield start
    for process in started:
        process.kill()
        for file in tmp_path.glob("rank-*"):
            with suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGKILL)
        process.communicate()


def gone(pids: list[int]) -> bool:
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_a_signal_is_passed_on_to_all_and_process_0_reports_it(launched, number, code):
    process, pids = launched(RANK)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (code, "", f"rank 0: {number.name}\n")
    assert gone(pids)


def test_processes_stop_when_their_launcher_dies(launched):
    process, pids = launched(RANK)
    process.kill()
    assert gone(pids)
    assert process.stderr.read() == "rank 0: SIGTERM\n"


def test_a_second_interrupt_does_not_wait_for_a_process_that_hangs(launched):
    process, pids = launched(RANK)
    for pid in pids:  # process 0 waits for the other
        os.kill(pid, signal.SIGSTOP)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (130, "freetf: error: interrupted\n")
    assert gone(pids)


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (FAILS, "rank 1: its own error\n"),
        (DIES, f"freetf: error: process 1 of 2 was ended by SIGKILL; {HINT}"),
        (STOPS, f"freetf: error: process 1 of 2 did not answer the others; {HINT}"),
        (HANGS, f"freetf: error: process 1 of 2 did not answer the others; {HINT}"),
    ],
)
def test_the_process_that_ended_the_run_is_named(launched, script, line):
    process, pids = launched(script)
    _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (1, line)
    assert gone(pids)


def test_processes_do_not_import_from_the_current_folder(tmp_path, environment):
    (tmp_path / "typer.py").write_text("raise SystemExit(9)\n")
    done = subprocess.run(freetf_command(["--version"]), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
