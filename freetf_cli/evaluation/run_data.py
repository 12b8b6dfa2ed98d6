"""Opens the data that a run is measured on: its own, or another folder with the same tokenizer and task."""

from __future__ import annotations

from pathlib import Path

from freetf_cli.config.recipe import TASK_SPLITS, DataConfig
from freetf_cli.data.batches import DataSource, open_data
from freetf_cli.data.manifest import MANIFEST, parse_manifest
from freetf_cli.data.rows import TRAIN
from freetf_cli.errors import InputError, nearest
from freetf_cli.runs.checkpoint import Checkpoint


def open_split(checkpoint: Checkpoint, folder: Path | None, split: str | None) -> tuple[DataSource, str]:
    """The data to measure a run on, and the held-out split: by default the recipe's. InputError if the data has no such split."""
    source = open_run_data(checkpoint, folder)
    chosen = split or checkpoint.recipe.eval.split
    check_split(source, chosen)
    return source, chosen


def open_run_data(checkpoint: Checkpoint, folder: Path | None = None, context: int | None = None, *, documents: bool = False) -> DataSource:
    """The run's own data, or a data folder that the user named.

    context: positions T of a row; default: the model's. documents: a document in each row, however the run was trained. InputError if the
    run's own data has changed since training, or if the tokenizer or the task differs from the run's: the same token ids would mean
    something else.
    """
    recipe = checkpoint.recipe
    config = recipe.data if folder is None else DataConfig(dir=str(folder), rows=recipe.data.rows)
    if documents and config.dir is not None:
        config = config.model_copy(update={"rows": "documents"})
    if folder is None and config.dir is not None:
        config = config.model_copy(update={"dir": checkpoint.data_folder(config.dir)})
    where = str(config.dir or config.task)
    manifest = Path(where) / MANIFEST
    if config.dir is not None and manifest.is_file():
        # Before the data is opened, whose rows may not fit the model: the cause is reported, not the symptom.
        about = parse_manifest(manifest.read_bytes(), manifest)
        _check_same_kind(checkpoint, about.tokenizer.sha256, about.task, dict(about.params), where)
    source = open_data(config, context=context or recipe.model.context, seed=recipe.train.seed)
    _check_same_kind(checkpoint, source.tokenizer.sha256, source.facts.task, source.facts.params, where)
    if folder is None and source.facts.sha256 != checkpoint.state["data"]["sha256"]:
        hint = f"--data {where} uses it in its present state"
        raise InputError("the data is not what the run was trained on (its SHA-256 differs)", where, hint)
    return source


def check_split(source: DataSource, split: str) -> None:
    """Refuse an unknown split of a task, which would generate rows for any name. A data folder checks its own splits."""
    if source.rows.size(split) is None and split not in (TRAIN, *TASK_SPLITS):
        raise InputError(f"the data has no split '{split}'", hint=nearest(split, (TRAIN, *TASK_SPLITS)))


def _check_same_kind(checkpoint: Checkpoint, tokenizer_sha256: str, task: str | None, params: dict[str, object], where: str) -> None:
    """Refuse data with another tokenizer or task than the run's."""
    if tokenizer_sha256 != checkpoint.tokenizer().sha256:
        raise InputError("the data's tokenizer is not the run's (its SHA-256 differs)", where, "name data made like the run's with --data")
    own = checkpoint.state["data"]
    expected = own.get("task"), own.get("params") or {}
    if (task, params) != expected:
        what = f"the data is of {_task_text(task, params)}, the run's is of {_task_text(*expected)}"
        raise InputError(what, where, "name data of the run's own task with --data")


def _task_text(name: str | None, params: dict[str, object]) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in params.items())
    return "plain text" if name is None else f"task '{name}'" + (f" ({settings})" if settings else "")
