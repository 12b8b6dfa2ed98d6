"""The processes that train one run: which of them this one is, and starting them on this machine with PyTorch's elastic agent.

torchrun starts them on any number of machines: `torchrun --nproc-per-node 2 -m freetf_cli train …`.
"""

from __future__ import annotations

import logging
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
from freetf_cli.training.pool import Children, freetf_command, passing_on, threads_each
from freetf_cli.training.signals import RESUME, signal_handler, stop_error

LAUNCHED = "FREETF_LAUNCHED"  # environment variable of the launched processes: the launcher's pid
LOST = 76  # exit code of a process that ended because another one died or did not answer; only the launcher sees it
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # the ones torchrun sets
GRACE = 8  # seconds that the other processes have to end once one has ended as LOST
KILL_AFTER = 2  # seconds that all processes have after a second SIGINT
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
    one of torchrun and `elastic_launch`. They would kill a process that takes more than 30 s to save after a signal; so signals are passed
    on here, for which the agent knows the processes, and it only watches.
    """
    logging.disable(logging.CRITICAL)  # the agent's; a failure is reported once, below
    defaults = {"OMP_NUM_THREADS": threads_each(count), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    fixed = {LAUNCHED: str(os.getpid()), "TORCHELASTIC_SIGNALS_TO_HANDLE": ""}  # else the agent's handlers replace those below
    if sys.platform == "linux":
        fixed["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ |= {**defaults, **os.environ, **fixed}
    ranks = Ranks()
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="freetf-")))
        stack.enter_context(passing_on(ranks))
        stack.enter_context(signal_handler(ranks.ended, ["SIGCHLD"]))
        stack.enter_context(signal_handler(ranks.kill, ["SIGALRM"]))
        stack.callback(signal.alarm, 0)
        agent = _agent(freetf_command(words), count, logs, stack)
        if ranks.received:
            raise stop_error(ranks.received[0], "before its first step")
        ranks.group = agent.get_worker_group()
        codes = {rank: failure.exitcode for rank, failure in agent.run().failures.items()}
        return _outcome(ranks, codes, count, logs)


class Ranks(Children):
    """The processes that an elastic agent starts and watches."""

    def __init__(self) -> None:
        super().__init__()
        self.group: Any = None  # the agent's
        self.killed = False  # whether some did not end in time

    def pids(self) -> list[int]:
        """The pids of the processes, once all have been started."""
        return [worker.id for worker in self.group.workers if worker.id] if self.group else []

    def send(self, number: int) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                if os.getsid(pid) == pid:  # it leads a session; once it has ended, another process may get its pid
                    os.kill(pid, number)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.pids():
            super().pass_on(number, frame)
            if self.interrupted:
                signal.alarm(KILL_AFTER)
        else:
            self.received.append(signal.Signals(number))
            if self.group:  # the agent is starting them; it ends those that it has started
                raise stop_error(self.received[0], "before its first step")

    def ended(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGCHLD: if a process has ended as LOST, the one that it lost may hang, and gets GRACE seconds."""
        with suppress(ChildProcessError, AttributeError):  # macOS has no waitid before Python 3.13
            end = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is not None and end.si_status == LOST:
                signal.alarm(GRACE)

    def kill(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGALRM."""
        self.killed = True
        self.send(signal.SIGKILL)


def _agent(command: Sequence[str], count: int, logs: Path, stack: ExitStack) -> Any:
    """PyTorch's agent for `count` processes of a command on this machine, with a rendezvous of its own."""
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    here = "127.0.0.1"
    rendezvous = get_rendezvous_handler(RendezvousParameters("c10d", f"{here}:0", "freetf", 1, 1, local_addr=here))
    stack.callback(rendezvous.shutdown)
    program, *words = (word.replace("$", "$$") for word in command)  # the agent substitutes ${local_rank}
    spec = WorkerSpec("freetf", count, rendezvous, entrypoint=program, args=tuple(words), max_restarts=0, local_addr=here)
    return LocalElasticAgent(spec, DefaultLogsSpecs(str(logs), redirects=dict.fromkeys(range(1, count), Std.ALL)))


def _outcome(ranks: Ranks, codes: Mapping[int, int], count: int, logs: Path) -> int:
    """The run's exit code. A process's own failure takes precedence over processes that lost their peer or were killed.

    codes: exit codes of the processes that failed, in the order in which they ended; negative if a signal ended it.
    """
    for rank, code in sorted(codes.items()):
        if code > 0 and code != LOST:
            if rank != 0:  # process 0 has written to stderr itself
                sys.stderr.write(next(logs.glob(f"*/*/{rank}/stderr.log")).read_text(errors="replace"))
            return code
    if ranks.interrupted:
        raise Interrupted("interrupted")
    rank, number = next(((rank, -code) for rank, code in codes.items() if code < 0), (0, 0))  # the agent ends later ones
    if number and number not in ranks.received:
        what = "did not answer the others" if ranks.killed else f"was ended by {signal.Signals(number).name}"
        raise FreetfError(f"process {rank} of {count} {what}", hint=RESUME)
    if codes and ranks.received:  # processes that a signal stops while they wait for each other end as LOST
        raise stop_error(ranks.received[0], "before its first step")
    if codes:
        raise FreetfError("the processes of the run lost each other", hint=RESUME)
    return ExitCode.OK
