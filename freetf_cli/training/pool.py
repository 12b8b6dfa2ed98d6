"""Several `freetf` commands at a time, each in a process of its own; a signal stops them all."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from freetf_cli.config.files import differences
from freetf_cli.config.recipe import Recipe
from freetf_cli.errors import InputError, Interrupted, Stopped
from freetf_cli.training.launch import Children, freetf_command

INTERVAL = 0.05  # seconds between looks at the processes


@dataclass(frozen=True)
class Job:
    """A command: its words after `freetf`, and the file that its output is appended to."""

    words: Sequence[str]
    log: Path

    def last_line(self) -> str:
        """The last line of the log that says anything."""
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""


def run_jobs(jobs: Sequence[Job], at_once: int, ended: Callable[[int, int], None]) -> None:
    """Run all jobs, `at_once` at a time; a failed one does not stop the others.

    ended: called with a job's index and exit code. A signal is passed on to the running jobs, and once they have ended Interrupted or
    Stopped is raised; a second SIGINT kills them. Jobs have sessions of their own, so that Ctrl-C reaches them once, through this process.
    """
    threads = str(max(1, _cores() // at_once))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    children, waiting, running = Children(), deque(enumerate(jobs)), dict[int, subprocess.Popen[bytes]]()
    with ExitStack() as stack:
        children.pass_signals(stack)
        stack.callback(_stop, running)  # where `ended` raises
        while running or (waiting and not children.handed):
            while waiting and len(running) < at_once and not children.handed:
                index, job = waiting.popleft()
                running[index] = _start(job, environment)
                children.add(running[index])
            for index in [index for index, process in running.items() if process.poll() is not None]:
                ended(index, running.pop(index).returncode)
            if children.interrupted:
                _stop(running, signal.SIGKILL)
            time.sleep(INTERVAL)
    if children.handed:
        kind = Interrupted if children.handed[0] is signal.SIGINT else Stopped
        raise kind(f"stopped by {children.handed[0].name}", hint="the same command resumes the runs")


def is_done(run: Path, planned: Recipe) -> bool:
    """Whether the run has ended, trained by this recipe. What only the data knows may be missing in `planned`."""
    from freetf_cli.runs.folder import RunFolder

    if not (run / "recipe.toml").is_file():
        return False
    try:
        folder = RunFolder.open(run)
        changed = [key for key, ours, _ in differences(planned, folder.recipe()) if ours is not None]
    except InputError:  # `freetf train` will say what is wrong with it
        return False
    return not changed and folder.manifest().get("status") == "done"


def _start(job: Job, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with job.log.open("ab") as log:
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        return subprocess.Popen(freetf_command(job.words), env=environment, start_new_session=True, **streams)  # type: ignore[call-overload, no-any-return]


def _stop(running: dict[int, subprocess.Popen[bytes]], number: signal.Signals = signal.SIGTERM) -> None:
    for process in running.values():
        process.send_signal(number)
    for process in running.values():
        process.wait()


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
