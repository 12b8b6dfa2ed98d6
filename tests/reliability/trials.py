"""The trials of docs/reliability.md: `python -m tests.reliability.trials NAME COUNT FOLDER` makes COUNT of them and prints one JSON object.

    {"trials": 50, "passed": 50, "failures": [], "control": {"what": "…", "trials": 10, "passed": 0}}

A control makes the same trials with the thing under test taken away: it must not pass, or the trials show nothing. Each trial runs in a
forked process, so that it can be killed at a chosen call and none of its clean-up happens; for that this module is its own program, with
one thread. Continuous integration runs it with small counts (test_trials.py), `make soak` with those of the page.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch

from freetf_cli import checkpoint as checkpoint_module
from freetf_cli import durable
from freetf_cli.checkpoint import Checkpoint, checkpoint_folders, open_checkpoint
from freetf_cli.cli.app import main as freetf
from freetf_cli.errors import FreetfError
from freetf_cli.recipe import Recipe
from freetf_cli.recipe_file import load_recipe
from freetf_cli.training.loop import Loop, train
from freetf_cli.training.step import TrainStep

CPU = torch.device("cpu")
STEPS, SAVED = 12, 3
TINY = """\
data = {{ {data} }}
model = {{ layers = 2, width = 16, heads = 2{model} }}
latent = {{ kappa = 0.5, bits = 4 }}
train = {{ steps = 12, batch = {batch}, lr = 1e-2, warmup = 2, log_every = 1, save_every = 3, keep_last = 3, accumulate = {parts} }}
eval = {{ every = 6, sequences = 10, samples = 1 }}
"""
LETTERS = 'task = "letters", params = { length = 12, target = 3, letters = 4 }'


class Tally:
    """What came of some trials."""

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
    """The exit code of `work` in a process of its own; of a signal, minus its number. output: where stdout and stderr go."""
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
    """Train to the end: from the newest checkpoint that is intact, or from the beginning."""
    start = open_checkpoint(run, lambda message: None) if checkpoint_folders(run) else None
    train(recipe, run, device=CPU, resume=start, again=True)


def record(run: Path) -> dict[str, bytes]:
    """What must be the same byte for byte when a run is."""
    last = run / "checkpoints" / f"step-{STEPS:06d}"
    names = ("model.safetensors", "optimizer.safetensors", "state.json")
    found = {name: (last / name).read_bytes() for name in names if (last / name).is_file()}
    return {**found, "metrics": (run / "metrics.jsonl").read_bytes(), **{p.name: p.read_bytes() for p in (run / "samples").iterdir()}}


def same(run: Path, whole: Path) -> bool:
    ours, theirs = record(run), record(whole)
    return ours == theirs and "model.safetensors" in theirs


def call_at(owner: Any, name: str, number: int, what: Callable[[], None], *, after: bool = False) -> None:
    """From here on the number-th call (from 1) of owner.name also does `what`, before or after it."""
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


SEAM = ("_flush", "move")


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


# --- T1 ------------------------------------------------------------------------------------------------------------------------------


def kills(count: int, folder: Path) -> dict[str, Any]:
    """kill -9 around a chosen step, resume: weights, moments, samples and metrics as of a run that was not killed."""
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
    return {**tally.record(), "control": {"what": "the noise of Z begins anew", **control.record()}}


def forget_noise() -> None:
    """As if a generator's state were not restored: keys count from the start of the process."""
    plain, first = Loop._noise, []

    def noise(self: Loop, key: int, *words: Any, **options: Any) -> Any:
        if key >= 0:
            first.append(key)
            key -= first[0]
        return plain(self, key, *words, **options)

    Loop._noise = noise  # type: ignore[method-assign]


# --- T2, T7 --------------------------------------------------------------------------------------------------------------------------


def saves(count: int, folder: Path) -> dict[str, Any]:
    """kill -9 at a flush or a rename, of checkpoints and of all else that is made durable, resume: as a run that was not killed."""
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
    """Whether every file was flushed, after it was last written, before the rename that gives it its name."""

    def work() -> int:
        flushed: dict[str, int] = {}
        faults = 0
        plain_flush, plain_move = durable._flush, durable.move

        def flush(path: Path) -> None:
            flushed[str(path)] = path.stat().st_mtime_ns
            if not broken:
                plain_flush(path)

        def move(source: Path, target: Path) -> None:
            nonlocal faults
            inside = [path for path in ([source] if source.is_file() else source.rglob("*")) if path.is_file()]
            faults += sum(flushed.get(str(path)) != path.stat().st_mtime_ns for path in inside)
            plain_move(source, target)

        durable._flush = flush  # type: ignore[assignment]
        durable.move = move  # type: ignore[assignment]
        if broken:
            durable.flush_file = lambda path: None
        go(recipe, run)
        return int(faults > 0)

    return forked(work) == 0


def disk(count: int, folder: Path) -> dict[str, Any]:
    """No space at a flush or a rename: one line, exit 1, the checkpoints before it valid; after the next start nothing is left over."""
    recipe = tiny(folder)
    calls = seam_calls(load_recipe(str(recipe)), folder / "whole")
    tally = Tally()

    def full() -> None:
        raise OSError(28, "No space left on device")

    for number in range(count):
        run, at, said = folder / f"run-{number}", 1 + number * calls // count, folder / f"said-{number}"
        words = ["train", str(recipe), "-o", str(run), "-q", "--device", "cpu", "--resume", "auto"]
        code = forked(lambda at=at, words=words: (at_seam_call(at, full), freetf(words))[1], said)
        lines = said.read_text().splitlines()
        good = code == 1 and len(lines) == 1 and "o space left on device" in lines[0]
        good &= all(_intact(folder) for folder in checkpoint_folders(run))
        good &= forked(lambda words=words: freetf(words), said) == 0
        good &= not [path for path in run.rglob(".*") if path.name != ".lock"] and same(run, folder / "whole")
        tally.add(good, f"call {at} of {calls}: exit {code}, {lines[-1:]}")
    return tally.record()


def _intact(folder: Path) -> bool:
    try:
        Checkpoint.open(folder).model(CPU)
    except FreetfError:
        return False
    return True


# --- T3 ------------------------------------------------------------------------------------------------------------------------------


def streams(count: int, folder: Path) -> dict[str, Any]:
    """Resume before, at and after the end of an epoch, and with a batch in parts: the rows of every step as without a stop."""
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
        for tallied, sabotage in ((tally, _nothing), (control, forget_position)):
            if tallied is control and (number >= 4 or stop < SAVED):
                continue
            run, whole = folder / f"run-{number}", folder / f"whole-{number}"
            rows = [rows_seen(recipe, path, at, sabotage) for path, at in ((whole, 0), (run, stop))]
            tallied.add(rows[0] == rows[1] and len(rows[0]) == STEPS, f"{number}: stopped after {stop}")
            shutil.rmtree(run)
            shutil.rmtree(whole)
    for number in range(2):
        recipe = load_recipe(str(tiny(folder)))
        rows = [rows_seen(recipe, folder / f"forgetful-{number}-{at}", at, forget_position) for at in (0, 4 + number)]
        control.add(rows[0] == rows[1], f"stopped after {4 + number}")
    return {**tally.record(), "control": {"what": "the position in the data begins anew", **control.record()}}


def _nothing() -> None:
    pass


def forget_position() -> None:
    plain, first = Loop._batch, []

    def batch(self: Loop, step: int) -> Any:
        first.append(step)
        return plain(self, step - first[0])

    Loop._batch = batch  # type: ignore[method-assign]


def rows_seen(recipe: Recipe, run: Path, stop: int, sabotage: Callable[[], None]) -> dict[int, str]:
    """Hashes of every step's inputs, of a run that is killed after `stop` steps (0: not) and resumed."""
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


# --- T8, T9 --------------------------------------------------------------------------------------------------------------------------


def signals(count: int, folder: Path) -> dict[str, Any]:
    """SIGTERM, SIGUSR1 and SIGINT in a step, an evaluation, a save, and while all is loaded: exit code, what was saved, the rest."""
    from freetf_cli.data.batches import DataSource

    recipe = tiny(folder)
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    kinds = [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGUSR1, 75)]
    places: list[tuple[Any, str, int]] = [
        (TrainStep, "_update", 5),
        (DataSource, "held_out", 1),
        (durable, "move", 9),
        (Loop, "__init__", 1),
    ]
    tally = Tally()
    for number in range(count):
        (kind, wanted), (owner, name, at) = kinds[number % 3], places[number // 3 % 4]
        run, said = folder / f"run-{number}", folder / f"said-{number}"
        words = ["train", str(recipe), "-o", str(run), "-q", "--device", "cpu", "--resume", "auto"]

        def send(kind: signal.Signals = kind) -> None:
            os.kill(os.getpid(), kind)

        def work(owner: Any = owner, name: str = name, at: int = at, words: list[str] = words, send: Callable[[], None] = send) -> int:
            call_at(owner, name, at, send)
            return freetf(words)

        code = forked(work, said)
        lines = said.read_text().splitlines()
        good = code == wanted and f"stopped by {kind.name}" in lines[-1] and all(_intact(each) for each in checkpoint_folders(run))
        good &= forked(lambda words=words: freetf(words), said) == 0 and same(run, folder / "whole")  # type: ignore[misc]
        tally.add(good, f"{kind.name} in {name}: exit {code}, {lines[-1:]}")
    words = ["train", str(recipe), "-o", str(folder / "twice"), "-q", "--device", "cpu"]

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    code = forked(lambda: (call_at(TrainStep, "_update", 5, twice), freetf(words))[1], folder / "said")
    tally.add(code == 130 and not (folder / "twice" / "checkpoints" / "step-000005").exists(), f"two SIGINT: exit {code}")
    return tally.record()


def starters(count: int, folder: Path) -> dict[str, Any]:
    """Two processes that train into one folder: one does, the other says who; and a folder whose holder was killed is free."""
    recipe = tiny(folder)
    tally, control = Tally(), Tally()

    def pair(run: Path, sabotage: Callable[[], None]) -> tuple[list[int], list[str]]:
        words = ["train", str(recipe), "-o", str(run), "-q", "--device", "cpu"]
        reader, writer = os.pipe()
        children = []
        for name in "ab":
            if (child := os.fork()) == 0:
                os.close(writer)
                os.read(reader, 1)  # both begin when the pipe closes
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

    for tallied, name, sabotage in [(tally, "run", _nothing)] * count + [(control, "unlocked", unlocked)] * 2:
        codes, said = pair(folder / f"{name}-{tallied.trials}", sabotage)
        loser = codes.index(1) if 1 in codes else 0
        good = sorted(codes) == [0, 1] and said[loser].count("\n") == 1 and "is training this run" in said[loser]
        tallied.add(good, f"{codes} {said}")
    run = folder / "killed"
    words = ["train", str(recipe), "-o", str(run), "-q", "--device", "cpu", "--resume", "auto"]
    code = forked(lambda: (call_at(TrainStep, "_update", 8, killed), freetf(words))[1], folder / "said")
    tally.add(code == -signal.SIGKILL and forked(lambda: freetf(words), folder / "said") == 0, "after a kill")
    return {**tally.record(), "control": {"what": "without the lock", **control.record()}}


def unlocked() -> None:
    from freetf_cli.training import loop

    @contextmanager
    def free(path: Path) -> Iterator[None]:
        yield

    loop.hold = free


# --- T4, T5 --------------------------------------------------------------------------------------------------------------------------


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << at % 8
    path.write_bytes(data)


def _rehash(folder: Path) -> None:
    names = [path.name for path in folder.iterdir() if path.name != "MANIFEST.sha256"]
    lines = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / "MANIFEST.sha256").write_text("".join(lines))


def _hashed(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    _rehash(folder)


FILES = ("model.safetensors", "state.json", "tokenizer.json", "optimizer.safetensors")
DAMAGE: list[tuple[str, Callable[[Path, int], None]]] = [
    ("cut short", lambda f, n: os.truncate(f / FILES[n % 4], (f / FILES[n % 4]).stat().st_size * (n % 7) // 8)),
    ("a bit turned over", lambda f, n: _flip(f / FILES[n % 4], n * 7919)),
    ("a file missing", lambda f, n: (f / FILES[n % 4]).unlink()),
    ("a longer file", lambda f, n: (f / FILES[n % 4]).open("ab").write(b"\0" * (n + 1)) and None),
    ("a manifest of noise", lambda f, n: (f / "MANIFEST.sha256").write_bytes(hashlib.sha512(str(n).encode()).digest())),
    ("a file of another", lambda f, n: shutil.copy(f / FILES[(n + 1) % 4], f / FILES[n % 4]) and None),
    ("right hashes of wrong weights", lambda f, n: _hashed(f, "model.safetensors", hostile_weights(n))),
    ("right hashes of a wrong state", lambda f, n: _hashed(f, "state.json", hostile_state((f / "state.json").read_text(), n))),
]


def hostile_weights(number: int) -> bytes:
    """A safetensors file that is none, or not this model's."""
    headers: list[Any] = [
        {"embedding.weight": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}},
        {"embedding.weight": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"embedding.weight": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {},
        [],
    ]
    header = json.dumps(headers[number % len(headers)]).encode()
    return len(header).to_bytes(8, "little") + header + b"\0" * 8


def hostile_state(text: str, number: int) -> bytes:
    state = json.loads(text)
    changed: list[Any] = [
        {**state, "format_version": 99},
        {**state, "step": -1},
        {**state, "step": "12"},
        {**state, "recipe": {**state["recipe"], "model": {**state["recipe"]["model"], "layers": 10**9}}},
        {**state, "recipe": None},
        {key: value for key, value in state.items() if key != "data"},
        [state],
    ]
    return json.dumps(changed[number % len(changed)]).encode() if number % 8 else b"[" * 100_000


def quiet(words: list[str]) -> tuple[int, str]:
    """A command in this process: exit code and stderr."""
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        code = freetf(words)
    return code, said.getvalue()


def damaged(count: int, folder: Path) -> dict[str, Any]:
    """Damaged checkpoints named to every command that reads one: exit 2, one line that names it; the intact one passes."""
    recipe = tiny(folder)
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    tally = Tally()

    def commands(bad: Path, number: int) -> list[list[str]]:
        out = ["-o", str(folder / f"out-{number}"), "-q", "--device", "cpu"]
        good = str(folder / "whole")
        return [
            ["sample", str(bad), "--prompt", "A>", "--device", "cpu"],
            ["compare", good, str(bad), "--device", "cpu"],
            ["evaluate", str(bad), "--task", "likelihood", "--device", "cpu"],
            ["probe-latent", str(bad), "-g", "20", "-n", "2", "--device", "cpu"],
            ["train", str(recipe), "--init-from", str(bad), *out],
            ["train", str(recipe), "-o", str(bad.parents[1]), "--resume", str(bad), "-q", "--device", "cpu"],
        ]

    for number in range(count):
        run, (kind, damage) = folder / f"run-{number}", DAMAGE[number % len(DAMAGE)]
        shutil.copytree(folder / "whole", run)
        bad = run / "checkpoints" / f"step-{STEPS:06d}"
        damage(bad, number // len(DAMAGE))
        all_of_them = commands(bad, number)
        for words in all_of_them if count <= 16 else [all_of_them[number % 6], all_of_them[(number + 1) % 6]]:
            if "optimizer" in FILES[number // len(DAMAGE) % 4] and kind == "a file missing" and words[0] != "train":
                continue  # without moments a checkpoint is damaged for --resume alone, by its manifest for all
            code, said = quiet(words)
            good = code == 2 and said.count("\n") == 1 and said.startswith("freetf: error: ") and str(bad) in said
            tally.add(good, f"{kind} {number}: {words[0]} {words[3:4]} exit {code}: {said[-300:]}")
        shutil.rmtree(run)
    control = Tally()
    shutil.copytree(folder / "whole", folder / "intact")
    for words in commands(folder / "intact" / "checkpoints" / f"step-{STEPS:06d}", -1):
        code, said = quiet(words)
        control.add(code != 0, f"{words[0]}: {said[-300:]}")
    return {**tally.record(), "control": {"what": "an intact checkpoint", **control.record()}}


def fallback(count: int, folder: Path) -> dict[str, Any]:
    """The newest checkpoint of a run is damaged: the one before it, with a warning; all are: refused, and nothing begun anew."""
    recipe = tiny(folder)
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    tally = Tally()
    for number in range(count):
        run, (kind, damage) = folder / f"run-{number}", DAMAGE[number % 6]
        shutil.copytree(folder / "whole", run)
        bad = checkpoint_folders(run)[-1]
        damage(bad, number)
        code, said = quiet(["train", str(recipe), "-o", str(run), "--resume", "auto", "-q", "--device", "cpu"])
        tally.add(
            code == 0 and str(bad) in said and "warning" in said and same(run, folder / "whole"), f"{kind}: exit {code} {said[-300:]}"
        )
        for each in checkpoint_folders(run):
            _flip(each / "model.safetensors", number * 31)
        before = (run / "metrics.jsonl").read_bytes()
        for words in (
            ["train", str(recipe), "-o", str(run), "--resume", "auto", "-q", "--device", "cpu"],
            ["sample", str(run), "--prompt", "A>"],
        ):
            code, said = quiet(words)
            good = code == 2 and "every checkpoint of the run is damaged" in said and (run / "metrics.jsonl").read_bytes() == before
            tally.add(good, f"all damaged, {words[0]}: exit {code} {said[-300:]}")
        shutil.rmtree(run)
    control = Tally()
    plain = checkpoint_module._verify
    checkpoint_module._verify = lambda path: None
    for number in range(2):
        run = folder / f"unverified-{number}"
        shutil.copytree(folder / "whole", run)
        _flip(checkpoint_folders(run)[-1] / "model.safetensors", -1 - number)
        code, said = quiet(["sample", str(run), "--prompt", "A>"])
        control.add("warning" in said or code != 0, said)
    checkpoint_module._verify = plain
    return {**tally.record(), "control": {"what": "hashes are not compared", **control.record()}}


# --- T6 ------------------------------------------------------------------------------------------------------------------------------


class Payload:
    """What a pickle would run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


class Hostile:
    """Files that were made to do harm, each with the command that is given it."""

    def __init__(self, folder: Path, recipe: Path) -> None:
        self.folder, self.recipe, self.whole = folder, recipe, folder / "whole"
        self.marker, self.secret, self.cases = folder / "ran", folder / "secret.txt", list[list[str]]()
        self.secret.write_text("outside")
        self.attack = pickle.dumps(Payload(self.marker))
        self.checkpoints()
        self.recipes()
        self.codes()

    def checkpoint(self, change: Callable[[Path], Any]) -> None:
        run = self.folder / f"bad-{len(self.cases)}"
        shutil.copytree(self.whole, run)
        bad = run / "checkpoints" / f"step-{STEPS:06d}"
        change(bad)
        self.cases.append(["train", str(self.recipe), "-o", str(run), "--resume", str(bad), "-q", "--device", "cpu"])
        self.cases.append(["sample", str(bad), "--prompt", "A>", "--device", "cpu"])

    def file(self, content: bytes | str, ending: str) -> str:
        path = self.folder / f"bad-{len(self.cases)}.{ending}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def checkpoints(self) -> None:
        for name in ("model.safetensors", "state.json", "tokenizer.json"):
            self.checkpoint(partial(_hashed, name=name, content=self.attack))
            self.checkpoint(partial(_linked, name=name, to=self.secret))
        self.checkpoint(partial(_hashed, name="optimizer.safetensors", content=self.attack))
        self.cases.pop()  # sample does not read it
        for name in ("../secret.txt", str(self.secret), "model.safetensors/../../secret.txt"):
            self.checkpoint(partial(_listed, name=name, of=self.secret))
        for number in range(6):
            self.checkpoint(partial(_hashed, name="model.safetensors", content=hostile_weights(number)))
        for size in (50 << 20, (1 << 63) - 1):
            self.checkpoint(partial(_hashed, name="model.safetensors", content=size.to_bytes(8, "little") + b"{}"))
        state = (self.whole / "checkpoints" / f"step-{STEPS:06d}" / "state.json").read_text()
        for number in range(9):
            self.checkpoint(partial(_hashed, name="state.json", content=hostile_state(state, number)))
        self.checkpoint(partial(_hashed, name="state.json", content=b" " * (11 << 20)))
        self.checkpoint(partial(_hashed, name="tokenizer.json", content=b"[" * 200_000))

    def recipes(self) -> None:
        text = self.recipe.read_text()
        deep, wide = text.replace("layers = 2", "layers = 1000000"), text.replace("width = 16", "width = 1048576")
        for content in (deep, wide, "a = " + "[" * 50_000, text.replace("lr = 1e-2", "lr = nan"), text + text, self.attack, b"\0" * 100):
            path = self.file(content, "toml")
            self.cases.append(["train", path, "-o", str(self.folder / f"out-{len(self.cases)}"), "-q", "--device", "cpu"])

    def codes(self) -> None:
        for content in ('{"z": ' + "[" * 100_000, '{"z": [NaN, 1e999]}\n', '{"z": [1], "z": []}\n', b"\xff\xfe\x00{}" * 100, self.attack):
            path = self.file(content, "jsonl")
            self.cases.append(["sample", str(self.whole), "--prompt", "A>", "--z", path, "--device", "cpu"])


def _linked(folder: Path, name: str, to: Path) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(to)


def _listed(folder: Path, name: str, of: Path) -> None:
    with (folder / "MANIFEST.sha256").open("a") as file:
        file.write(f"{hashlib.sha256(of.read_bytes()).hexdigest()}  {name}\n")


def hostile(count: int, folder: Path) -> dict[str, Any]:
    """Files that were made to do harm: nothing runs, nothing outside is opened, less than 500 MB, within 5 s, one line."""
    recipe = tiny(folder)
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    given, tally, said, opened = Hostile(folder, recipe), Tally(), folder / "said", folder / "opened"
    statm = Path("/proc/self/statm")
    idle = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024 if statm.exists() else 0

    def work(words: list[str]) -> int:
        def audit(event: str, details: tuple[Any, ...]) -> None:
            if event == "open" and str(details[0]) == str(given.secret):
                opened.write_text("yes")

        sys.addaudithook(audit)
        begun, code = time.perf_counter(), freetf(words)
        print(f"\n{time.perf_counter() - begun:.3f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}")
        return code

    for number in range(count):
        words = given.cases[number % len(given.cases)]
        code = forked(partial(work, words), said)
        *lines, last = said.read_text(errors="replace").rstrip("\n").splitlines()
        seconds, used = (float(part) for part in last.split())
        text = "\n".join(lines)
        good = code in (1, 2) and "Traceback" not in text and "internal error" not in text and text.startswith("freetf: error: ")
        good &= not given.marker.exists() and not opened.exists() and seconds < 5 and used - idle < 500 * 1024
        tally.add(good, f"{number} {words[:2]}: exit {code}, {seconds} s, {(used - idle) // 1024} MiB, {text[:300]}")
    return {**tally.record(), "files": len(given.cases)}


# --- T10 -----------------------------------------------------------------------------------------------------------------------------


def plant(step: int, length: int, value: float, gradient: bool) -> None:
    """From here on the loss, or a gradient, of some steps in a row is multiplied by a value that is not finite."""
    plain = TrainStep._update

    def update(self: TrainStep) -> None:
        now, loss = step <= int(self.number) + 1 < step + length, self.loss
        hook = next(self.model.parameters()).register_hook(lambda grad: grad * value) if now and gradient else None
        if now and not gradient:
            self.loss = lambda *words: (lambda terms: (terms[0] * value, *terms[1:]))(loss(*words))
        plain(self)
        self.loss = loss
        if hook is not None:
            hook.remove()

    TrainStep._update = update  # type: ignore[method-assign]


def unchecked() -> None:
    TrainStep._note_fault = lambda self: None  # type: ignore[method-assign]


def faults(count: int, folder: Path) -> dict[str, Any]:
    """NaN and Inf in the loss or a gradient: no update, no poisoned checkpoint; again from the last checkpoint, the same."""
    recipe, said = tiny(folder), folder / "said"

    def trial(number: int, sabotage: Callable[[], None], name: str) -> tuple[bool, str]:
        run, step, length = folder / f"{name}-{number}", 4 + number % 5, 1 + number % 4
        words = ["train", str(recipe), "-o", str(run), "-q", "--device", "cpu", "--resume", "auto"]
        value, gradient = (math.nan, math.inf)[number % 2], bool(number // 2 % 2)
        work = lambda: (sabotage(), plant(step, length, value, gradient), freetf(words))[2]  # noqa: E731
        outcomes = []
        for _ in range(2):
            code = forked(work, said)
            outcomes.append((code, (run / "faults.jsonl").read_text() if (run / "faults.jsonl").exists() else ""))
        finite = all(
            weight.isfinite().all() for each in checkpoint_folders(run) for weight in Checkpoint.open(each).model(CPU).parameters()
        )
        named = [json.loads(row)["step"] for row in outcomes[0][1].splitlines()] == list(range(step, step + min(length, 3)))
        good = finite and named and outcomes[0] == outcomes[1] and outcomes[0][0] == int(length > 2)
        return good, f"steps {step} to {step + length - 1}: {outcomes} finite {finite} {said.read_text()[-200:]}"

    tally, control = Tally(), Tally()
    for number in range(count):
        tally.add(*trial(number, _nothing, "run"))
    for number in range(2):
        control.add(*trial(number, unchecked, "unchecked"))
    return {**tally.record(), "control": {"what": "the update is not held back", **control.record()}}


# --- T12 -----------------------------------------------------------------------------------------------------------------------------


def outputs(count: int, folder: Path) -> dict[str, Any]:
    """Every command with its reader gone, a full disk behind stdout, 20 columns, an ASCII terminal: no traceback, and the exit code."""
    recipe = tiny(folder)
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    run = str(folder / "whole")
    commands = [
        ["show", run],
        ["sample", run, "--prompt", "A>", "-n", "3", "--device", "cpu"],
        ["compare", run, run, "--device", "cpu"],
        ["evaluate", run, "--task", "likelihood", "--device", "cpu"],
        ["probe-latent", run, "-g", "20", "-n", "2", "--device", "cpu"],
        ["gen-synthetic", "letters", "-o", "-", "--count", "50"],
        ["recipe", "list"],
        ["recipe", "schema"],
        ["recipe", "show", "letters-free"],
        ["recipe", "diff", "letters-free", "letters-baseline"],
        ["train", str(recipe), "--dry-run"],
        ["doctor"],
    ]
    forms = [[*words, *more] for more in ([], ["--json"]) for words in commands if not more or words[0] != "recipe" or words[1] != "schema"]
    sinks = ("reader gone", "full", "narrow", "ascii")
    tally = Tally()
    for number in range(count):
        words, sink = forms[number % len(forms)], sinks[number // len(forms) % 4]
        said = folder / "said"

        def work(words: list[str] = words, sink: str = sink) -> int:
            if sink == "reader gone":
                reader, writer = os.pipe()
                os.close(reader)
                os.dup2(writer, 1)
            elif sink == "full":
                os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
            elif sink == "narrow":
                os.environ.update(COLUMNS="20", NO_COLOR="1")
            else:
                for stream in (sys.stdout, sys.stderr):
                    stream.reconfigure(encoding="ascii")  # type: ignore[union-attr]
            code = freetf(words)
            try:
                sys.stdout.flush()
            except OSError:
                code = 120  # as the interpreter would
            return code

        code = forked(work, said)
        text = said.read_bytes()
        wanted = {"reader gone": (141,), "full": (1,), "narrow": (0, 1), "ascii": (0, 1)}[sink]
        good = code in wanted and b"Traceback" not in text and b"internal error" not in text
        tally.add(good, f"{' '.join(words[:2])} {words[-1]}, {sink}: exit {code}: {text[-300:]!r}")
    return {**tally.record(), "forms": len(forms) * len(sinks)}


def inputs(count: int, folder: Path) -> dict[str, Any]:
    """No UTF-8, a byte order mark, nothing, CRLF, NUL, a line of a megabyte: to every command that reads a file or stdin."""
    recipe = tiny(folder)
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    run, row = str(folder / "whole"), b'{"z": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]}'
    contents = [
        b"\xff\xfe\xfa caf\xe9",
        b"\xef\xbb\xbfA>",
        b"",
        b"A>\r\nB>\r\n",
        b"A>\0\0",
        b"A" * (1 << 20),
        b"\r\n\r\n",
        row + b"\r\n",
        b"\x1b[2J\x07",
    ]
    forms: list[Callable[[str, str], list[str]]] = [
        lambda path, out: ["prepare", path, "-o", out, "-q"],
        lambda path, out: ["prepare", "-", "-o", out, "-q"],
        lambda path, out: ["prepare", path, "-o", out, "-q", "--tokenizer", path],
        lambda path, out: ["prepare", "-", "-o", out, "-q", "--field", "text"],
        lambda path, out: ["sample", run, "--prompt", "-", "--device", "cpu"],
        lambda path, out: ["sample", run, "--prompt", "A>", "--z", path, "--device", "cpu"],
        lambda path, out: ["sample", run, "--prompt", "A>", "--z", "-", "--device", "cpu"],
        lambda path, out: ["train", path, "-o", out, "-q", "--device", "cpu"],
        lambda path, out: ["recipe", "show", path],
        lambda path, out: ["show", path],
        lambda path, out: ["compare", path, path],
    ]
    tally = Tally()
    for number in range(count):
        content, form = contents[number % len(contents)], forms[number // len(contents) % len(forms)]
        path, said = folder / f"given-{number}.jsonl", folder / "said"
        path.write_bytes(content)

        def work(words: list[str], path: Path = path) -> int:
            os.dup2(os.open(path, os.O_RDONLY), 0)
            sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            return freetf(words)

        words = form(str(path), str(folder / f"out-{number}"))
        code = forked(partial(work, words), said)
        text = said.read_bytes()
        good = code in (0, 2) and b"Traceback" not in text and b"internal error" not in text and (code == 0 or b"freetf: error: " in text)
        tally.add(good and (code == 0 or b"\x1b" not in text), f"{words[:2]} {content[:12]!r}: exit {code}: {text[-300:]!r}")
    bad = folder / "swapped"
    shutil.copytree(folder / "whole", bad)
    newest = checkpoint_folders(bad)[-1]
    tokens = (newest / "tokenizer.json").read_bytes()
    _hashed(newest, "tokenizer.json", tokens.replace(b'"A"', b'"Q"'))
    code, said = quiet(["train", str(recipe), "-o", str(bad), "--resume", str(newest), "-q", "--device", "cpu"])
    tally.add(code == 2 and "tokenizer" in said and (newest / "tokenizer.json").stat().st_size == len(tokens), f"tokenizer swapped: {said}")
    return {**tally.record(), "forms": len(contents) * len(forms)}


# --- T11 -----------------------------------------------------------------------------------------------------------------------------


def processes(count: int, folder: Path) -> dict[str, Any]:
    """Processes with other hash seeds, time zones, locales and working folders: the same bytes."""
    recipe, tally = tiny(folder), Tally()
    for number in range(count):
        place = folder / f"place-{number}"
        place.mkdir()
        changed = {
            "PYTHONHASHSEED": str(number),
            "TZ": f"UTC{number - 6:+d}",
            "LC_ALL": ("C", "C.UTF-8")[number % 2],
            "COLUMNS": str(20 + number),
        }
        root = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, **changed, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "freetf_cli", "train", str(recipe), "-o", "run", "-q", "--device", "cpu"]
        code = subprocess.run(command, env=environment, cwd=place, capture_output=True).returncode
        tally.add(code == 0 and same(place / "run", folder / "place-0" / "run"), f"process {number}: exit {code}")
    return tally.record()


# --- with strace and root, in `make soak` only --------------------------------------------------------------------------------------


def system_calls(count: int, folder: Path) -> dict[str, Any]:
    """kill -9 by strace at a chosen fsync, rename or write of a whole training process, resume: as a run that was not killed."""
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
    """Into a file system of some hundred kilobytes until it is full: one line, exit 1, what was saved valid; with more room it goes on."""
    recipe, tally = tiny(folder), Tally()
    more = ["--set", "train.save_every=1", "--set", "train.keep_last=12"]
    words = ["train", str(recipe), "-q", "--device", "cpu", "--resume", "auto", *more]
    assert forked(lambda: freetf([*words, "-o", str(folder / "whole")])) == 0
    for number in range(count):
        place, said = folder / f"disk-{number}", folder / "said"
        place.mkdir()
        size = 256 + 61 * number
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)], check=True)
        try:
            run = place / "run"
            code = forked(lambda run=run: freetf([*words, "-o", str(run)]), said)  # type: ignore[misc]
            text = said.read_text()
            good = (
                code == 1
                and text.count("\n") == 1
                and "o space left on device" in text
                and all(_intact(each) for each in checkpoint_folders(run))
            )
            subprocess.run(["mount", "-o", "remount,size=16m", str(place)], check=True)
            good &= forked(lambda run=run: freetf([*words, "-o", str(run)]), said) == 0 and same(run, folder / "whole")  # type: ignore[misc]
            tally.add(good, f"{size} KB: exit {code}, {text[-300:]} {said.read_text()[-200:]}")
        finally:
            subprocess.run(["umount", str(place)], check=True)
    return tally.record()


PARTS = (kills, saves, streams, damaged, fallback, hostile, disk, signals, starters, faults, outputs, inputs, processes)
TRIALS: dict[str, Callable[[int, Path], dict[str, Any]]] = {each.__name__: each for each in PARTS}
SOAK_ONLY = {each.__name__: each for each in (system_calls, small_disk)}


def main(name: str, count: str, folder: str) -> None:
    torch.set_num_threads(1)
    print(json.dumps({**TRIALS, **SOAK_ONLY}[name](int(count), Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
