"""Trials of files: damaged checkpoints, a run that falls back to an earlier one, hostile files."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from freetf_cli.cli.app import main as freetf
from freetf_cli.config.files import load_recipe
from freetf_cli.runs import checkpoint as checkpoint_module
from freetf_cli.runs.checkpoint import checkpoint_folders
from tests.reliability.world import (
    FEW,
    STEPS,
    Tally,
    flip,
    forked,
    go,
    hashed,
    quiet,
    same,
    tiny,
)

FILES = ("model.safetensors", "state.json", "tokenizer.json", "optimizer.safetensors")
DAMAGE: list[tuple[str, Callable[[Path, int], None]]] = [
    ("cut short", lambda f, n: os.truncate(f / FILES[n % 4], (f / FILES[n % 4]).stat().st_size * (n % 7) // 8)),
    ("a flipped bit", lambda f, n: flip(f / FILES[n % 4], n * 7919)),
    ("a file missing", lambda f, n: (f / FILES[n % 4]).unlink()),
    ("a longer file", lambda f, n: (f / FILES[n % 4]).open("ab").write(b"\0" * (n + 1)) and None),
    ("a manifest of noise", lambda f, n: (f / "MANIFEST.sha256").write_bytes(hashlib.sha512(str(n).encode()).digest())),
    ("another file's content", lambda f, n: shutil.copy(f / FILES[(n + 1) % 4], f / FILES[n % 4]) and None),
    ("correct hashes of wrong weights", lambda f, n: hashed(f, "model.safetensors", hostile_weights(n))),
    ("correct hashes of a wrong state", lambda f, n: hashed(f, "state.json", hostile_state((f / "state.json").read_text(), n))),
]


def hostile_weights(number: int) -> bytes:
    """A safetensors file that is invalid, or not this model's."""
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


def damaged(count: int, folder: Path) -> dict[str, Any]:
    """Damaged checkpoints, given to every command that reads one: exit 2, one line that names it; an intact one is accepted."""
    recipe = tiny(folder)
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    tally = Tally()

    def commands(bad: Path, number: int) -> list[list[str]]:
        out = ["-o", str(folder / f"out-{number}"), "-q", "--device", "cpu"]
        good = str(folder / "whole")
        return [
            ["sample", str(bad), "--prompt", "A>", "--device", "cpu"],
            ["compare", good, str(bad), "--device", "cpu", *FEW],
            ["evaluate", str(bad), "--task", "likelihood", "--device", "cpu", *FEW],
            ["probe-latent", str(bad), "-g", "20", "-n", "2", "--sequences", "64", "--device", "cpu"],
            ["train", str(recipe), "--init-from", str(bad), *out],
            ["train", str(recipe), "-o", str(bad.parents[1]), "--resume", str(bad), "-q", "--device", "cpu"],
        ]

    for number in range(count):
        run, (kind, damage) = folder / f"run-{number}", DAMAGE[number % len(DAMAGE)]
        shutil.copytree(folder / "whole", run)
        bad = run / "checkpoints" / f"step-{STEPS:06d}"
        damage(bad, number // len(DAMAGE))
        readers = commands(bad, number)
        for words in (readers[number % 6], readers[(number + 1) % 6], readers[(number + 3) % 6]):
            code, output = quiet(words)
            good = code == 2 and output.count("\n") == 1 and output.startswith("freetf: error: ") and str(bad) in output
            tally.add(good, f"{kind} {number}: {words[0]} {words[3:4]} exit {code}: {output[-300:]}")
        shutil.rmtree(run)
    control = Tally()
    shutil.copytree(folder / "whole", folder / "intact")
    for words in commands(folder / "intact" / "checkpoints" / f"step-{STEPS:06d}", -1):
        code, output = quiet(words)
        control.add(code != 0, f"{words[0]}: {output[-300:]}")
    return {**tally.record(), "control": {"what": "an intact checkpoint", **control.record()}}


def fallback(count: int, folder: Path) -> dict[str, Any]:
    """The newest checkpoint of a run is damaged: the one before it is used, with a warning; all are damaged: refused, never restarted."""
    recipe = tiny(folder)
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    tally = Tally()
    for number in range(count):
        run, (kind, damage) = folder / f"run-{number}", DAMAGE[number % 6]
        shutil.copytree(folder / "whole", run)
        bad = checkpoint_folders(run)[-1]
        damage(bad, number)
        code, output = quiet(["train", str(recipe), "-o", str(run), "--resume", "auto", "-q", "--device", "cpu"])
        tally.add(
            code == 0 and str(bad) in output and "warning" in output and same(run, folder / "whole"), f"{kind}: exit {code} {output[-300:]}"
        )
        for each in checkpoint_folders(run):
            flip(each / "model.safetensors", number * 31)
        before = (run / "metrics.jsonl").read_bytes()
        for words in (
            ["train", str(recipe), "-o", str(run), "--resume", "auto", "-q", "--device", "cpu"],
            ["sample", str(run), "--prompt", "A>"],
        ):
            code, output = quiet(words)
            good = code == 2 and "no checkpoint of the run can be read" in output and (run / "metrics.jsonl").read_bytes() == before
            tally.add(good, f"all damaged, {words[0]}: exit {code} {output[-300:]}")
        shutil.rmtree(run)
    control = Tally()
    plain = checkpoint_module._verify
    checkpoint_module._verify = lambda path: None
    for number in range(2):
        run = folder / f"unverified-{number}"
        shutil.copytree(folder / "whole", run)
        flip(checkpoint_folders(run)[-1] / "model.safetensors", -1 - number)
        code, output = quiet(["sample", str(run), "--prompt", "A>"])
        control.add("warning" in output or code != 0, output)
    checkpoint_module._verify = plain
    return {**tally.record(), "control": {"what": "hashes are not compared", **control.record()}}


class Payload:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


class Hostile:
    """Hostile files, each with a command that reads it."""

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
            self.checkpoint(partial(hashed, name=name, content=self.attack))
            self.checkpoint(partial(_linked, name=name, to=self.secret))
        self.checkpoint(partial(hashed, name="optimizer.safetensors", content=self.attack))
        self.cases.pop()  # sample does not read it
        for name in ("../secret.txt", str(self.secret), "model.safetensors/../../secret.txt"):
            self.checkpoint(partial(_listed, name=name, of=self.secret))
        for number in range(6):
            self.checkpoint(partial(hashed, name="model.safetensors", content=hostile_weights(number)))
        for size in (50 << 20, (1 << 63) - 1):
            self.checkpoint(partial(hashed, name="model.safetensors", content=size.to_bytes(8, "little") + b"{}"))
        state = (self.whole / "checkpoints" / f"step-{STEPS:06d}" / "state.json").read_text()
        for number in range(9):
            self.checkpoint(partial(hashed, name="state.json", content=hostile_state(state, number)))
        self.checkpoint(partial(hashed, name="state.json", content=b" " * (11 << 20)))
        self.checkpoint(partial(hashed, name="tokenizer.json", content=b"[" * 200_000))

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
    """Hostile files: nothing in them runs, no file outside is opened, under 500 MB and 5 s, one line."""
    recipe = tiny(folder)
    assert forked(lambda: go(load_recipe(str(recipe)), folder / "whole")) == 0
    given, tally, output, opened = Hostile(folder, recipe), Tally(), folder / "output", folder / "opened"
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
        words = given.cases[number * 5 % len(given.cases)]  # so that a few trials take files of every kind
        code = forked(partial(work, words), output)
        *lines, last = output.read_text(errors="replace").rstrip("\n").splitlines()
        seconds, used = (float(part) for part in last.split())
        text = "\n".join(lines)
        good = code in (1, 2) and "Traceback" not in text and "internal error" not in text and text.startswith("freetf: error: ")
        good &= not given.marker.exists() and not opened.exists() and seconds < 5 and used - idle < 500 * 1024
        tally.add(good, f"{number} {words[:2]}: exit {code}, {seconds} s, {(used - idle) // 1024} MiB, {text[:300]}")
    return {**tally.record(), "files": len(given.cases)}
