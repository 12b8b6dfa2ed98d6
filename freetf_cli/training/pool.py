"""`freetf` commands in child processes, several at a time, which get the signals of this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from freetf_cli.config.recipe import Recipe
from freetf_cli.device import cores
from freetf_cli.errors import InputError
from freetf_cli.training.signals import signal_handler, stop_error

INTERVAL = 0.05  # seconds between looks at the processes


def freetf_command(words: Sequence[str]) -> list[str]:
    """The command line of `freetf WORDS` in a process that imports from the same places as this one."""
    begin = f"import signal, sys; sys.path[:] = {sys.path!r}; sys.argv[0] = {sys.argv[0]!r}"
    load = "signal.signal(2, signal.SIG_DFL); from freetf_cli.cli.app import main; signal.signal(2, signal.default_int_handler)"
    code = f"{begin}; {load}; sys.exit(main())"  # SIGINT during the import would show a traceback
    return [sys.executable, "-c", code, *words]


def threads_each(count: int) -> str:
    """OMP_NUM_THREADS of each of `count` processes that share the cores of this machine."""
    return str(max(1, cores() // count))


class Children:
    """Processes that this one starts, and the signals that it received and passed on to them.

    Each process has a session of its own, so that a terminal's Ctrl-C reaches it once, through this process.
    """

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []
        self.received: list[signal.Signals] = []

    def start(self, words: Sequence[str], environment: Mapping[str, str], **options: Any) -> subprocess.Popen[bytes]:
        """Start `freetf WORDS`. options: of subprocess.Popen."""
        process = subprocess.Popen(freetf_command(words), env=environment, start_new_session=True, **options)
        self.all.append(process)
        for number in self.received:  # signals that came while it was being started
            process.send_signal(number)
        return process

    def send(self, number: int) -> None:
        """Send a signal to the processes that are still running."""
        for process in self.all:
            process.send_signal(number)  # does nothing if the process has ended

    @property
    def interrupted(self) -> bool:
        """Whether a second SIGINT came."""
        return self.received.count(signal.SIGINT) > 1

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals that stop a run."""
        self.received.append(signal.Signals(number))
        self.send(number)

    def pause(self, number: int, frame: FrameType | None) -> None:
        """The handler of a terminal's Ctrl-Z: stop all processes, until `fg` continues them."""
        self.send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # returns when SIGCONT comes
        self.send(signal.SIGCONT)


@contextmanager
def passing_on(children: Children) -> Iterator[None]:
    """Inside the block, child processes get this one's signals."""
    with signal_handler(children.pass_on), signal_handler(children.pause, ["SIGTSTP"]):
        yield


@contextmanager
def child_processes() -> Iterator[Children]:
    """Child processes that get this one's signals inside the block. Those still running at its end are stopped."""
    children = Children()
    with passing_on(children):
        try:
            yield children
        finally:
            children.send(signal.SIGTERM)
            for process in children.all:
                process.wait()


@dataclass(frozen=True)
class Job:
    """A command: its words after `freetf`, and the file that its output is appended to."""

    words: Sequence[str]
    log: Path

    def last_line(self) -> str:
        """The last line of the log that is not empty."""
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""


def run_jobs(jobs: Sequence[Job], at_once: int, ended: Callable[[int, int], None]) -> None:
    """Run all jobs, `at_once` at a time; a failed one does not stop the others.

    ended: called with a job's index and exit code. A signal is passed on to the running jobs; once they have ended, Interrupted or
    Stopped is raised. A second SIGINT kills them.
    """
    environment = {"OMP_NUM_THREADS": threads_each(at_once), **os.environ}
    waiting, running = deque(enumerate(jobs)), dict[int, subprocess.Popen[bytes]]()
    with child_processes() as children:
        while running or (waiting and not children.received):
            while waiting and len(running) < at_once and not children.received:
                index, job = waiting.popleft()
                with job.log.open("ab") as log:
                    running[index] = children.start(job.words, environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            for index in [index for index, process in running.items() if process.poll() is not None]:
                ended(index, running.pop(index).returncode)
            if children.interrupted:
                children.send(signal.SIGKILL)
            time.sleep(INTERVAL)
    if children.received:
        raise stop_error(children.received[0], "", hint="the same command resumes the runs")


def is_done(run: Path, planned: Recipe) -> bool:
    """Whether a run of this recipe, on this data, has ended. If it is another run, `freetf train --resume` says how it differs."""
    from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders
    from freetf_cli.runs.folder import RunFolder
    from freetf_cli.training.start import check_same_run, resolve

    checkpoints = checkpoint_folders(run)
    try:
        if not checkpoints or RunFolder.open(run).manifest().get("status") != "done":
            return False
        newest = Checkpoint.open(checkpoints[-1])
        check_same_run(*resolve(planned, newest), newest)
    except InputError:
        return False
    return True
