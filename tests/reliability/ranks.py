"""Trials of two processes that train one run: one is killed, asked to stop, or gets numbers that are not finite.

The process that forks them never initialises CUDA, which does not survive a fork.
They run on a CPU over gloo; with RANKS_DEVICE=cuda on two GPUs over NCCL.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from freetf_cli.config.files import load_recipe
from freetf_cli.config.recipe import Recipe
from freetf_cli.errors import FreetfError
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, open_checkpoint
from freetf_cli.training.loop import Loop
from freetf_cli.training.prefetch import HostBatch
from freetf_cli.training.run import train
from freetf_cli.training.signals import stop_on_signals
from freetf_cli.training.step import TrainStep
from freetf_cli.training.world import World, local_device, process_group
from tests.reliability.kills import forget_noise
from tests.reliability.world import CPU, STEPS, Tally, call_at, killed, same, tiny

DEVICE = torch.device(os.environ.get("RANKS_DEVICE", "cpu"))
LIMIT = 60.0  # seconds in which all processes have to stop once one is gone
SETTINGS = {"cpu": [], "cuda": ["train.deterministic=true", 'train.compile="off"', 'train.precision="fp32"']}
Event = Callable[[int], None]  # what happens in the process of this rank


def together(recipe: Recipe, run: Path, event: Event, size: int = 2) -> tuple[list[int], float]:
    """Train a run in several processes, from its newest checkpoint on: their exit codes, and the seconds from the first end to the last."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(size)}
    address |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    children = {}
    for rank in range(size):
        if (child := os.fork()) == 0:
            os.environ |= {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with Path(f"{run}-{rank}").open("w") as output:
                os.dup2(output.fileno(), 2)
                os._exit(one(recipe, run, lambda rank=rank: event(rank)))
        children[child] = rank
    codes, first, last = [0] * size, 0.0, time.monotonic() + 4 * LIMIT
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            codes[children.pop(child)] = os.waitstatus_to_exitcode(status)
            first = first or time.monotonic()
        elif time.monotonic() > min(last, first + LIMIT if first else last):
            for stuck in children:
                os.kill(stuck, signal.SIGKILL)
            last = math.inf
        else:
            time.sleep(0.01)
    return codes, time.monotonic() - first


def one(recipe: Recipe, run: Path, event: Callable[[], None]) -> int:
    """One of the processes; its exit code."""
    try:
        event()
        with stop_on_signals() as stop, process_group(DEVICE, stop) as world:
            newest = open_checkpoint(run, lambda message: None).folder if world.is_main and checkpoint_folders(run) else ""
            folder = world.broadcast(str(newest))
            start = Checkpoint.open(Path(folder)) if folder else None
            train(recipe, run, device=local_device(DEVICE), resume=start, again=True, stop=stop, world=world)
    except FreetfError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def nothing(rank: int) -> None:
    pass


def on(number: int, what: Callable[[], Any]) -> Event:
    return lambda rank: what() if rank == number else None


def ranks(count: int, folder: Path) -> dict[str, Any]:
    """Two processes train one run; one is killed, asked to stop, or gets NaN: all stop within 60 s; resumed, the run is the same."""
    recipe = load_recipe(str(tiny(folder)), overrides=SETTINGS[DEVICE.type])
    two = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update={"processes": 2})})
    assert together(two, folder / "whole", nothing)[0] == [0, 0], Path(f"{folder / 'whole'}-0").read_text()
    assert together(recipe, folder / "single", nothing, 1)[0] == [0]
    tally, control, slowest = Tally(), Tally(), 0.0
    tally.add(close(folder / "whole", folder / "single"), "two processes against one")
    for number in range(count):
        run, rank, stop = folder / f"run-{number}", number % 2, Stop.numbered(number)
        codes, seconds = together(two, run, on(rank, stop.happen))
        good = codes[rank] == stop.code and codes[1 - rank] == (75 if stop.code == 75 else 1) and seconds < LIMIT
        slowest = max(slowest, seconds)
        alone = number % 4 == 3
        again = together(recipe if alone else two, run, nothing, 1 if alone else 2)[0]
        good &= set(again) == {0} and (close if alone else same)(run, folder / "whole")
        tally.add(good, f"{stop} in process {rank}: {codes} after {seconds:.1f} s, then {again}")
        shutil.rmtree(run)
    for rank in range(2):
        tally.add(*planted(two, folder / f"nan-{rank}", rank, 2))
    for number in range(2):
        codes, _ = together(two, folder / f"control-{number}", lambda rank: setattr(World, "all_reduce_sum", lambda self, tensors: None))
        control.add(codes == [0, 0] and same(folder / f"control-{number}", folder / "whole"), f"{codes}")
    about = {"device": f"two of {DEVICE.type}", "slowest_stop_seconds": round(slowest, 1)}
    return {**tally.record(), **about, "control": {"what": "gradients are not summed", **control.record()}}


def launched(count: int, folder: Path) -> dict[str, Any]:
    """freetf train with two processes; a signal comes or one process is killed at various times: one line, the reason's exit code."""
    recipe, tally = tiny(folder), Tally()
    settings = [word for setting in ("train.steps=15000", "eval.every=0", "parallel.processes=2") for word in ("--set", setting)]
    for number in range(count):
        run, wait = folder / f"run-{number}", 0.05 + 4.5 * number / count
        command = [sys.executable, "-m", "freetf_cli", "train", str(recipe), "-o", str(run), "-q", "--device", "cpu", *settings]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(wait)
        ranks = ranks_of(process.pid)
        kind, expected = [(signal.SIGTERM, 75), (signal.SIGKILL, 1), (signal.SIGINT, 130)][number % 3]
        if kind == signal.SIGKILL and not ranks:  # there is no process to kill yet
            kind, expected = signal.SIGTERM, 75
        os.kill(ranks[-1] if kind == signal.SIGKILL else process.pid, kind)
        began = time.monotonic()
        try:
            out, stderr = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            out, stderr = process.communicate()
        seconds = time.monotonic() - began
        gone = not any(Path(f"/proc/{rank}").exists() for rank in ranks)
        early = process.returncode == -kind and not ranks  # before the program could handle it
        good = early or (process.returncode == expected and out == "" and stderr.count("\n") == 1 and "freetf: error: " in stderr)
        what = f"{kind.name} after {wait:.2f} s: exit {process.returncode}, {seconds:.1f} s, {stderr[-300:]}"
        tally.add(good and gone and seconds < LIMIT, what)
    return tally.record()


def ranks_of(launcher: int) -> list[int]:
    """The processes that a launcher has started, by rank."""
    try:
        return sorted(int(word) for word in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split())
    except OSError:
        return []


def gpu(count: int, folder: Path) -> dict[str, Any]:
    """One GPU, deterministic, steps replayed as a CUDA graph: killed, asked to stop, or NaN; resumed, the run is the same."""
    recipe = load_recipe(str(tiny(folder)), overrides=SETTINGS["cuda"])
    assert together(recipe, folder / "whole", nothing, 1)[0] == [0], Path(f"{folder / 'whole'}-0").read_text()
    tally, control = Tally(), Tally()
    for name, number in [("run", number) for number in range(count)] + [("control", number) for number in (5, 8)]:
        run, stop = folder / f"{name}-{number}", Stop.numbered(number)
        codes, _ = together(recipe, run, on(0, stop.happen), 1)
        again, _ = together(recipe, run, nothing if name == "run" else lambda rank: forget_noise(), 1)
        good = codes == [stop.code] and again == [0] and same(run, folder / "whole")
        (tally if name == "run" else control).add(good, f"{stop}: {codes}, then {again}")
    tally.add(*planted(recipe, folder / "nan", 0, 1))
    about = {"device": torch.cuda.get_device_name(), "torch": str(torch.__version__), "date": datetime.now(UTC).date().isoformat()}
    return {**tally.record(), **about, "control": {"what": "the noise of Z starts over", **control.record()}}


class Stop(NamedTuple):
    """A kill or a signal at a call of a function, and the exit code that it must lead to."""

    what: Callable[[], None]
    code: int
    owner: Any
    name: str
    at: int
    after: bool

    @classmethod
    def numbered(cls, number: int) -> Stop:
        owner, name, after = PLACES[number % len(PLACES)]
        at = 1 + number % 3 if name == "save" else 2 + number % (STEPS - 2)
        return cls(*((terminated, 75) if number % 3 == 1 else (killed, -signal.SIGKILL)), owner, name, at, after)

    def happen(self) -> None:
        call_at(self.owner, self.name, self.at, self.what, after=self.after)


def terminated() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


PLACES: list[tuple[Any, str, bool]] = [
    (TrainStep, "__call__", False),
    (World, "all_reduce_sum", True) if DEVICE.type == "cpu" else (Loop, "train_step", True),  # a graph does not call it
    (Loop, "save", False),
    (TrainStep, "__call__", True),
    (World, "all_reduce_max", True),
]


def planted(recipe: Recipe, run: Path, rank: int, size: int) -> tuple[bool, str]:
    """NaN in one process: all skip that step; and the same when repeated from the last checkpoint."""
    step, outcomes = 5 + rank, []
    for _ in range(2):
        codes, _ = together(recipe, run, on(rank, lambda: without_kappa(step, 4)), size)
        outcomes.append((codes, (run / "faults.jsonl").read_text()))
    named = [json.loads(row)["step"] for row in outcomes[0][1].splitlines()]
    good = outcomes[0] == outcomes[1] and outcomes[0][0] == [1] * size and named == [step, step + 1, step + 2]
    finite = all(weight.isfinite().all() for each in checkpoint_folders(run) for weight in Checkpoint.open(each).model(CPU).parameters())
    return good and finite, f"NaN in process {rank}: {outcomes}"


def without_kappa(step: int, length: int) -> None:
    """From here on κ is NaN at some consecutive steps, and so are the penalty and its gradient."""
    plain = TrainStep.__call__

    def call(self: TrainStep, number: int, batch: HostBatch, rate: float, scalars: Sequence[float]) -> None:
        plain(self, number, batch, rate, [math.nan, *scalars[1:]] if step <= number + 1 < step + length else scalars)

    TrainStep.__call__ = call  # type: ignore[method-assign]


def close(run: Path, other: Path) -> bool:
    """Whether two runs differ only by the order of sums."""
    name = f"step-{STEPS:06d}"
    ours, theirs = (Checkpoint.open(each / "checkpoints" / name).model(CPU).state_dict() for each in (run, other))
    return all(torch.allclose(ours[key], theirs[key], rtol=1e-4, atol=1e-5) for key in theirs)
