"""The process that starts those of a data-parallel run on one machine, hands signals on to them, and tells how it ended.

torchrun does the same over several machines: `torchrun --nproc-per-node 2 -m freetf_cli train …`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType
from typing import IO

from freetf_cli.errors import ExitCode, FreetfError
from freetf_cli.training.signals import heeded

LAUNCHED = "FREETF_LAUNCHED"  # in the environment of the processes started here
LOST = 76  # exit code of a process that ended because another was gone: told to this module, to nobody else
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # those of torchrun
GRACE = 30.0  # seconds that the others have once one has ended, or all once a second SIGINT came


def started_processes() -> int:
    """How many processes were started to train together, this one among them, by the environment: torchrun's, or that of `launch`."""
    return int(os.environ["WORLD_SIZE"]) if all(os.environ.get(name, "").strip() for name in VARIABLES) else 1


def launch(words: Sequence[str], count: int) -> int:
    """Run `freetf WORDS` in `count` processes, and give the exit code of the run.

    The first process has this one's streams. What another says is shown only if it ended for a reason of its own. They are in sessions of
    their own, so that a terminal's Ctrl-C reaches them once, through here; and stop, having saved, when this process is gone.
    """
    processes: list[subprocess.Popen[bytes]] = []
    interrupts: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            interrupts.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    with ExitStack() as stack:
        ears = os.pipe()
        for end in ears:
            stack.callback(os.close, end)
        for number in heeded():
            stack.callback(signal.signal, number, signal.signal(number, hand_on))
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        shared = {**os.environ, **_surroundings(count), LAUNCHED: str(ears[0])}
        for rank in range(count):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(_started(words, environment, ears[0], None if rank == 0 else said[rank]))
            stack.callback(_end, processes[-1])
        stuck = _wait(processes, interrupts)
        return _outcome([process.returncode for process in processes], said, stuck)


def _started(words: Sequence[str], environment: dict[str, str], ear: int, said: IO[bytes] | None) -> subprocess.Popen[bytes]:
    """A process with this one's streams, or, where `said` is given, with none but that for its stderr."""
    nothing = None if said is None else subprocess.DEVNULL
    command = [sys.executable, "-m", "freetf_cli", *words]
    return subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=said, env=environment, start_new_session=True, pass_fds=(ear,))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def stop_when_orphaned() -> None:
    """In a process that `launch` has started: the end of that one is a SIGTERM to this one."""
    if LAUNCHED not in os.environ:
        return
    ear = int(os.environ[LAUNCHED])

    def listen() -> None:
        os.read(ear, 1)  # returns when the last writing end is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True, name="freetf-launcher").start()


def _surroundings(count: int) -> dict[str, str]:
    """What torchrun would set, for processes of this machine that meet on its loopback; a thread for each of its cores."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    asked = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    if sys.platform == "linux":
        asked["GLOO_SOCKET_IFNAME"] = "lo"
    return found | {name: os.environ.get(name, value) for name, value in asked.items()}


def _wait(processes: Sequence[subprocess.Popen[bytes]], interrupts: Sequence[int]) -> set[int]:
    """Until all have ended; those that do not after another has are killed. Their ranks."""
    deadline = None
    while any(process.poll() is None for process in processes):
        if deadline is None and (len(interrupts) > 1 or any(process.returncode is not None for process in processes)):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            stuck = {rank for rank, process in enumerate(processes) if process.poll() is None}
            for rank in stuck:
                _end(processes[rank])
            return stuck
        time.sleep(0.05)
    return set()


def _outcome(codes: Sequence[int], said: Sequence[IO[bytes]], stuck: set[int]) -> int:
    """One exit code of several; FreetfError where a process ended by a signal or for no reason of its own."""
    hint = "the same command with --resume auto goes on"
    for rank, code in enumerate(codes):
        if code < 0 and rank not in stuck:
            raise FreetfError(f"process {rank} of {len(codes)} was ended by {signal.Signals(-code).name}", hint=hint)
    own = [rank for rank, code in enumerate(codes) if code not in (ExitCode.OK, LOST) and rank not in stuck]
    if own:
        if own[0] != 0:  # the first process has told by itself
            said[own[0]].seek(0)
            sys.stderr.write(said[own[0]].read().decode(errors="replace"))
        return codes[own[0]]
    if any(codes):
        raise FreetfError("the processes of the run lost each other", hint=hint)
    return ExitCode.OK
