"""The data that a run is measured on: its own held-out split, or another folder of the same tokenizer and task."""

from __future__ import annotations

from pathlib import Path

from freetf_cli.checkpoint import Checkpoint
from freetf_cli.data.batches import DataSource, open_data
from freetf_cli.errors import InputError
from freetf_cli.recipe import DataConfig


def open_run_data(checkpoint: Checkpoint, folder: Path | None = None, context: int | None = None) -> DataSource:
    """The run's own data, which must be what it was trained on, or a data folder named by the user.

    context: T; default the model's. InputError where the tokenizer or the task is not the run's: the same ids would mean other things.
    """
    recipe = checkpoint.recipe
    config = recipe.data if folder is None else DataConfig(dir=str(folder), rows=recipe.data.rows)
    source = open_data(config, context=context or recipe.model.context, seed=recipe.train.seed)
    where = str(folder or recipe.data.dir or recipe.data.task)
    before = checkpoint.state["data"]
    if source.tokenizer.sha256 != checkpoint.tokenizer().sha256:
        raise InputError("the data's tokenizer is not the run's (its SHA-256 differs)", where, "name data made like the run's with --data")
    if (source.facts.task, source.facts.params) != (before.get("task"), before.get("params") or {}):
        what = f"the data is of {_task(source.facts.task, source.facts.params)}, the run's of {_task(before.get('task'), before['params'])}"
        raise InputError(what, where, "name data of the run's own task with --data")
    if folder is None and source.facts.sha256 != before["sha256"]:
        hint = f"--data {where} takes it as it is now"
        raise InputError("the data is not what the run was trained on (its SHA-256 differs)", where, hint)
    return source


def _task(name: str | None, params: dict[str, object]) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in params.items())
    return "plain text" if name is None else f"task '{name}'" + (f" ({settings})" if settings else "")
