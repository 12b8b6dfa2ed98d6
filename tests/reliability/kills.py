"""Trials of a run that is killed or cannot write: what is saved, and whether the resumed run is the same."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from freetf_cli import durable
from freetf_cli.cli.app import main as freetf
from freetf_cli.config.files import load_recipe
from freetf_cli.config.recipe import Recipe
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, recover, save_checkpoint
from freetf_cli.training.loop import Loop
from freetf_cli.training.step import TrainStep
from tests.reliability.world import (
    CPU,
    LETTERS,
    STEPS,
    Tally,
    at_seam_call,
    call_at,
    forked,
    go,
    intact,
    killed,
    nothing,
    same,
    seam_calls,
    tiny,
)

FULL = re.compile(r"freetf: error: no space left on device, /\S+; free some space, or write elsewhere")  # what, where; hint
OVERWRITE_CALLS = 10  # flushes and moves of a save that replaces a checkpoint


def kills(count: int, folder: Path) -> dict[str, Any]:
    """kill -9 around a chosen step, resume: weights, moments, samples and metrics equal those of a run that was not killed."""
    recipe = load_recipe(str(tiny(folder)))
    assert forked(lambda: go(recipe, folder / "whole")) == 0
    places: list[tuple[Any, str, bool]] = [
        (TrainStep, "_update", False),
        (TrainStep, "_update", True),
        (Loop, "_report", True),
        (Loop, "_noise", False),
    ]

    def trial(number: int, sabotage: Callable[[], None], first: int) -> bool:
        run, (owner, name, after) = folder / f"run-{number}", places[number % len(places)]
        step = first + number % (STEPS - first)
        code = forked(lambda: (call_at(owner, name, step + 1, killed, after=after), go(recipe, run))[1])
        again = forked(lambda: (sabotage(), go(recipe, run))[1])
        good = code == -signal.SIGKILL and again == 0 and same(run, folder / "whole")
        shutil.rmtree(run)
        return good

    tally, control = Tally(), Tally()
    for number in range(count):
        tally.add(trial(number, lambda: None, 0), f"kill {number}")
    for number in range(max(2, count // 5)):
        control.add(trial(number, forget_noise, 5), f"kill {number}")
    return {**tally.record(), "control": {"what": "the noise of Z starts over", **control.record()}}


def forget_noise() -> None:
    """As if the state of a random generator were not restored: keys count from the start of the process."""
    plain, first = Loop._noise, []

    def noise(self: Loop, key: int, *words: Any, **options: Any) -> Any:
        if key >= 0:
            first.append(key)
            key -= first[0]
        return plain(self, key, *words, **options)

    Loop._noise = noise  # type: ignore[method-assign]


def saves(count: int, folder: Path) -> dict[str, Any]:
    """kill -9 at a flush or a rename of any file that is written durably, resume: the run is the same."""
    recipe = load_recipe(str(tiny(folder)))
    calls = seam_calls(recipe, folder / "whole")
    tally = Tally()
    for number in range(count):
        run, at = folder / f"run-{number}", 1 + number * calls // count
        code = forked(lambda at=at, run=run: (at_seam_call(at, killed), go(recipe, run))[1])
        again = forked(lambda run=run: go(recipe, run))
        clean = not [path for path in run.rglob(".*") if path.name != ".lock"]
        tally.add(code == -signal.SIGKILL and again == 0 and clean and same(run, folder / "whole"), f"call {at} of {calls}")
    order = [flushed_first(recipe, folder / f"order-{broken}", broken) for broken in (False, True)]
    tally.add(order[0], "a rename before its flush")
    control = Tally()
    control.add(order[1], "a rename before its flush")
    return {**tally.record(), "control": {"what": "files are not flushed", **control.record()}}


def flushed_first(recipe: Recipe, run: Path, broken: bool) -> bool:
    """Whether every file was flushed between its last write and the rename that gives it its name."""

    def work() -> int:
        flushed: dict[str, int] = {}
        faults = 0
        plain_flush, plain_move = durable.flush, durable.move

        def flush(path: Path) -> None:
            if not (broken and path.is_file()):
                flushed[str(path)] = path.stat().st_mtime_ns
                plain_flush(path)

        def move(source: Path, target: Path) -> None:
            nonlocal faults
            inside = [path for path in ([source] if source.is_file() else source.rglob("*")) if path.is_file()]
            faults += sum(flushed.get(str(path)) != path.stat().st_mtime_ns for path in inside)
            plain_move(source, target)

        durable.flush = flush  # type: ignore[assignment]
        durable.move = move  # type: ignore[assignment]
        go(recipe, run)
        return int(faults > 0)

    return forked(work) == 0


def overwrites(count: int, folder: Path) -> dict[str, Any]:
    """kill -9 at a flush or a rename of a save that replaces a checkpoint: the old one or the new one is there after the next start."""
    recipe, tally = load_recipe(str(tiny(folder))), Tally()
    assert forked(lambda: go(recipe, folder / "whole")) == 0
    last = checkpoint_folders(folder / "whole")[-1]
    for number in range(count):
        place = Path(shutil.copytree(last.parent, folder / f"checkpoints-{number}")) / last.name

        def save(place: Path = place) -> None:
            old = Checkpoint.open(place)
            save_checkpoint(
                place, dict(old.model(CPU).named_parameters()), old.optimizer(), {**old.state, "step": STEPS + 1}, old.tokenizer()
            )

        code = forked(lambda number=number, save=save: (at_seam_call(number + 1, killed), save())[1])
        recover(place.parent)
        clean = not list(place.parent.glob(".*"))
        step = Checkpoint.open(place).step
        ended = code == (-signal.SIGKILL if number < OVERWRITE_CALLS else 0)
        tally.add(ended and clean and step == STEPS + (number >= OVERWRITE_CALLS - 1), f"call {number + 1}: exit {code}, step {step}")
    return tally.record()


def disk(count: int, folder: Path) -> dict[str, Any]:
    """No space at a flush or a rename: one line, exit 1, earlier checkpoints valid; the next start leaves no temporary files."""
    recipe = tiny(folder)
    calls = seam_calls(load_recipe(str(recipe)), folder / "whole")
    tally = Tally()

    def full() -> None:
        raise OSError(28, "No space left on device")

    for number in range(count):
        run, at, output = folder / f"run-{number}", 1 + number * calls // count, folder / f"output-{number}"
        words = ["train", str(recipe), "-o", str(run), "-q", "--device", "cpu", "--resume", "auto"]
        code = forked(lambda at=at, words=words: (at_seam_call(at, full), freetf(words))[1], output)
        lines = output.read_text().splitlines()
        good = code == 1 and len(lines) == 1 and FULL.fullmatch(lines[0]) is not None
        good &= all(intact(folder) for folder in checkpoint_folders(run))
        good &= forked(lambda words=words: freetf(words), output) == 0
        good &= not [path for path in run.rglob(".*") if path.name != ".lock"] and same(run, folder / "whole")
        tally.add(good, f"call {at} of {calls}: exit {code}, {lines[-1:]}")
    return tally.record()


def streams(count: int, folder: Path) -> dict[str, Any]:
    """Resume before, at and after the end of an epoch, and with gradient accumulation: every step has the same rows."""
    source = folder / "source.txt"
    source.write_text("%".join(["yes it is\n", "no\n", "été\n", "ok then\n"] * 40), encoding="utf-8")
    words = ["prepare", str(source), "-o", str(folder / "text"), "--document-separator", "%", "-q"]
    assert forked(lambda: freetf(words)) == 0
    text = f"dir = '{folder / 'text'}'"
    kinds = [(LETTERS, "", 4), (text, ", context = 24", 10)]
    tally, control = Tally(), Tally()
    for number in range(count):
        data, model, batch = kinds[number % 2]
        recipe = load_recipe(str(tiny(folder, data=data, model=model, batch=batch, parts=1 + number // 2 % 2)))
        stop = 1 + number // 4 % (STEPS - 1)
        rows = [rows_seen(recipe, folder / f"run-{number}-{at}", at, nothing) for at in (0, stop)]
        tally.add(rows[0] == rows[1] and len(rows[0]) == STEPS, f"{number}: stopped after {stop}")
    for number in range(2):
        recipe = load_recipe(str(tiny(folder)))
        rows = [rows_seen(recipe, folder / f"forgetful-{number}-{at}", at, forget_position) for at in (0, 4 + number)]
        control.add(rows[0] == rows[1], f"stopped after {4 + number}")
    return {**tally.record(), "control": {"what": "the position in the data starts over", **control.record()}}


def forget_position() -> None:
    plain, first = Loop._batch, []

    def batch(self: Loop, step: int) -> Any:
        first.append(step)
        return plain(self, step - first[0])

    Loop._batch = batch  # type: ignore[method-assign]


def rows_seen(recipe: Recipe, run: Path, stop: int, sabotage: Callable[[], None]) -> dict[int, str]:
    """Hashes of the inputs of every step, of a run that is killed after `stop` steps (0: never) and resumed."""
    seen = run.with_name(run.name + ".seen")
    seen.write_text("")

    def work(kill: bool) -> None:
        plain = TrainStep.__call__

        def noted(self: TrainStep, number: int, batch: Any, *words: Any) -> None:
            with seen.open("a") as file:
                file.write(f"{number} {hashlib.sha256(batch.inputs.numpy().tobytes()).hexdigest()}\n")
            plain(self, number, batch, *words)

        TrainStep.__call__ = noted  # type: ignore[method-assign]
        if kill:
            call_at(Loop, "train_step", stop, killed, after=True)
        else:
            sabotage()
        go(recipe, run)

    if stop:
        assert forked(lambda: work(True)) == -signal.SIGKILL
    assert forked(lambda: work(False)) == 0
    return {int(line.split()[0]): line.split()[1] for line in seen.read_text().splitlines()}


def system_calls(count: int, folder: Path) -> dict[str, Any]:
    """kill -9 by strace at a chosen fsync, rename or write of a whole training process, resume: the run is the same."""
    recipe, tally = tiny(folder), Tally()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}

    def start(run: str, *before: str) -> int:
        words = ["train", str(recipe), "-o", run, "-q", "--device", "cpu", "--resume", "auto"]
        command = [*before, sys.executable, "-m", "freetf_cli", *words]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True).returncode

    def traced(output: str, *events: str) -> list[str]:
        return ["strace", "-f", "-qq", "-o", output, *(word for event in events for word in ("-e", event))]

    calls = ("fsync", "rename", "write")
    assert start("whole", *traced("trace", f"trace={','.join(calls)}")) == 0
    made = {call: sum(f" {call}(" in line for line in (folder / "trace").read_text(errors="replace").splitlines()) for call in calls}
    for number in range(count):
        call, run = calls[number % 3], f"run-{number}"
        at = 1 + (number // 3 * 7919 + 11) % made[call]
        code = start(run, *traced("/dev/null", f"trace={call}", f"inject={call}:signal=SIGKILL:when={at}"))
        again, died = start(run), code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        tally.add(died and again == 0 and same(folder / run, folder / "whole"), f"{call} {at} of {made[call]}: exit {code}, {again}")
    return {**tally.record(), "calls": made}


def small_disk(count: int, folder: Path) -> dict[str, Any]:
    """A file system of a few hundred kilobytes fills up: one line, exit 1, checkpoints valid; with more room the run resumes."""
    recipe, tally = tiny(folder), Tally()
    more = ["--set", "train.save_every=1", "--set", "train.keep_last=12"]
    words = ["train", str(recipe), "-q", "--device", "cpu", "--resume", "auto", *more]
    assert forked(lambda: freetf([*words, "-o", str(folder / "whole")])) == 0
    for number in range(count):
        place, output = folder / f"disk-{number}", folder / "output"
        place.mkdir()
        size = 256 + 61 * number
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)], check=True)
        try:
            run = place / "run"
            code = forked(lambda run=run: freetf([*words, "-o", str(run)]), output)  # type: ignore[misc]
            text = output.read_text()
            good = code == 1 and FULL.fullmatch(text.strip("\n")) is not None and all(intact(each) for each in checkpoint_folders(run))
            subprocess.run(["mount", "-o", "remount,size=16m", str(place)], check=True)
            good &= forked(lambda run=run: freetf([*words, "-o", str(run)]), output) == 0 and same(run, folder / "whole")  # type: ignore[misc]
            tally.add(good, f"{size} KB: exit {code}, {text[-300:]} {output.read_text()[-200:]}")
        finally:
            subprocess.run(["umount", str(place)], check=True)
    return tally.record()
