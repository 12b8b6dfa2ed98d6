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

from freetf_cli.errors import ExitCode, FreetfError, InputError, Interrupted, Stopped
from freetf_cli.training.signals import heeded

LAUNCHED = "FREETF_LAUNCHED"  # "reading end of a pipe:pid of the launcher", in the environment of the processes started here
LOST = 76  # exit code of a process that ended because another was gone: told to this module, to nobody else
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # those of torchrun
FOREIGN = ("TORCHELASTIC_", "GROUP_", "ROLE_")  # of a launcher around this one
GRACE = 30.0  # seconds that the others have once one has ended
AT_ONCE = 2.0  # and that all have once a second SIGINT came
RESUME = "the same command with --resume auto goes on"


def started_processes() -> int:
    """How many processes were started to train together, this one among them, by the environment: torchrun's, or that of `launch`."""
    found = {name: os.environ.get(name, "").strip() for name in VARIABLES}
    if not all(found.values()):
        return 1
    numbers = {name: int(found[name]) if found[name].isdecimal() else -1 for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    for name, number in numbers.items():
        least, most = {"WORLD_SIZE": (1, 1 << 20), "MASTER_PORT": (1, 65535)}.get(name, (0, numbers["WORLD_SIZE"] - 1))
        if not least <= number <= most:
            hint = f"unset {' '.join(VARIABLES)} where no torchrun set them"
            raise InputError(f"the environment has {name}={found[name][:40]!r} with WORLD_SIZE={found['WORLD_SIZE'][:40]!r}", hint=hint)
    return numbers["WORLD_SIZE"]


def launched() -> bool:
    """Whether `launch` of the process above has started this one."""
    return os.environ.get(LAUNCHED, "").endswith(f":{os.getppid()}")


class Children:
    """Processes started here, and the signals passed on to them."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []
        self.handed: list[signal.Signals] = []

    def add(self, process: subprocess.Popen[bytes]) -> None:
        self.all.append(process)
        for number in self.handed:  # which came while it was being started
            process.send_signal(number)

    def pass_signals(self, stack: ExitStack) -> None:
        """Pass the signals of this process on to the children until the stack is closed."""
        for number in heeded():
            stack.callback(signal.signal, number, signal.signal(number, self.hand_on))
        stack.callback(signal.signal, signal.SIGTSTP, signal.signal(signal.SIGTSTP, self.pause))

    def hand_on(self, number: int, frame: FrameType | None) -> None:
        self.handed.append(signal.Signals(number))
        self._send(number)

    def pause(self, number: int, frame: FrameType | None) -> None:
        """A terminal's Ctrl-Z stops all, and `fg` goes on with all."""
        self._send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # until SIGCONT comes
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        for process in self.all:
            if process.poll() is None:
                process.send_signal(number)

    @property
    def interrupted(self) -> bool:
        """A second SIGINT came."""
        return self.handed.count(signal.SIGINT) > 1


def launch(words: Sequence[str], count: int) -> int:
    """Run `freetf WORDS` in `count` processes, and give the exit code of the run.

    The first process has this one's streams. What another says is shown only if it ended for a reason of its own. They are in sessions of
    their own, so that a terminal's Ctrl-C reaches them once, through here; and stop, having saved, when this process is gone.
    """
    processes = Children()
    with ExitStack() as stack:
        ears = os.pipe()
        for end in ears:
            stack.callback(os.close, end)
        processes.pass_signals(stack)
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        shared = {**_surroundings(count), LAUNCHED: f"{ears[0]}:{os.getpid()}"}
        for rank in range(count):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.add(_started(words, environment, ears[0], None if rank == 0 else said[rank]))
            stack.callback(_end, processes.all[-1])
        stuck = _wait(processes)
        return _outcome(processes, said, stuck)


def _started(words: Sequence[str], environment: dict[str, str], ear: int, said: IO[bytes] | None) -> subprocess.Popen[bytes]:
    """A process with this one's streams; with `said`, its stderr goes there and it has no other streams."""
    nothing = None if said is None else subprocess.DEVNULL
    return subprocess.Popen(
        freetf_command(words), stdin=nothing, stdout=nothing, stderr=said, env=environment, start_new_session=True, pass_fds=(ear,)
    )


def freetf_command(words: Sequence[str]) -> list[str]:
    """The command line of `freetf WORDS` in a process that imports from the same places as this one."""
    code = f"import sys; sys.path[:] = {sys.path!r}; sys.argv[0] = {sys.argv[0]!r}; from freetf_cli.cli.app import main; sys.exit(main())"
    return [sys.executable, "-c", code, *words]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def stop_when_orphaned() -> None:
    """In a process that `launch` has started: the end of that one is a SIGTERM to this one, and some time later its end."""
    if not launched():
        return
    ear = int(os.environ[LAUNCHED].split(":")[0])

    def listen() -> None:
        os.read(ear, 1)  # returns when the last writing end is closed
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10 * GRACE)  # a large checkpoint may take its time
        os._exit(ExitCode.FAILED)

    threading.Thread(target=listen, daemon=True, name="freetf-launcher").start()


def _surroundings(count: int) -> dict[str, str]:
    """The environment with what torchrun would set, for processes of this machine that meet on its loopback; a thread for each core."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    threads = str(max(1, (os.cpu_count() or 1) // count))
    asked = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    fixed = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if sys.platform == "linux":
        fixed["GLOO_SOCKET_IFNAME"] = "lo"
    return {**asked, **kept, **fixed}


def _wait(processes: Children) -> set[int]:
    """Until all have ended; those that do not after another has are killed. Their ranks."""
    deadline = None
    while None in (codes := [process.poll() for process in processes.all]):
        now = time.monotonic()
        if processes.interrupted:
            deadline = min(deadline or now + AT_ONCE, now + AT_ONCE)
        elif deadline is None and any(code is not None for code in codes):
            deadline = now + GRACE
        if deadline is not None and now > deadline:
            stuck = {rank for rank, code in enumerate(codes) if code is None}
            for rank in stuck:
                _end(processes.all[rank])
            return stuck
        time.sleep(0.05)
    return set()


def _outcome(processes: Children, said: Sequence[IO[bytes]], stuck: set[int]) -> int:
    """One exit code of several: a process's own comes before that of one which was lost or killed."""
    codes = [process.returncode for process in processes.all]
    own = [rank for rank, code in enumerate(codes) if code > 0 and code != LOST and rank not in stuck]
    if own:
        if own[0] != 0:  # the first process has told by itself
            said[own[0]].seek(0)
            sys.stderr.write(said[own[0]].read().decode(errors="replace"))
        return codes[own[0]]
    if processes.interrupted:
        raise Interrupted("interrupted")
    dead = {rank: signal.Signals(-code) for rank, code in enumerate(codes) if code < 0 and rank not in stuck}
    for number in dead.values():
        if number in processes.handed:
            kind = Interrupted if number is signal.SIGINT else Stopped
            raise kind(f"stopped by {number.name} before its first step", hint=RESUME)
    for rank, number in dead.items():
        raise FreetfError(f"process {rank} of {len(codes)} was ended by {number.name}", hint=RESUME)
    if any(codes):
        raise FreetfError("the processes of the run lost each other", hint=RESUME)
    return ExitCode.OK
