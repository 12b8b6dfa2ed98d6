"""The one seam to experiment trackers: metrics.jsonl, which stays the record, as scalars of TensorBoard, Trackio or Weights & Biases.

Everything stays on this machine unless the tracker's own settings say otherwise (WANDB_MODE, TRACKIO_SPACE_ID). An export replaces what an
earlier one of the same run has written, so it may be repeated.
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

POLL = 2.0  # seconds between two looks at a run that is followed
SUFFIX = ".freetf"  # of event files, so that those of others stay
LATENT = {"kl", "penalty", "above_kappa", "kappa"}  # zero for a baseline
OTHERS = {"step", "split"}  # fields that are no scalars


class Tracker(Protocol):
    """A tracker that is open for a run. place: where it keeps records; view: the command that shows them."""

    place: str
    view: str

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def export_metrics(path: Path, to: str, *, follow: bool = False) -> TrackerExport:
    """Write all records of a run to a tracker. follow: also those that a training run still adds, until it ends.

    InputError if the path is no run or its record is damaged; FreetfError if the tracker is not installed.
    """
    run = RunFolder.open(path)
    sent: list[Metrics] = run.metrics()  # refuse a damaged record before the tracker has anything
    tracker, sent = TRACKERS[to](run), []
    try:
        while True:
            goes_on = follow and run_status(run.manifest(), path) == "running"  # asked first, so that its last lines are read
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
    """Eight characters that a run keeps when its folder is moved, and that no other run has."""
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
    """A run in Trackio's local project `freetf`, or the one of TRACKIO_PROJECT."""

    def __init__(self, run: RunFolder) -> None:
        self._trackio = _package("trackio", "trackio")
        project, name = os.environ.get("TRACKIO_PROJECT") or "freetf", f"{_name(run)}-{identity(run)}"
        self.place, self.view = f"project {project}, run {name}", f"trackio show --project {shlex.quote(project)}"
        with redirect_stdout(StringIO()):  # stdout is for the result
            with suppress(ValueError):  # there is no such project yet
                for old in [one for one in self._trackio.Api().runs(project) if one.name == name]:
                    old.delete()
            # Without the machine's own load, which the export does not measure, and without a web page.
            self._trackio.init(
                project=project, name=name, config=_config(run), resume="never", embed=False, auto_log_gpu=False, auto_log_cpu=False
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def flush(self) -> None:
        pass  # a thread of its own writes

    def close(self) -> None:
        with redirect_stdout(StringIO()):
            self._trackio.finish()


class WandB:
    """An offline run of Weights & Biases in RUN/wandb, for `wandb sync`; WANDB_MODE=online sends it at once."""

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
        pass  # a process of its own writes

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
