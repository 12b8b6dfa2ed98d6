"""Copies metrics.jsonl to an experiment tracker: TensorBoard, Trackio or Weights & Biases. The file itself stays the record.

Everything stays on this machine unless the tracker's own settings say otherwise (WANDB_MODE, TRACKIO_SPACE_ID). An export replaces an
earlier one of the same run, so it can be repeated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

from freetf_cli.errors import FreetfError
from freetf_cli.evaluation.summary import run_status
from freetf_cli.records import Metrics
from freetf_cli.records.run import flattened
from freetf_cli.records.trackers import TrackerExport
from freetf_cli.report.units import is_number
from freetf_cli.runs.folder import RunFolder

POLL = 2.0  # seconds between checks of a run that is followed
SUFFIX = ".freetf"  # marks our event files, so that others are not deleted
LATENT = {"kl", "penalty", "above_kappa", "kappa"}  # zero for a baseline
OTHERS = {"step", "split"}  # fields that are not metrics


class Tracker(Protocol):
    """A tracker opened for one run. place: where its records are stored; view: the command that shows them."""

    place: str
    view: str

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def export_metrics(path: Path, to: str, *, follow: bool = False) -> TrackerExport:
    """Write all records of a run to a tracker. follow: keep writing new records until training ends.

    Raises InputError if the path is not a run or its metrics.jsonl is damaged, and FreetfError if the tracker is not installed.
    """
    run = RunFolder.open(path)
    run.metrics()  # raises for a damaged file before the tracker is opened
    tracker, sent = TRACKERS[to](run), list[Metrics]()
    try:
        while True:
            goes_on = follow and run_status(run.manifest(), path) == "running"  # checked before reading, to miss no line
            lines = run.metrics()
            if lines[: len(sent)] != sent:  # the run went back to an earlier step
                tracker.close()
                tracker, sent = TRACKERS[to](run), []
            for line in lines[len(sent) :]:
                tracker.log(line.step, scalars(line))
            tracker.flush()
            sent = lines
            if not goes_on:
                return TrackerExport(str(path), to, tracker.place, len(sent), tracker.view)
            time.sleep(POLL)
    finally:
        tracker.close()


def scalars(line: Metrics) -> dict[str, float]:
    """The numbers of a record, named `SPLIT/FIELD`. A held-out record of the split `train` is `held out train`."""
    split = f"held out {line.split}" if line.lr is None and line.split == "train" else line.split
    left_out = OTHERS if line.has_latent() else OTHERS | LATENT
    numbers = {name: value for name, value in dataclasses.asdict(line).items() if name not in left_out}
    return {f"{split}/{name}": value for name, value in numbers.items() if is_number(value)}


def identity(run: RunFolder) -> str:
    """An identifier of eight characters, unique to the run, that stays the same when its folder is moved."""
    manifest = run.manifest()
    known = [manifest.get(name) for name in ("started", "argv", "seed")]
    return hashlib.sha256(json.dumps(known if any(known) else str(run.path.resolve())).encode()).hexdigest()[:8]


def _config(run: RunFolder) -> dict[str, str]:
    return flattened(run.recipe().model_dump(exclude_none=True))


def _name(run: RunFolder) -> str:
    return run.path.resolve().name


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: RunFolder) -> None:
        tensorboard = _package("torch.utils.tensorboard", "tensorboard")
        folder = run.path / "tensorboard"
        for old in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
            old.unlink()
        self.place, self.view = str(folder), f"tensorboard --logdir {shlex.quote(str(run.path))}"
        self._writer = tensorboard.SummaryWriter(str(folder), filename_suffix=SUFFIX)
        self._writer.add_text("recipe", "\n".join(f"    {name} = {value}" for name, value in _config(run).items()), 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A run in a local Trackio project: TRACKIO_PROJECT, or `freetf` by default."""

    def __init__(self, run: RunFolder) -> None:
        self._trackio = _package("trackio", "trackio")
        project, name = os.environ.get("TRACKIO_PROJECT") or "freetf", f"{_name(run)}-{identity(run)}"
        self.place, self.view = f"project {project}, run {name}", f"trackio show --project {shlex.quote(project)}"
        with redirect_stdout(StringIO()):  # Trackio prints; stdout is reserved for the result
            with suppress(ValueError):  # there is no such project yet
                for old in [one for one in self._trackio.Api().runs(project) if one.name == name]:
                    old.delete()
            # Do not log the load of the machine that exports, and open no web page.
            self._trackio.init(
                project=project, name=name, config=_config(run), resume="never", embed=False, auto_log_gpu=False, auto_log_cpu=False
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def flush(self) -> None:
        pass  # Trackio writes from a background thread

    def close(self) -> None:
        with redirect_stdout(StringIO()):
            self._trackio.finish()


class WandB:
    """An offline Weights & Biases run in RUN/wandb, for `wandb sync`. WANDB_MODE=online uploads it at once."""

    def __init__(self, run: RunFolder) -> None:
        wandb = _package("wandb", "wandb")
        mode, own = os.environ.get("WANDB_MODE") or "offline", identity(run)
        for old in (run.path / "wandb").glob(f"offline-run-*-{own}"):
            shutil.rmtree(old)
        quiet = wandb.Settings(silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True, x_disable_meta=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "freetf",
            id=own,
            name=_name(run),
            config=_config(run),
            dir=str(run.path),
            mode=mode,
            resume="allow",
            settings=quiet,
        )
        self.place = str(Path(self._run.dir).parent)
        self.view = f"wandb sync {shlex.quote(self.place)}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        pass  # wandb writes from a background process

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[RunFolder], Tracker]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB}


def _package(module: str, package: str) -> Any:
    try:
        import_module(package)
        return import_module(module)
    except ImportError:
        what = f"--to {package} needs the package {package}, which is not installed"
        raise FreetfError(what, hint=f"pip install 'freetf[{package}]'") from None
