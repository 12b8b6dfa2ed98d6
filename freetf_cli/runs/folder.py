"""A run folder describes itself: recipe, manifest, metrics, checkpoints, samples, report.

RUN/recipe.toml        resolved
    manifest.json      argv, seeds, versions, device, hashes of data and tokenizer, git state; the only place for time stamps
    metrics.jsonl      the record: one object a logged step
    faults.jsonl       steps without an update, as their loss or gradient was not finite; there only if there are such
    timing.jsonl       times and rates, apart, so that metrics.jsonl is the same byte for byte when the run is
    checkpoints/  samples/  report.html
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from freetf_cli import __version__
from freetf_cli.config.files import load_recipe, to_toml
from freetf_cli.config.recipe import Recipe
from freetf_cli.durable import SMALL, is_left_over, read_small, sweep, write_durably
from freetf_cli.errors import InputError
from freetf_cli.records import CheckpointInfo, Metrics, to_json
from freetf_cli.records.samples import Sample
from freetf_cli.runs.checkpoint import checkpoint_folders, folder_step, recover
from freetf_cli.runs.lock import HOLDER, LOCK

_FIELDS = [field.name for field in dataclasses.fields(Metrics)]


class RunFolder:
    """Paths and records of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.samples = path / "samples"
        self.metrics_file = path / "metrics.jsonl"
        self.timing_file = path / "timing.jsonl"
        self.faults_file = path / "faults.jsonl"
        self.report = path / "report.html"

    @classmethod
    def create(cls, path: Path, recipe: Recipe, *, again: bool = False) -> RunFolder:
        """A new run; a folder that exists and holds anything is refused. again: but for a run that ended before its first checkpoint."""
        cls.refuse_foreign(path)
        begun = (path / "recipe.toml").is_file()
        if begun and (not again or checkpoint_folders(path)):
            raise InputError("the run exists", str(path), "--resume auto goes on with it; another -o starts a new one")
        run = cls(path)
        path.mkdir(parents=True, exist_ok=True)
        write_durably(path / "recipe.toml", to_toml(recipe))  # first: what is stopped from here on is a run
        for folder in (run.checkpoints, run.samples):
            folder.mkdir(exist_ok=True)
        run.rewind(0, recipe)
        return run

    @staticmethod
    def refuse_foreign(path: Path) -> None:
        """InputError where something else than a run has the name, or no run can have it."""
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise InputError("the run folder's name is not valid UTF-8", str(path).encode("utf-8", "replace").decode()) from None
        if path.is_symlink() and not path.exists():
            raise InputError("the run folder's name is taken by a link that leads nowhere", str(path))
        if above := next((part for part in path.parents if part.exists() and not part.is_dir()), None):
            raise InputError("the run folder would lie in what is a file", str(above))
        if path.exists() and not path.is_dir():
            raise InputError("the run folder's name is taken by a file", str(path))
        _refuse_links(path)
        if not path.is_dir() or (path / "recipe.toml").is_file():
            return
        for file in path.iterdir():
            if file.name not in (LOCK, HOLDER) and not is_left_over(file):  # by a start that was killed
                raise InputError("the folder exists and is not a run", str(path), "choose another -o")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run."""
        if not path.is_dir():
            raise InputError("no such run", str(path), "`freetf train RECIPE -o RUN` makes one")
        if not (path / "recipe.toml").is_file():
            raise InputError("the folder is not a run: it has no recipe.toml", str(path))
        _refuse_links(path)
        return cls(path)

    def recipe(self) -> Recipe:
        return load_recipe(str(self.path / "recipe.toml"))

    def append_fault(self, **entries: Any) -> None:
        """Record a step whose loss or gradient was not finite."""
        with self.faults_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entries, allow_nan=False) + "\n")

    def append(self, metrics: Metrics, seconds: float | None = None) -> None:
        """Record a logged step; seconds, the mean of a step since the last such line, goes into timing.jsonl."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(metrics), allow_nan=False) + "\n")
        if seconds is not None:
            with self.timing_file.open("a", encoding="utf-8") as file:
                rate = metrics.tokens / metrics.step / seconds if seconds else 0.0
                file.write(json.dumps({"step": metrics.step, "seconds": round(seconds, 6), "tokens_per_second": round(rate, 1)}) + "\n")

    def metrics(self) -> list[Metrics]:
        """Everything recorded so far."""
        return [_metrics(row, self.metrics_file) for row in _read_jsonl(self.metrics_file)]

    def rewind(self, step: int, recipe: Recipe, *, evaluates: bool = False) -> None:
        """Forget what was recorded and saved after `step`, before a resumed run does it again; recipe: as it goes on.

        evaluates: the resumed run begins with the evaluation of `step`, which a signal had cut short.
        """
        recover(self.checkpoints)
        for folder in (self.path, self.samples):
            sweep(folder)
        write_durably(self.path / "recipe.toml", to_toml(recipe))
        for path in self.samples.glob("step-*.jsonl"):
            if int(path.name.split("-")[1]) > step - evaluates:
                path.unlink()
        for path in (self.metrics_file, self.timing_file, self.faults_file):
            if path.exists():
                kept = [row for row in _read_jsonl(path) if row.get("step", 0) <= step]
                if evaluates:
                    kept = [row for row in kept if row.get("step") != step or row.get("split", "train") == "train"]
                write_durably(path, "".join(json.dumps(row) + "\n" for row in kept))
        for folder in checkpoint_folders(self.path):
            if folder_step(folder) > step:
                shutil.rmtree(folder)
        if (self.best() or {"step": 0})["step"] > step:
            (self.checkpoints / "best.json").unlink()

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def best(self) -> dict[str, Any] | None:
        """{"step", "loss"} of the best checkpoint by held-out objective, if there is one."""
        found = _read_object(self.checkpoints / "best.json")
        return found if {"step", "loss"} <= found.keys() else None

    def set_best(self, step: int, loss: float) -> None:
        write_durably(self.checkpoints / "best.json", json.dumps({"step": step, "loss": loss}) + "\n")

    def checkpoint_infos(self) -> list[CheckpointInfo]:
        """The checkpoints that the run keeps, oldest first."""
        best = self.best() or {}
        losses = {row.step: row.loss for row in self.metrics() if row.split != "train"}
        infos = []
        for folder in checkpoint_folders(self.path):
            step = folder_step(folder)
            size = sum(file.stat().st_size for file in folder.iterdir())
            infos.append(CheckpointInfo(step, str(folder), losses.get(step), step == best.get("step"), size))
        return infos

    def save_samples(self, step: int, samples: Mapping[str, Sequence[Sample]]) -> None:
        """samples/step-000500-shared.jsonl and its like."""
        for name, records in samples.items():
            write_durably(self.samples / f"step-{step:06d}-{name}.jsonl", "".join(to_json(record) + "\n" for record in records))

    def last_samples(self) -> dict[str, list[dict[str, Any]]]:
        """The newest samples by name: "independent", "shared"."""
        found = {}
        files = [(re.fullmatch(r"step-(\d+)-(\w+)\.jsonl", path.name), path) for path in self.samples.glob("step-*.jsonl")]
        for _, name, path in sorted((int(match[1]), match[2], path) for match, path in files if match):
            found[name] = list(_read_jsonl(path))  # later steps overwrite earlier ones
        return found

    def manifest(self) -> dict[str, Any]:
        return _read_object(self.path / "manifest.json")

    def update_manifest(self, **entries: Any) -> None:
        """Lay entries over the manifest."""
        write_durably(self.path / "manifest.json", json.dumps({**self.manifest(), **entries}, indent=1) + "\n")


class WatchedRun(RunFolder):
    """A run that another process records: to be read, and what would be written is left to that one."""

    def append_fault(self, **entries: Any) -> None:
        pass

    def append(self, metrics: Metrics, seconds: float | None = None) -> None:
        pass

    def rewind(self, step: int, recipe: Recipe, *, evaluates: bool = False) -> None:
        pass

    def set_best(self, step: int, loss: float) -> None:
        pass

    def save_samples(self, step: int, samples: Mapping[str, Sequence[Sample]]) -> None:
        pass

    def update_manifest(self, **entries: Any) -> None:
        pass


def _metrics(row: dict[str, Any], file: Path) -> Metrics:
    """A record whose every field is what it should be; a number of a run that diverged is null."""
    for field in dataclasses.fields(Metrics):
        value = row.get(field.name)
        fits = type(value) in {"int": (int,), "str": (str,)}.get(str(field.type), (int, float, type(None)))
        if not fits or (isinstance(value, int) and abs(value) >= 2**53):
            raise InputError(f"the record is damaged: {field.name} is {json.dumps(value)[:40]}", f"{file}, step {row.get('step')}")
    return Metrics(*(row.get(name) for name in _FIELDS))  # type: ignore[arg-type]  # all were looked at


def _refuse_links(run: Path) -> None:
    """A run that somebody else has made may not lead out of its folder."""
    for place in (run, run / "checkpoints", run / "samples"):
        for part in place.iterdir() if place.is_dir() else ():
            if part.is_symlink():
                raise InputError("a run holds no links: this one may lead out of its folder", str(part))


def describe_process(argv: Sequence[str]) -> dict[str, Any]:
    """What a manifest says of the program that made it."""
    packages = ("torch", "numpy", "safetensors", "tokenizers")
    return {
        "schema_version": 1,
        "argv": list(argv),
        "freetf": __version__,
        "packages": {name: metadata.version(name) for name in packages},
        "git": _git_state(),
    }


def now() -> str:
    """A time stamp for the manifest, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_state() -> dict[str, Any] | None:
    """Commit of the working folder, and whether it was changed; None outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        changes = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changes.strip())}


def _read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; empty when it holds none."""
    try:
        return _object(read_small(path)) or {}
    except OSError:
        return {}


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSONL file, each with a whole number as its `step` if it has one; a last line cut short by a crash is left out."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(SMALL + 1), b""), start=1):
            if line == b"\n":
                continue
            row = _row(line) if len(line) <= SMALL else None
            if row is not None:
                yield row
            elif line.endswith(b"\n") or len(line) > SMALL:
                raise InputError("the record is damaged", f"{path}, line {number}")


def _row(line: bytes) -> dict[str, Any] | None:
    row = _object(line)
    return row if row is not None and type(step := row.get("step", 0)) is int and 0 <= step < 2**53 else None


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def current_argv() -> list[str]:
    """This process's command line, the program's folder left out."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
