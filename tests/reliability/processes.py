"""Trials of processes: signals, two starts of one run, numbers that are not finite, other environments."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from freetf_cli import durable
from freetf_cli.cli.app import main as freetf
from freetf_cli.config.files import load_recipe
from freetf_cli.model.decoder import Output
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders
from freetf_cli.training.loop import Loop
from freetf_cli.training.step import TrainStep
from tests.reliability.world import (
    CPU,
    Tally,
    call_at,
    forked,
    go,
    intact,
    killed,
    nothing,
    same,
    tiny,
)


def signals(count: int, folder: Path) -> dict[str, Any]:
    """SIGTERM, SIGUSR1, SIGHUP and SIGINT in a step, an evaluation, a save, while loading: exit code, valid checkpoint, exact resume."""
    from freetf_cli.data.batches import DataSource

    recipe = tiny(folder)
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    kinds = [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGUSR1, 75), (signal.SIGHUP, 75)]
    places: list[tuple[Any, str, int]] = [
        (TrainStep, "_update", 5),
        (DataSource, "held_out", 1),
        (durable, "move", 9),
        (Loop, "__init__", 1),
    ]
    tally = Tally()
    for number in range(count):
        (kind, expected), (owner, name, at) = kinds[number % 4], places[(number + number // 4) % 4]
        run, output = folder / f"run-{number}", folder / f"output-{number}"
        words = ["train", str(recipe), "-o", str(run), "-q", "--device", "cpu", "--resume", "auto"]

        def send(kind: signal.Signals = kind) -> None:
            os.kill(os.getpid(), kind)

        def work(owner: Any = owner, name: str = name, at: int = at, words: list[str] = words, send: Callable[[], None] = send) -> int:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make soak` ignores it, and so would the run
            call_at(owner, name, at, send)
            return freetf(words)

        code = forked(work, output)
        lines = output.read_text().splitlines()
        good = code == expected and f"stopped by {kind.name}" in lines[-1] and all(intact(each) for each in checkpoint_folders(run))
        good &= forked(lambda words=words: freetf(words), output) == 0 and same(run, folder / "whole")  # type: ignore[misc]
        tally.add(good, f"{kind.name} in {name}: exit {code}, {lines[-1:]}")
    words = ["train", str(recipe), "-o", str(folder / "twice"), "-q", "--device", "cpu"]

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    code = forked(lambda: (call_at(TrainStep, "_update", 5, twice), freetf(words))[1], folder / "output")
    tally.add(code == 130 and not (folder / "twice" / "checkpoints" / "step-000005").exists(), f"two SIGINT: exit {code}")
    return tally.record()


def starters(count: int, folder: Path) -> dict[str, Any]:
    """Two processes train into one folder: one does, the other names it; and a folder whose process was killed is free."""
    recipe = tiny(folder)
    tally, control = Tally(), Tally()

    def pair(run: Path, sabotage: Callable[[], None]) -> tuple[list[int], list[str]]:
        words = ["train", str(recipe), "-o", str(run), "-q", "--device", "cpu"]
        reader, writer = os.pipe()
        children = []
        for name in "ab":
            if (child := os.fork()) == 0:
                os.close(writer)
                os.read(reader, 1)  # both start when the pipe closes
                sabotage()
                call_at(TrainStep, "_update", 2, lambda: time.sleep(0.5))
                handle = os.open(run.with_name(f"{run.name}-{name}"), os.O_WRONLY | os.O_CREAT)
                os.dup2(handle, 2)
                os._exit(freetf(words))
            children.append(child)
        os.close(reader)
        os.close(writer)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        return codes, [run.with_name(f"{run.name}-{name}").read_text() for name in "ab"]

    for tallied, name, sabotage in [(tally, "run", nothing)] * count + [(control, "unlocked", unlocked)] * 2:
        codes, output = pair(folder / f"{name}-{tallied.trials}", sabotage)
        loser = codes.index(1) if 1 in codes else 0
        good = sorted(codes) == [0, 1] and output[loser].count("\n") == 1 and "is training this run" in output[loser]
        tallied.add(good, f"{codes} {output}")
    run = folder / "killed"
    words = ["train", str(recipe), "-o", str(run), "-q", "--device", "cpu", "--resume", "auto"]
    code = forked(lambda: (call_at(TrainStep, "_update", 8, killed), freetf(words))[1], folder / "output")
    tally.add(code == -signal.SIGKILL and forked(lambda: freetf(words), folder / "output") == 0, "after a kill")
    return {**tally.record(), "control": {"what": "without the lock", **control.record()}}


def unlocked() -> None:
    from freetf_cli.training import run

    @contextmanager
    def free(path: Path) -> Iterator[None]:
        yield

    run.lock_run = free


def plant(step: int, length: int, value: float, gradient: bool) -> None:
    """From here on the loss, or a gradient, of some consecutive steps is multiplied by a value that is not finite."""
    plain = TrainStep._update

    def update(self: TrainStep) -> None:
        forward = self.engine.forward

        def poisoned(*words: Any, **options: Any) -> Output:
            output = forward(*words, **options)
            return replace(output, losses=output.losses._replace(ce=output.losses.ce * value))

        now = step <= int(self.number) + 1 < step + length
        hook = next(self.model.parameters()).register_hook(lambda grad: grad * value) if now and gradient else None
        self.engine.forward = poisoned if now and not gradient else forward
        plain(self)
        self.engine.forward = forward
        if hook is not None:
            hook.remove()

    TrainStep._update = update  # type: ignore[method-assign]


def unchecked() -> None:
    TrainStep._check_finite = lambda self: None  # type: ignore[method-assign]


def faults(count: int, folder: Path) -> dict[str, Any]:
    """NaN and Inf in the loss or a gradient: no update, no poisoned checkpoint; the same when repeated from the last checkpoint."""
    recipe, output = tiny(folder), folder / "output"

    def trial(number: int, sabotage: Callable[[], None], name: str) -> tuple[bool, str]:
        run, step, length = folder / f"{name}-{number}", 4 + number % 5, 1 + number % 4
        words = ["train", str(recipe), "-o", str(run), "-q", "--device", "cpu", "--resume", "auto"]
        value, gradient = (math.nan, math.inf)[number % 2], bool(number // 2 % 2)
        work = lambda: (sabotage(), plant(step, length, value, gradient), freetf(words))[2]  # noqa: E731
        outcomes = []
        for _ in range(2):
            code = forked(work, output)
            outcomes.append((code, (run / "faults.jsonl").read_text() if (run / "faults.jsonl").exists() else ""))
        finite = all(
            weight.isfinite().all() for each in checkpoint_folders(run) for weight in Checkpoint.open(each).model(CPU).parameters()
        )
        named = [json.loads(row)["step"] for row in outcomes[0][1].splitlines()] == list(range(step, step + min(length, 3)))
        good = finite and named and outcomes[0] == outcomes[1] and outcomes[0][0] == int(length > 2)
        return good, f"steps {step} to {step + length - 1}: {outcomes} finite {finite} {output.read_text()[-200:]}"

    tally, control = Tally(), Tally()
    for number in range(count):
        tally.add(*trial(number, nothing, "run"))
    for number in range(2):
        control.add(*trial(number, unchecked, "unchecked"))
    return {**tally.record(), "control": {"what": "the update is not skipped", **control.record()}}


def processes(count: int, folder: Path) -> dict[str, Any]:
    """Processes with other hash seeds, time zones, locales and working folders: the same bytes."""
    recipe, tally = tiny(folder), Tally()
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    for number in range(count):
        place = folder / f"place-{number}"
        place.mkdir()
        changed = {
            "PYTHONHASHSEED": str(number + 1),
            "TZ": f"UTC{number - 6:+d}",
            "LC_ALL": ("C", "C.UTF-8")[number % 2],
            "COLUMNS": str(20 + number),
        }
        root = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, **changed, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "freetf_cli", "train", str(recipe), "-o", "run", "-q", "--device", "cpu"]
        code = subprocess.run(command, env=environment, cwd=place, capture_output=True).returncode
        tally.add(code == 0 and same(place / "run", folder / "whole"), f"process {number}: exit {code}")
    return tally.record()
