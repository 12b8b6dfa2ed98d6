"""Finds and summarises the runs below a folder, for `freetf runs`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from freetf_cli.errors import FreetfError, InputError
from freetf_cli.evaluation.summary import data_facts, run_status
from freetf_cli.records.curves import split_metrics
from freetf_cli.records.run import recipe_name
from freetf_cli.records.run_list import DAMAGED, HeldOut, ListedRun, RunList
from freetf_cli.runs.checkpoint import checkpoint_folders, folder_step
from freetf_cli.runs.folder import RunFolder

DEPTH = 5  # folders below the given one that are searched: the current folder may be a home


def list_runs(folder: Path) -> RunList:
    """All runs below a folder, the newest first; InputError if there is no such folder. A run that cannot be read is a line too."""
    if not folder.is_dir():
        raise InputError("no such folder", str(folder), "name the folder that holds your runs")
    runs = [_listed(run) for run in find_runs(folder)]
    return RunList(str(folder), sorted(runs, key=lambda one: one.when or "", reverse=True))


def find_runs(folder: Path) -> Iterator[Path]:
    """The run folders at or below a folder, by name. Links, hidden folders and what is inside a run are not searched."""
    for place, names, files in os.walk(folder):
        here = Path(place)
        if "recipe.toml" in files:
            yield here
        if "recipe.toml" in files or len(here.relative_to(folder).parts) >= DEPTH:
            names.clear()
        names[:] = sorted(name for name in names if not name.startswith("."))


def _listed(path: Path) -> ListedRun:
    try:
        return _read(path)
    except (FreetfError, OSError) as error:  # a killed training or a half copied folder must not hide the other runs
        return ListedRun(str(path), None, None, DAMAGED, None, None, None, None, str(error))


def _read(path: Path) -> ListedRun:
    run = RunFolder.open(path)
    recipe, manifest, metrics = run.recipe(), run.manifest(), run.metrics()
    status = run_status(manifest, path)
    logged = metrics[-1].step if metrics else 0
    saved = max(map(folder_step, checkpoint_folders(path)), default=0)
    held_out = next(reversed(split_metrics(metrics)[1]), None)
    found = None
    if held_out is not None:
        unit = data_facts(manifest, run).unit(held_out)
        costs = (unit.bits(held_out.ce), unit.bits(held_out.kl), unit.nelbo(held_out))
        found = HeldOut(held_out.step, held_out.split, held_out.loss, *costs, unit.name)
    last = (manifest.get("resumed") or [{}])[-1] if isinstance(manifest.get("resumed"), list) else {}
    began = (last.get("started") if isinstance(last, dict) else None) or manifest.get("started")
    ended = manifest.get("finished") if status in ("done", "stopped", "failed") else None
    steps = recipe.train.steps
    return ListedRun(
        str(path), recipe_name(manifest) or None, recipe.kind, status, max(logged, saved), steps, found, _time(ended) or _time(began)
    )


def _time(value: object) -> str | None:
    """A time of the manifest in one form, in UTC; None where it is no time."""
    with suppress(ValueError, TypeError, OverflowError):
        return datetime.fromisoformat(value).astimezone(UTC).isoformat(timespec="seconds")  # type: ignore[arg-type]
    return None
