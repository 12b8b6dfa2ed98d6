"""The data that a run is measured on: its own held-out split, or another folder of the same tokenizer and task."""

from __future__ import annotations

from pathlib import Path

from freetf_cli.config.recipe import DataConfig
from freetf_cli.data.batches import DataSource, open_data
from freetf_cli.data.manifest import MANIFEST, parse_manifest
from freetf_cli.errors import InputError, nearest
from freetf_cli.runs.checkpoint import Checkpoint


def open_run_data(checkpoint: Checkpoint, folder: Path | None = None, context: int | None = None) -> DataSource:
    """The run's own data, which must be what it was trained on, or a data folder named by the user.

    context: T; default the model's. InputError where the tokenizer or the task is not the run's: the same ids would mean other things.
    """
    recipe = checkpoint.recipe
    if folder is not None or recipe.data.dir is not None:
        _check_identity(checkpoint, Path(str(folder or recipe.data.dir)))
    config = recipe.data if folder is None else DataConfig(dir=str(folder), rows=recipe.data.rows)
    source = open_data(config, context=context or recipe.model.context, seed=recipe.train.seed)
    where = str(folder or recipe.data.dir or recipe.data.task)
    _check_tokenizer(source.tokenizer.sha256, checkpoint, where)
    _check_task(source.facts.task, source.facts.params, checkpoint, where)
    if folder is None and source.facts.sha256 != checkpoint.state["data"]["sha256"]:
        hint = f"--data {where} takes it as it is now"
        raise InputError("the data is not what the run was trained on (its SHA-256 differs)", where, hint)
    return source


def _check_identity(checkpoint: Checkpoint, folder: Path) -> None:
    """By the manifest alone, so that what is wrong is said before rows that do not fit are complained of."""
    file = folder / MANIFEST
    if not file.is_file():
        return  # opening it says what it is
    about = parse_manifest(file.read_bytes(), file)
    _check_tokenizer(about.tokenizer.sha256, checkpoint, str(folder))
    _check_task(about.task, dict(about.params), checkpoint, str(folder))


def check_split(source: DataSource, split: str, checkpoint: Checkpoint) -> None:
    """A task makes rows for any name of a split; only those that are meant get them. A folder knows its splits itself."""
    names = {"train", "val", "test", checkpoint.recipe.eval.split}
    if source.rows.size(split) is None and split not in names:
        raise InputError(f"the data has no split '{split}'", hint=nearest(split, names))


def _check_tokenizer(sha256: str, checkpoint: Checkpoint, where: str) -> None:
    if sha256 != checkpoint.tokenizer().sha256:
        raise InputError("the data's tokenizer is not the run's (its SHA-256 differs)", where, "name data made like the run's with --data")


def _check_task(task: str | None, params: dict[str, object], checkpoint: Checkpoint, where: str) -> None:
    before = checkpoint.state["data"]
    if (task, params) != (before.get("task"), before.get("params") or {}):
        what = f"the data is of {_task(task, params)}, the run's of {_task(before.get('task'), before.get('params') or {})}"
        raise InputError(what, where, "name data of the run's own task with --data")


def _task(name: str | None, params: dict[str, object]) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in params.items())
    return "plain text" if name is None else f"task '{name}'" + (f" ({settings})" if settings else "")
