"""What the trials share: a tiny run, forked processes, and events at chosen calls."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from freetf_cli import durable
from freetf_cli.cli.app import main as freetf
from freetf_cli.config.recipe import Recipe
from freetf_cli.errors import FreetfError
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, open_checkpoint
from freetf_cli.training.run import train

CPU = torch.device("cpu")
STEPS = 12
FEW = ["--sequences", "20", "--samples", "2"]  # short forms of commands that measure
TINY = """\
data = {{ {data} }}
model = {{ layers = 2, width = 16, heads = 2{model} }}
latent = {{ kappa = 0.5, bits = 4 }}
train = {{ steps = 12, batch = {batch}, lr = 1e-2, warmup = 2, log_every = 1, save_every = 3, keep_last = 3, grad_accum_steps = {parts} }}
eval = {{ every = 6, sequences = 10, samples = 1 }}
"""
LETTERS = 'task = "letters", params = { length = 12, target = 3, letters = 4 }'


class Tally:
    """The outcomes of some trials."""

    def __init__(self) -> None:
        self.trials = self.passed = 0
        self.failures: list[str] = []

    def add(self, good: bool, what: str) -> None:
        self.trials += 1
        self.passed += good
        if not good:
            self.failures.append(what)

    def record(self) -> dict[str, Any]:
        return {"trials": self.trials, "passed": self.passed, "failures": self.failures[:10]}


def forked(work: Callable[[], Any], output: Path | None = None) -> int:
    """Call `work` in a forked process and return its exit code; minus the number of a signal. output: file for stdout and stderr."""
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = 70
        try:
            if output is not None:
                handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
            code = work() or 0
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tiny(folder: Path, *, data: str = LETTERS, batch: int = 4, parts: int = 1, model: str = "") -> Path:
    """A recipe file."""
    path = folder / f"tiny-{batch}-{parts}-{hashlib.sha256(data.encode()).hexdigest()[:6]}.toml"
    path.write_text(TINY.format(data=data, batch=batch, parts=parts, model=model), encoding="utf-8")
    return path


def go(recipe: Recipe, run: Path) -> None:
    """Train to the end, from the newest intact checkpoint or from the beginning."""
    start = open_checkpoint(run, lambda message: None) if checkpoint_folders(run) else None
    train(recipe, run, device=CPU, resume=start, again=True)


def record(run: Path) -> dict[str, bytes]:
    """What must be equal byte for byte in equal runs."""
    last = run / "checkpoints" / f"step-{STEPS:06d}"
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    found = {name: (last / name).read_bytes() for name in names if (last / name).is_file()}
    return {**found, "metrics": (run / "metrics.jsonl").read_bytes(), **{p.name: p.read_bytes() for p in (run / "samples").iterdir()}}


def same(run: Path, whole: Path) -> bool:
    ours, theirs = record(run), record(whole)
    return ours == theirs and "model.safetensors" in theirs


def call_at(owner: Any, name: str, number: int, what: Callable[[], None], *, after: bool = False) -> None:
    """Patch owner.name so that its number-th call (from 1) also calls `what`, before or after it."""
    plain, made = getattr(owner, name), iter(range(1, 1 << 30))

    def replaced(*words: Any, **options: Any) -> Any:
        now = next(made) == number
        if now and not after:
            what()
        result = plain(*words, **options)
        if now and after:
            what()
        return result

    setattr(owner, name, replaced)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


SEAM = ("flush", "move")


def seam_calls(recipe: Recipe, run: Path) -> int:
    """How many flushes and moves a run makes."""

    def work() -> None:
        made = 0

        def count() -> None:
            nonlocal made
            made += 1

        at_every_seam_call(count)
        go(recipe, run)
        (run / "calls").write_text(str(made))

    assert forked(work) == 0
    return int((run / "calls").read_text())


def at_every_seam_call(what: Callable[[], None]) -> None:
    for name in SEAM:
        plain = getattr(durable, name)
        setattr(durable, name, lambda *words, plain=plain: (what(), plain(*words))[1])


def at_seam_call(number: int, what: Callable[[], None]) -> None:
    made = 0

    def maybe() -> None:
        nonlocal made
        made += 1
        if made == number:
            what()

    at_every_seam_call(maybe)


def intact(folder: Path) -> bool:
    try:
        Checkpoint.open(folder).model(CPU)
    except FreetfError:
        return False
    return True


def nothing() -> None:
    pass


def quiet(words: list[str]) -> tuple[int, str]:
    """A command in this process: exit code and stderr."""
    output = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(output):
        code = freetf(words)
    return code, output.getvalue()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << at % 8
    path.write_bytes(data)


def rehash(folder: Path) -> None:
    names = [path.name for path in folder.iterdir() if path.name != "MANIFEST.sha256"]
    lines = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / "MANIFEST.sha256").write_text("".join(lines))


def hashed(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    rehash(folder)
