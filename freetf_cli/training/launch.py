"""The launcher of a data-parallel run on one machine: it starts the processes, passes signals on to them and reports how they ended.

torchrun does the same for several machines: `torchrun --nproc-per-node 2 -m freetf_cli train …`.
"""

from __future__ import annotations

import math
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
from typing import IO, Any

from freetf_cli.errors import ExitCode, FreetfError, InputError, Interrupted
from freetf_cli.training.pool import INTERVAL, Children, child_processes, threads_each
from freetf_cli.training.signals import RESUME, stop_error

LAUNCHED = "FREETF_LAUNCHED"  # environment variable of the launched processes: "reading end of a pipe:pid of the launcher"
LOST = 76  # exit code of a process that ended because another one died; only the launcher sees it
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # the ones torchrun sets
FOREIGN = ("TORCHELASTIC_", "GROUP_", "ROLE_")  # variables of another launcher around this one, not passed on
GRACE = 30.0  # seconds that the other processes have once one has ended
KILL_AFTER = 2.0  # seconds that all processes have after a second SIGINT


def started_processes() -> int:
    """The number of processes that train together, this one included, according to torchrun's environment variables."""
    found = {name: os.environ.get(name, "").strip() for name in VARIABLES}
    if not all(found.values()):
        return 1
    numbers = {name: int(word) if word.isdecimal() else -1 for name, word in found.items() if name != "MASTER_ADDR"}
    valid = {"WORLD_SIZE": range(1, 1 << 20), "MASTER_PORT": range(1, 1 << 16)}
    for name, number in numbers.items():
        if number not in valid.get(name, range(numbers["WORLD_SIZE"])):
            what = f"the environment has {name}={found[name][:40]!r} with WORLD_SIZE={found['WORLD_SIZE'][:40]!r}"
            raise InputError(what, hint=f"unset {' '.join(VARIABLES)} unless torchrun set them")
    return numbers["WORLD_SIZE"]


def is_main_process() -> bool:
    """Whether this process is alone, or process 0 of those that train together."""
    return started_processes() == 1 or int(os.environ["RANK"]) == 0


def launched() -> bool:
    """Whether the parent process is a launcher that started this process."""
    return os.environ.get(LAUNCHED, "").endswith(f":{os.getppid()}")


def launch(words: Sequence[str], count: int) -> int:
    """Run `freetf WORDS` in `count` processes and return the exit code of the run.

    Process 0 uses this process's streams. The stderr of another process is shown only if its own failure ended the run. The processes
    save and stop if the launcher dies.
    """
    with ExitStack() as stack:
        pipe = os.pipe()
        for end in pipe:
            stack.callback(os.close, end)
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        children = stack.enter_context(child_processes())
        shared = {**_environment(count), LAUNCHED: f"{pipe[0]}:{os.getpid()}"}
        for rank, output in enumerate(outputs):
            null = subprocess.DEVNULL
            streams: dict[str, Any] = {} if rank == 0 else {"stdin": null, "stdout": null, "stderr": output}
            children.start(words, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, pass_fds=pipe[:1], **streams)
        return _outcome(children, outputs, stuck=_wait(children))


def stop_when_orphaned() -> None:
    """In a launched process: watch the launcher. When it dies, send SIGTERM to this process, and end it if it does not stop in time."""
    if not launched():
        return
    pipe = int(os.environ[LAUNCHED].split(":")[0])

    def watch() -> None:
        os.read(pipe, 1)  # returns when the launcher's end is closed
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10 * GRACE)  # saving a large checkpoint takes time
        os._exit(ExitCode.FAILED)

    threading.Thread(target=watch, daemon=True, name="freetf-launcher").start()


def _environment(count: int) -> dict[str, str]:
    """The environment with the variables that torchrun would set for processes of this machine, and a share of the cores for each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    defaults = {"OMP_NUM_THREADS": threads_each(count), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    fixed = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if sys.platform == "linux":
        fixed["GLOO_SOCKET_IFNAME"] = "lo"
    return {**defaults, **kept, **fixed}


def _wait(children: Children) -> set[int]:
    """Wait for all processes. Kill those that are still there GRACE seconds after the first has ended, and return their ranks."""
    deadline = math.inf
    while left := {rank for rank, process in enumerate(children.all) if process.poll() is None}:
        grace = KILL_AFTER if children.interrupted else GRACE if len(left) < len(children.all) else math.inf
        deadline = min(deadline, time.monotonic() + grace)
        if time.monotonic() > deadline:
            children.send(signal.SIGKILL)
            for process in children.all:
                process.wait()
            break
        time.sleep(INTERVAL)
    return left


def _outcome(children: Children, outputs: Sequence[IO[bytes]], stuck: set[int]) -> int:
    """The run's exit code. A process's own failure takes precedence over processes that lost their peer or were killed."""
    codes = {rank: process.returncode for rank, process in enumerate(children.all) if rank not in stuck}
    for rank, code in codes.items():
        if code > 0 and code != LOST:
            if rank != 0:  # process 0 has written to stderr itself
                outputs[rank].seek(0)
                sys.stderr.write(outputs[rank].read().decode(errors="replace"))
            return code
    if children.interrupted:
        raise Interrupted("interrupted")
    for rank, code in codes.items():
        if code < 0:
            number = signal.Signals(-code)
            if number in children.received:  # it came before the process could handle it
                raise stop_error(number, "before its first step")
            raise FreetfError(f"process {rank} of {len(children.all)} was ended by {number.name}", hint=RESUME)
    if stuck or any(codes.values()):
        raise FreetfError("the processes of the run lost each other", hint=RESUME)
    return ExitCode.OK
