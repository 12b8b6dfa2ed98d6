"""The processes that train one run: which of them this one is, and starting them on this machine with PyTorch's elastic agent.

torchrun starts them on any number of machines: `torchrun --nproc-per-node 2 -m freetf_cli train …`.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from freetf_cli.errors import ExitCode, FreetfError, InputError, Interrupted
from freetf_cli.training.pool import INTERVAL, Children, freetf_command, passing_on, threads_each
from freetf_cli.training.signals import RESUME, signal_handler, stop_error

LAUNCHED = "FREETF_LAUNCHED"  # environment variable of the launched processes: the launcher's pid
LOST = 76  # exit code of a process that ended because another one died or did not answer; only the launcher sees it
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # the ones torchrun sets
ANSWER = 8.0  # seconds that the other processes have to end by themselves once one has ended as LOST
KILL_AFTER = 2.0  # seconds that all processes have after a second SIGINT
SAVING = 300.0  # seconds that a process has to save and stop once its launcher has died


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
    return os.environ.get(LAUNCHED) == str(os.getppid())


def stop_when_orphaned() -> None:
    """In a process of `launch` or torchrun: when its agent dies, send SIGTERM to this process, and end it if it does not stop in time."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = int(os.environ.get(LAUNCHED, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SAVING)
        os._exit(ExitCode.FAILED)

    threading.Thread(target=watch, daemon=True, name="freetf-orphan").start()


def launch(words: Sequence[str], count: int) -> int:
    """Run `freetf WORDS` in `count` processes of this machine and return the exit code of the run.

    Process 0 uses this process's streams. The stderr of another process is shown only if its own failure ended the run. The agent is the
    one that torchrun and `elastic_launch` run; neither of these says which processes it started, and both kill a process that takes more
    than 30 s to save after a signal. So this function passes the signals on, and the agent only watches.
    """
    logging.disable(logging.CRITICAL)  # the agent's; a failure is reported once, below
    os.environ.setdefault("OMP_NUM_THREADS", threads_each(count))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ[LAUNCHED] = str(os.getpid())
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    ranks = Ranks()
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="freetf-")))
        stack.enter_context(passing_on(ranks))
        stack.enter_context(signal_handler(ranks.ended, ["SIGCHLD"]))
        ranks.agent = _agent(freetf_command(words), count, logs, stack)
        if ranks.received:
            raise stop_error(ranks.received[0], "before its first step")
        failures = ranks.agent.run().failures
        return _outcome(ranks, {rank: failure.exitcode for rank, failure in failures.items()}, count, logs)


class Ranks(Children):
    """The processes that an elastic agent starts and watches. Signals are sent by a thread: they may come before the processes exist."""

    def __init__(self) -> None:
        super().__init__()
        self.agent: Any = None
        self.sent = 0  # how many of the received signals were passed on
        self.deadline = math.inf  # when all processes that are left are killed
        self.killed = False  # whether they were
        threading.Thread(target=self._serve, daemon=True, name="freetf-signals").start()

    def send(self, number: int) -> None:
        for worker in self._workers():
            with suppress(ProcessLookupError):
                if os.getsid(worker.id) == worker.id:  # it leads a session; once it has ended, another process may get its pid
                    os.kill(worker.id, number)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))
        if self.interrupted:
            self.deadline = time.monotonic() + KILL_AFTER

    def ended(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGCHLD: if a process lost another one that is still there, that one is stuck. Looks before the agent does."""
        for worker in self._workers():
            with suppress(ChildProcessError, AttributeError):  # the agent was faster; macOS has no waitid before Python 3.13
                end = os.waitid(os.P_PID, worker.id, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if end is not None and end.si_status == LOST:
                    self.deadline = min(self.deadline, time.monotonic() + ANSWER)

    def _workers(self) -> list[Any]:
        """All processes, once they have been started."""
        workers = self.agent.get_worker_group().workers if self.agent else []
        return workers if all(worker.id for worker in workers) else []

    def _serve(self) -> None:
        while True:
            time.sleep(INTERVAL)
            for received in self.received[self.sent :] if self._workers() else []:
                self.send(received)
                self.sent += 1
            if time.monotonic() > self.deadline:
                self.killed = True
                self.send(signal.SIGKILL)


def _agent(command: Sequence[str], count: int, logs: Path, stack: ExitStack) -> Any:
    """PyTorch's agent for `count` processes of a command on this machine, with a rendezvous of its own. A failure ends all processes."""
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    here = "127.0.0.1"
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""  # else the agent's handlers replace ours
    rendezvous = get_rendezvous_handler(RendezvousParameters("c10d", f"{here}:0", "freetf", 1, 1, local_addr=here))
    stack.callback(rendezvous.shutdown)
    program, *words = (word.replace("$", "$$") for word in command)  # the agent substitutes ${local_rank}
    spec = WorkerSpec("freetf", count, rendezvous, entrypoint=program, args=tuple(words), max_restarts=0, local_addr=here)
    return LocalElasticAgent(spec, DefaultLogsSpecs(str(logs), redirects=dict.fromkeys(range(1, count), Std.ALL)))


def _outcome(ranks: Ranks, codes: Mapping[int, int], count: int, logs: Path) -> int:
    """The run's exit code. A process's own failure takes precedence over processes that lost their peer or were killed.

    codes: exit codes of the processes that failed, in the order in which they ended; that of a signal is negative.
    """
    for rank, code in sorted(codes.items()):
        if code > 0 and code != LOST:
            if rank != 0:  # process 0 has written to stderr itself
                sys.stderr.write(next(logs.glob(f"*/*/{rank}/stderr.log")).read_text(errors="replace"))
            return code
    if ranks.interrupted:
        raise Interrupted("interrupted")
    for rank, code in codes.items():
        if code < 0 and -code not in ranks.received:
            what = "did not answer the others" if ranks.killed else f"was ended by {signal.Signals(-code).name}"
            raise FreetfError(f"process {rank} of {count} {what}", hint=RESUME)
    if codes and ranks.received:  # processes that a signal stops while they wait for each other end as LOST
        raise stop_error(ranks.received[0], "before its first step")
    if codes:
        raise FreetfError("the processes of the run lost each other", hint=RESUME)
    return ExitCode.OK
