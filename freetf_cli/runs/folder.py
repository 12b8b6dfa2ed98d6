"""A run folder describes itself: recipe, manifest, metrics, checkpoints, samples, report.

RUN/recipe.toml        resolved
    manifest.json      argv, seeds, versions, device, hashes of data and tokenizer, git state; the only file with time stamps
    metrics.jsonl      one object per logged step
    faults.jsonl       steps that were skipped because their loss or gradient was not finite; only if there are any
    timing.jsonl       times, rates and memory, kept apart so that equal runs have equal metrics.jsonl, byte for byte
    checkpoints/  samples/  report.html
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from freetf_cli import durable
from freetf_cli.config.files import load_recipe, to_toml
from freetf_cli.config.recipe import Recipe
from freetf_cli.durable import SMALL, is_left_over, read_small, sweep, write_durably
from freetf_cli.errors import InputError
from freetf_cli.records import CheckpointInfo, Metrics, Timing, to_json
from freetf_cli.records.samples import Sample
from freetf_cli.runs.checkpoint import checkpoint_folders, folder_step, recover, size_of
from freetf_cli.runs.lock import HOLDER, LOCK

REMOVE = "remove that line; the others can be read without it"


class RunFolder:
    """The paths and records of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints, self.samples, self.report = path / "checkpoints", path / "samples", path / "report.html"
        self.metrics_file, self.timing_file, self.faults_file = (path / f"{name}.jsonl" for name in ("metrics", "timing", "faults"))

    @classmethod
    def create(cls, path: Path, recipe: Recipe, *, again: bool = False) -> RunFolder:
        """Create a run. Raises InputError if the folder exists and is not empty; again: unless it is a run without a checkpoint."""
        cls.check_path(path)
        exists = (path / "recipe.toml").is_file()
        if exists and (not again or checkpoint_folders(path)):
            raise InputError("the run exists", str(path), "resume it with --resume auto, or choose another -o")
        run = cls(path)
        path.mkdir(parents=True, exist_ok=True)
        write_durably(path / "recipe.toml", to_toml(recipe))  # first, so that the folder is a run from here on
        for folder in (run.checkpoints, run.samples):
            folder.mkdir(exist_ok=True)
        run.rewind(0, recipe)
        return run

    @staticmethod
    def check_path(path: Path) -> None:
        """Raise InputError if a run cannot have this path, or if something other than a run has it."""
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise InputError("the run folder's name is not valid UTF-8", str(path).encode("utf-8", "replace").decode()) from None
        if path.is_symlink() and not path.exists():
            raise InputError("the run folder's path is a broken link", str(path))
        if above := next((part for part in path.parents if part.exists() and not part.is_dir()), None):
            raise InputError("the run folder's parent is a file", str(above))
        if path.exists() and not path.is_dir():
            raise InputError("the run folder's path is a file", str(path))
        _refuse_links(path)
        if not path.is_dir() or (path / "recipe.toml").is_file():
            return
        for file in path.iterdir():
            if file.name not in (LOCK, HOLDER) and not is_left_over(file):  # from a killed start
                raise InputError("the folder exists and is not a run", str(path), "choose another -o")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run."""
        if not path.is_dir():
            raise InputError("no such run", str(path), "create one with `freetf train RECIPE -o RUN`")
        if not (path / "recipe.toml").is_file():
            raise InputError("the folder is not a run: it has no recipe.toml", str(path))
        _refuse_links(path)
        return cls(path)

    def recipe(self) -> Recipe:
        return load_recipe(str(self.path / "recipe.toml"))

    def append_fault(self, **entries: Any) -> None:
        """Record a skipped step."""
        _append(self.faults_file, entries)

    def append(self, metrics: Metrics, timing: Timing | None = None) -> None:
        """Record a logged step. timing: for timing.jsonl."""
        _append(self.metrics_file, dataclasses.asdict(metrics))
        if timing is not None:
            times = {"seconds": round(timing.seconds, 6), "tokens_per_second": round(timing.tokens_per_second, 1)}
            _append(self.timing_file, {"step": metrics.step, **times, "rss": timing.rss, "gpu_peak": timing.gpu_peak})

    def metrics(self) -> list[Metrics]:
        """All records of logged steps."""
        return [_metrics(row, self.metrics_file) for row in _read_jsonl(self.metrics_file)]

    def held_out_losses(self) -> dict[int, float]:
        """The recorded held-out loss of each step that was evaluated, in nats per token."""
        return {row.step: row.loss for row in self.metrics() if row.lr is None and row.loss is not None}

    def rewind(self, step: int, recipe: Recipe, warn: Callable[[str], None] = lambda message: None) -> None:
        """Begin again after `step`: set later checkpoints aside, delete later records, which are written again, and store the recipe.

        Checkpoints go first, the newest before the others: the newest that is left, if a kill interrupts this, has all its records.
        """
        recover(self.checkpoints)
        for folder in (self.path, self.samples):
            sweep(folder)
        if later := [folder for folder in checkpoint_folders(self.path) if folder_step(folder) > step]:
            aside = {folder: _unused(folder.with_name(f"aside-{folder.name}")) for folder in later}
            named = ", ".join(path.name for path in aside.values())
            again = f"the run continues from step {step}, and its records after that are written again"
            warn(f"{again}; later checkpoints are kept as {named} in {self.checkpoints}: delete them if you do not need them")
            for folder in reversed(later):
                durable.move(folder, aside[folder])
        write_durably(self.path / "recipe.toml", to_toml(recipe))
        for path in self.samples.glob("step-*.jsonl"):
            found = re.match(r"step-(\d+)-", path.name)
            if found and int(found[1]) > step:
                path.unlink()
        for path in (self.metrics_file, self.timing_file, self.faults_file):
            if path.exists():
                kept = [row for row in _read_jsonl(path) if row.get("step", 0) <= step]
                write_durably(path, "".join(json.dumps(row) + "\n" for row in kept))

    def lacks_records(self, step: int, log_every: int) -> bool:
        """Whether the records end before the last step up to `step` that was logged or skipped, as when metrics.jsonl was lost."""
        logged = step // log_every * log_every or min(step, 1)
        rows = [*_read_jsonl(self.metrics_file), *_read_jsonl(self.faults_file)]
        return max((row.get("step", 0) for row in rows), default=0) < logged

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def checkpoint_infos(self) -> list[CheckpointInfo]:
        """The run's checkpoints, oldest first. The best is the one with the lowest held-out loss."""
        sizes = {folder: size_of(folder) for folder in checkpoint_folders(self.path)}
        losses = self.held_out_losses()
        best = min(filter(losses.__contains__, map(folder_step, sizes)), key=losses.__getitem__, default=None)
        return [CheckpointInfo(step := folder_step(one), str(one), losses.get(step), step == best, size) for one, size in sizes.items()]

    def prune(self, keep_last: int, keep_every: int) -> None:
        """Delete checkpoints, except the last ones, the best, and those of every `keep_every` steps (0: none)."""
        for info in self.checkpoint_infos()[:-keep_last]:
            if not info.best and (keep_every == 0 or info.step % keep_every):
                folder = Path(info.path)
                gone = folder.rename(folder.with_name(f".{folder.name}.tmp"))  # nobody finds half of a checkpoint
                shutil.rmtree(gone, ignore_errors=True)  # a save in the background sweeps the same names

    def save_samples(self, step: int, samples: Mapping[str, Sequence[Sample]]) -> None:
        """Write samples by name, such as "shared" to samples/step-000500-shared.jsonl."""
        for name, records in samples.items():
            write_durably(self.samples_file(step, name), "".join(to_json(record) + "\n" for record in records))

    def samples_file(self, step: int, name: str) -> Path:
        return self.samples / f"step-{step:06d}-{name}.jsonl"

    def last_samples(self) -> dict[str, list[dict[str, Any]]]:
        """The newest samples by name ("independent", "shared")."""
        found = {}
        files = [(re.fullmatch(r"step-(\d+)-(\w+)\.jsonl", path.name), path) for path in self.samples.glob("step-*.jsonl")]
        for _, name, path in sorted((int(match[1]), match[2], path) for match, path in files if match):
            found[name] = list(_read_jsonl(path))  # a later step overwrites an earlier one
        return found

    def manifest(self) -> dict[str, Any]:
        return _read_object(self.path / "manifest.json")

    def update_manifest(self, **entries: Any) -> None:
        """Set entries of the manifest; the others stay."""
        write_durably(self.path / "manifest.json", json.dumps({**self.manifest(), **entries}, indent=1) + "\n")

    def finish(self, status: str) -> None:
        """Record that training ended: "done", "stopped" or "failed"."""
        self.update_manifest(status=status, finished=now())


class ReadOnlyRun(RunFolder):
    """A run that another process writes: what would be written here is ignored."""

    def _ignore(self, *args: Any, **options: Any) -> None:
        pass

    append = append_fault = rewind = prune = save_samples = update_manifest = _ignore


def _unused(path: Path) -> Path:
    """The path, or, if it exists, the first of `path-2`, `path-3`, … that does not."""
    names = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(name for name in names if not name.exists())


def _metrics(row: dict[str, Any], file: Path) -> Metrics:
    """A record of metrics.jsonl, its types checked. Losses may be null: JSON has no NaN."""
    fields: dict[str, Any] = {field.name: row.get(field.name) for field in dataclasses.fields(Metrics)}
    for field in dataclasses.fields(Metrics):
        value = fields[field.name]
        fits = type(value) in {"int": (int,), "str": (str,)}.get(str(field.type), (int, float, type(None)))
        if not fits or (isinstance(value, int) and abs(value) >= 2**53):
            what = f"the record is damaged: {field.name} is {json.dumps(value)[:40]}"
            raise InputError(what, f"{file}, step {row.get('step')}", REMOVE)
    return Metrics(**fields)


def _refuse_links(run: Path) -> None:
    """Raise InputError if a run, which somebody else may have made, holds links: they may lead out of its folder."""
    for place in (run, run / "checkpoints", run / "samples"):
        for part in place.iterdir() if place.is_dir() else ():
            if part.is_symlink():
                raise InputError("a run must not contain links, which may lead out of its folder", str(part))


def now() -> str:
    """The time in UTC, for the manifest."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is none."""
    try:
        return _object(read_small(path)) or {}
    except OSError:
        return {}


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, without a last line that a crash cut short. Raises InputError if another line is damaged."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(SMALL + 1), b""), start=1):
            row = _object(line) if len(line) <= SMALL else None
            if row is not None and type(step := row.get("step", 0)) is int and 0 <= step < 2**53:
                yield row
            elif line != b"\n" and (line.endswith(b"\n") or len(line) > SMALL):
                raise InputError("the record is damaged", f"{path}, line {number}", REMOVE)


def _append(path: Path, record: Mapping[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
    except OSError as error:
        durable.name_path(error, path)
        raise


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
