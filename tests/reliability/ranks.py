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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from freetf_cli.config.files import load_recipe
from freetf_cli.config.recipe import Recipe
from freetf_cli.errors import FreetfError
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, open_checkpoint
from freetf_cli.training import world
from freetf_cli.training.loop import Loop
from freetf_cli.training.parallel import Replicated
from freetf_cli.training.prefetch import HostBatch
from freetf_cli.training.run import train
from freetf_cli.training.signals import stop_on_signals
from freetf_cli.training.step import TrainStep
from freetf_cli.training.turns import Turn
from freetf_cli.training.world import World, local_device, process_group
from tests.reliability.kills import forget_noise
from tests.reliability.world import CPU, STEPS, Tally, call_at, killed, same, tiny

DEVICE = torch.device(os.environ.get("RANKS_DEVICE", "cpu"))
LIMIT = 60.0  # seconds in which all processes have to stop once one is gone
SETTINGS = {"cpu": [], "cuda": ["train.deterministic=true", 'train.compile="off"', 'train.precision="fp32"']}
MODES = ("ddp", "fsdp")
MOST = 4 if DEVICE.type == "cpu" else 2  # processes
Event = Callable[[int], None]  # what happens in the process of this rank


def together(recipe: Recipe, run: Path, event: Event, size: int = 2, limit: float = LIMIT) -> tuple[list[int], float]:
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
        elif time.monotonic() > min(last, first + limit if first else last):
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
        with stop_on_signals() as stop, process_group(DEVICE, stop) as members:
            start = members.broadcast(open_checkpoint(run, lambda message: None) if members.is_main and checkpoint_folders(run) else None)
            train(recipe, run, device=local_device(DEVICE), resume=start, again=True, stop=stop, world=members)
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
    """Two processes train one run (ddp, fsdp); one is killed, asked to stop, or gets NaN: all stop within 60 s, and the run can go on:
    with the same processes it is the same; with one, with four, or in the other mode, it is the same up to rounding.
    """
    recipe = load_recipe(str(tiny(folder)), overrides=SETTINGS[DEVICE.type])
    tally, control, slowest = Tally(), Tally(), 0.0
    assert together(recipe, folder / "single", nothing, 1)[0] == [0]
    for mode in MODES:
        assert together(spread(recipe, mode), folder / mode, nothing)[0] == [0, 0], Path(f"{folder / mode}-0").read_text()
        tally.add(close(folder / mode, folder / "single"), f"two processes against one, {mode}")
    for number in range(count):
        run, mode, rank, stop = folder / f"run-{number}", MODES[number % 2], number // 2 % 2, Stop.numbered(number)
        codes, seconds = together(spread(recipe, mode), run, on(rank, stop.happen))
        good = codes[rank] == stop.code and codes[1 - rank] == (75 if stop.code == 75 else 1) and seconds < LIMIT
        slowest = max(slowest, seconds)
        other, size = [(mode, 2), (mode, 1), (MODES[1 - number % 2], 2), (mode, MOST)][number // 4 % 4]
        again = together(spread(recipe, other, size), run, nothing, size)[0]
        good &= set(again) == {0} and (same if (other, size) == (mode, 2) else close)(run, folder / mode)
        tally.add(good, f"{mode}, {stop} in process {rank}: {codes} after {seconds:.1f} s, then {again} of {size}, {other}")
        shutil.rmtree(run)
    for rank in range(2):
        tally.add(*planted(spread(recipe, MODES[rank]), folder / f"nan-{rank}", rank, 2))
    for number in range(2):
        codes, _ = together(spread(recipe, "ddp"), folder / f"control-{number}", lambda rank: forget_peers())
        control.add(codes == [0, 0] and same(folder / f"control-{number}", folder / "ddp"), f"{codes}")
    about = {"device": f"two of {DEVICE.type}", "slowest_stop_seconds": round(slowest, 1)}
    return {**tally.record(), **about, "control": {"what": "gradients are not summed", **control.record()}}


def spread(recipe: Recipe, mode: str, size: int = 2) -> Recipe:
    """A recipe for several processes."""
    update = {"processes": size, "mode": mode if size > 1 else None}
    return recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update=update)})


def forget_peers() -> None:
    """From here on DDP does not exchange gradients."""
    Replicated.last_part = lambda self, is_last: setattr(self.ddp, "require_backward_grad_sync", False)  # type: ignore[method-assign]


def stopped(rank: int, number: int, answer: float, mark: Path, each: int) -> None:
    """In each process: wait `answer` seconds for others. In one of them: stop at a call, for good, and leave a mark."""
    world.ANSWER = answer
    owner, name, after = PLACES[number % len(PLACES)]
    if each == rank:
        call_at(owner, name, 4, lambda: (mark.touch(), os.kill(os.getpid(), signal.SIGSTOP)), after=after)  # type: ignore[arg-type, return-value]


def hung(count: int, folder: Path) -> dict[str, Any]:
    """One of two processes is stopped (SIGSTOP) and never answers: the other one notices within 60 s, and the run can go on."""
    recipe, tally, answer = load_recipe(str(tiny(folder))), Tally(), world.ANSWER if count > 3 else 4.0
    slowest = 0.0
    for mode in MODES:
        assert together(spread(recipe, mode), folder / mode, nothing)[0] == [0, 0]
    for number in range(count):
        run, mode, rank = folder / f"run-{number}", MODES[number % 2], number // 2 % 2
        codes, _ = together(spread(recipe, mode), run, partial(stopped, rank, number, answer, run / "stopped"), limit=1.0)
        ends = [path.stat().st_mtime if path.exists() else math.inf for path in (run / "stopped", Path(f"{run}-{1 - rank}"))]
        slowest = max(slowest, ends[1] - ends[0])
        again = together(spread(recipe, mode), run, nothing)[0]
        good = codes[1 - rank] == 1 and codes[rank] == -signal.SIGKILL and ends[1] - ends[0] < LIMIT and again == [0, 0]
        what = f"{mode}, process {rank}: {codes}, noticed after {ends[1] - ends[0]:.1f} s, then {again}"
        tally.add(good and same(run, folder / mode), what)
        shutil.rmtree(run)
    return {**tally.record(), "slowest_seconds": round(slowest, 1)}


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
    (TrainStep, "_clip", False) if DEVICE.type == "cpu" else (Loop, "train_step", True),  # a graph does not call it
    (Loop, "save", False),
    (TrainStep, "__call__", True),
    (World, "sum", True),
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

    def call(self: TrainStep, number: int, batch: HostBatch, targets: int, rate: float, scalars: Sequence[float], *turn: Turn) -> None:
        plain(self, number, batch, targets, rate, [math.nan, *scalars[1:]] if step <= number + 1 < step + length else scalars, *turn)

    TrainStep.__call__ = call  # type: ignore[method-assign]


def close(run: Path, other: Path) -> bool:
    """Whether two runs differ only by the order of sums."""
    name = f"step-{STEPS:06d}"
    ours, theirs = (Checkpoint.open(each / "checkpoints" / name).model(CPU).state_dict() for each in (run, other))
    return all(torch.allclose(ours[key], theirs[key], rtol=1e-4, atol=1e-5) for key in theirs)
