"""Computes scores again from the items that an evaluation wrote. It needs neither the model nor the data sets nor lm-eval."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freetf_cli.errors import InputError
from freetf_cli.evaluation import Stage
from freetf_cli.evaluation.benchmarks import BENCHMARKS
from freetf_cli.evaluation.benchmarks.measure import Item, score, score_items
from freetf_cli.evaluation.benchmarks.run import ANSWERS, SETTINGS, Found, mean_scores
from freetf_cli.generation.replay import text_lines
from freetf_cli.records.benchmarks import Benchmarks


def rescore(files: Sequence[Path], stage: Stage, *, allow_code: bool) -> list[Benchmarks]:
    """The scores of item files, those in the same folder as one result. A folder stands for all item files in it.

    A folder with a folder for each checkpoint stands for the mean over them. Raises InputError for any other file, and for generated code
    unless allow_code is set.
    """
    folders: dict[Path, list[list[Path]]] = {}  # the files of each checkpoint
    for file in files:
        each = _checkpoints(file) if file.is_dir() else [[file]]
        if len(each) == 1:
            folders.setdefault(each[0][0].parent, [[]])[0].extend(each[0])
        else:
            folders[file] = each
    return [_rescore(folder, each, stage, allow_code=allow_code) for folder, each in folders.items()]


def _rescore(folder: Path, checkpoints: Sequence[Sequence[Path]], stage: Stage, *, allow_code: bool) -> Benchmarks:
    by_name: dict[str, list[Found]] = {}
    for path in (path for paths in checkpoints for path in dict.fromkeys(paths)):
        started, items = time.perf_counter(), _read(path)
        benchmark = BENCHMARKS[items[0]["task"]]
        if benchmark.kind == "code" and not allow_code:
            raise InputError(f"the programs in {path.name} have to run again", str(path), "--allow-code-execution permits it")
        score_items(benchmark, items, stage)
        found = [score(benchmark, items, items[0]["shots"], time.perf_counter() - started)]
        by_name.setdefault(path.name, []).append((found, items))
    for name, each in by_name.items():
        if len(each) < len(checkpoints) or len({len(items) for _, items in each}) > 1:
            raise InputError(f"--rescore: not all checkpoints have the items of {name}", str(folder), "finish the evaluation with --resume")
    settings = [_about(paths[0].parent) for paths in checkpoints]
    about = settings[-1]
    return Benchmarks(
        run=about.get("run", str(checkpoints[0][0])),
        kind=about.get("kind"),
        steps=[each["step"] for each in settings if "step" in each],
        z=about.get("z") if about.get("kind") == "free" else None,
        draws=about.get("draws", 1),
        seed=about.get("seed", 0),
        limit=None,
        tasks=[score for found in by_name.values() for score in mean_scores(found)],
        folder=str(folder),
    )


def _checkpoints(folder: Path) -> list[list[Path]]:
    """The item files in a folder, or those of each checkpoint in it, in training order. InputError if there are none."""
    inner = [each for each in sorted(folder.iterdir()) if (each / SETTINGS).is_file()]
    for folders in ([folder], inner):
        found = [sorted(path for path in each.glob("*.jsonl") if path.name != ANSWERS) for each in folders]
        if any(found):
            return [paths for paths in found if paths]
    raise InputError("--rescore: the folder has no items", str(folder), "name the folder that `freetf evaluate -o` wrote")


def _about(folder: Path) -> dict[str, Any]:
    """The settings that the evaluation wrote beside its items, which describe the model; empty if they are missing."""
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> list[Item]:
    items = []
    with path.open("rb") as file:
        for number, line in text_lines(file, str(path)):
            try:
                item = json.loads(line)
                known = item["doc"], item["answers"], item["shots"], item["truncated"], item["task"]
            except (ValueError, KeyError, TypeError):
                raise InputError("--rescore: not an item of `freetf evaluate -o`", f"{path}, line {number}") from None
            if known[-1] not in BENCHMARKS:
                raise InputError(
                    f"--rescore: {known[-1]} is one of lm-eval's own tasks, which only lm-eval can score", f"{path}, line {number}"
                )
            items.append(item)
    if not items:
        raise InputError("--rescore: the file has no items", str(path))
    return items
