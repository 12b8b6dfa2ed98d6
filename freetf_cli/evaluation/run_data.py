"""Opens the data that a run is measured on: its own, or another folder with the same tokenizer and task."""

from __future__ import annotations

from pathlib import Path

from freetf_cli.config.recipe import DataConfig
from freetf_cli.data.batches import DataSource, open_data
from freetf_cli.data.manifest import MANIFEST, parse_manifest
from freetf_cli.errors import InputError, nearest
from freetf_cli.runs.checkpoint import Checkpoint


def open_split(checkpoint: Checkpoint, folder: Path | None, split: str | None) -> tuple[DataSource, str]:
    """The data to measure a run on, and the held-out split: by default the recipe's. InputError if the data has no such split."""
    source = open_run_data(checkpoint, folder)
    chosen = split or checkpoint.recipe.eval.split
    check_split(source, chosen, checkpoint)
    return source, chosen


def open_run_data(checkpoint: Checkpoint, folder: Path | None = None, context: int | None = None) -> DataSource:
    """The run's own data, or a data folder that the user named.

    context: positions T of a row; default: the model's. InputError if the run's own data has changed since training, or if the tokenizer
    or the task differs from the run's: the same token ids would mean something else.
    """
    recipe = checkpoint.recipe
    if folder is not None or recipe.data.dir is not None:
        _check_manifest(checkpoint, Path(str(folder or recipe.data.dir)))
    config = recipe.data if folder is None else DataConfig(dir=str(folder), rows=recipe.data.rows)
    source = open_data(config, context=context or recipe.model.context, seed=recipe.train.seed)
    where = str(folder or recipe.data.dir or recipe.data.task)
    _check_tokenizer(source.tokenizer.sha256, checkpoint, where)
    _check_task(source.facts.task, source.facts.params, checkpoint, where)
    if folder is None and source.facts.sha256 != checkpoint.state["data"]["sha256"]:
        raise InputError(
            "the data is not what the run was trained on (its SHA-256 differs)", where, f"--data {where} uses it in its present state"
        )
    return source


def _check_manifest(checkpoint: Checkpoint, folder: Path) -> None:
    """Check tokenizer and task before opening the data, whose rows may not fit the model: then the cause is reported, not the symptom."""
    file = folder / MANIFEST
    if not file.is_file():
        return  # opening the data reports it
    about = parse_manifest(file.read_bytes(), file)
    _check_tokenizer(about.tokenizer.sha256, checkpoint, str(folder))
    _check_task(about.task, dict(about.params), checkpoint, str(folder))


def check_split(source: DataSource, split: str, checkpoint: Checkpoint) -> None:
    """Refuse an unknown split of a task, which would generate rows for any name. A data folder checks its own splits."""
    names = {"train", "val", "test", checkpoint.recipe.eval.split}
    if source.rows.size(split) is None and split not in names:
        raise InputError(f"the data has no split '{split}'", hint=nearest(split, names))


def _check_tokenizer(sha256: str, checkpoint: Checkpoint, where: str) -> None:
    if sha256 != checkpoint.tokenizer().sha256:
        raise InputError("the data's tokenizer is not the run's (its SHA-256 differs)", where, "name data made like the run's with --data")


def _check_task(task: str | None, params: dict[str, object], checkpoint: Checkpoint, where: str) -> None:
    own = checkpoint.state["data"]
    if (task, params) != (own.get("task"), own.get("params") or {}):
        what = f"the data is of {_task(task, params)}, the run's is of {_task(own.get('task'), own.get('params') or {})}"
        raise InputError(what, where, "name data of the run's own task with --data")


def _task(name: str | None, params: dict[str, object]) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in params.items())
    return "plain text" if name is None else f"task '{name}'" + (f" ({settings})" if settings else "")
