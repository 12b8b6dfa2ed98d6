"""The launcher of a data-parallel run on one machine: it starts the processes, passes signals on to them and reports how they ended.

torchrun does the same for several machines: `torchrun --nproc-per-node 2 -m freetf_cli train …`.
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

from freetf_cli.errors import ExitCode, FreetfError, InputError, Interrupted
from freetf_cli.training.signals import RESUME, handled_signals, stop_error

LAUNCHED = "FREETF_LAUNCHED"  # environment variable of the launched processes: "reading end of a pipe:pid of the launcher"
LOST = 76  # exit code of a process that ended because another one died; only the launcher sees it
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # the ones torchrun sets
FOREIGN = ("TORCHELASTIC_", "GROUP_", "ROLE_")  # variables of another launcher around this one, not passed on
GRACE = 30.0  # seconds that the other processes have once one has ended
KILL_AFTER = 2.0  # seconds that all processes have after a second SIGINT


def started_processes() -> int:
    """How many processes were started to train together, this one included, according to the environment."""
    found = {name: os.environ.get(name, "").strip() for name in VARIABLES}
    if not all(found.values()):
        return 1
    numbers = {name: int(found[name]) if found[name].isdecimal() else -1 for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    for name, number in numbers.items():
        least, most = {"WORLD_SIZE": (1, 1 << 20), "MASTER_PORT": (1, 65535)}.get(name, (0, numbers["WORLD_SIZE"] - 1))
        if not least <= number <= most:
            hint = f"unset {' '.join(VARIABLES)} unless torchrun set them"
            raise InputError(f"the environment has {name}={found[name][:40]!r} with WORLD_SIZE={found['WORLD_SIZE'][:40]!r}", hint=hint)
    return numbers["WORLD_SIZE"]


def is_main_process() -> bool:
    """Whether this process is alone, or process 0 of those that train together."""
    return started_processes() == 1 or int(os.environ["RANK"]) == 0


def launched() -> bool:
    """Whether the parent process is a launcher that started this process."""
    return os.environ.get(LAUNCHED, "").endswith(f":{os.getppid()}")


class Children:
    """The processes that were started, and the signals that were passed on to them."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []
        self.handed: list[signal.Signals] = []

    def add(self, process: subprocess.Popen[bytes]) -> None:
        self.all.append(process)
        for number in self.handed:  # signals that came while it was being started
            process.send_signal(number)

    def pass_signals(self, stack: ExitStack) -> None:
        """Pass the signals of this process on to the children until the stack is closed."""
        for number in handled_signals():
            stack.callback(signal.signal, number, signal.signal(number, self.hand_on))
        stack.callback(signal.signal, signal.SIGTSTP, signal.signal(signal.SIGTSTP, self.pause))

    def hand_on(self, number: int, frame: FrameType | None) -> None:
        self.handed.append(signal.Signals(number))
        self._send(number)

    def pause(self, number: int, frame: FrameType | None) -> None:
        """A terminal's Ctrl-Z stops all processes, and `fg` continues them."""
        self._send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # returns when SIGCONT comes
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        for process in self.all:
            if process.poll() is None:
                process.send_signal(number)

    @property
    def interrupted(self) -> bool:
        """Whether a second SIGINT came."""
        return self.handed.count(signal.SIGINT) > 1


def launch(words: Sequence[str], count: int) -> int:
    """Run `freetf WORDS` in `count` processes and return the exit code of the run.

    Process 0 has this process's streams; the stderr of another is shown only if that process failed for a reason of its own. The
    processes are in sessions of their own, so that a terminal's Ctrl-C reaches them once, through the launcher. They save and stop if
    the launcher dies.
    """
    processes = Children()
    with ExitStack() as stack:
        pipe = os.pipe()
        for end in pipe:
            stack.callback(os.close, end)
        processes.pass_signals(stack)
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        shared = {**_environment(count), LAUNCHED: f"{pipe[0]}:{os.getpid()}"}
        for rank in range(count):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.add(_start(words, environment, pipe[0], None if rank == 0 else outputs[rank]))
            stack.callback(_kill, processes.all[-1])
        stuck = _wait(processes)
        return _outcome(processes, outputs, stuck)


def _start(words: Sequence[str], environment: dict[str, str], pipe: int, stderr: IO[bytes] | None) -> subprocess.Popen[bytes]:
    """Start a process with this one's streams; with `stderr`, that is its only stream."""
    null = None if stderr is None else subprocess.DEVNULL
    return subprocess.Popen(
        freetf_command(words), stdin=null, stdout=null, stderr=stderr, env=environment, start_new_session=True, pass_fds=(pipe,)
    )


def freetf_command(words: Sequence[str]) -> list[str]:
    """The command line of `freetf WORDS` in a process that imports from the same places as this one."""
    code = f"import sys; sys.path[:] = {sys.path!r}; sys.argv[0] = {sys.argv[0]!r}; from freetf_cli.cli.app import main; sys.exit(main())"
    return [sys.executable, "-c", code, *words]


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


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
    threads = str(max(1, (os.cpu_count() or 1) // count))
    defaults = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    fixed = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if sys.platform == "linux":
        fixed["GLOO_SOCKET_IFNAME"] = "lo"
    return {**defaults, **kept, **fixed}


def _wait(processes: Children) -> set[int]:
    """Wait for all processes. Kill those that are still there GRACE seconds after the first has ended, and return their ranks."""
    deadline = None
    while None in (codes := [process.poll() for process in processes.all]):
        now = time.monotonic()
        if processes.interrupted:
            deadline = min(deadline or now + KILL_AFTER, now + KILL_AFTER)
        elif deadline is None and any(code is not None for code in codes):
            deadline = now + GRACE
        if deadline is not None and now > deadline:
            stuck = {rank for rank, code in enumerate(codes) if code is None}
            for rank in stuck:
                _kill(processes.all[rank])
            return stuck
        time.sleep(0.05)
    return set()


def _outcome(processes: Children, outputs: Sequence[IO[bytes]], stuck: set[int]) -> int:
    """The run's exit code. A process's own failure takes precedence over processes that lost their peer or were killed."""
    codes = [process.returncode for process in processes.all]
    own = [rank for rank, code in enumerate(codes) if code > 0 and code != LOST and rank not in stuck]
    if own:
        if own[0] != 0:  # process 0 has written to stderr itself
            outputs[own[0]].seek(0)
            sys.stderr.write(outputs[own[0]].read().decode(errors="replace"))
        return codes[own[0]]
    if processes.interrupted:
        raise Interrupted("interrupted")
    dead = {rank: signal.Signals(-code) for rank, code in enumerate(codes) if code < 0 and rank not in stuck}
    for number in dead.values():
        if number in processes.handed:
            raise stop_error(number, "before its first step")
    for rank, number in dead.items():
        raise FreetfError(f"process {rank} of {len(codes)} was ended by {number.name}", hint=RESUME)
    if any(codes):
        raise FreetfError("the processes of the run lost each other", hint=RESUME)
    return ExitCode.OK
