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
from freetf_cli.evaluation.benchmarks.run import ANSWERS, SETTINGS
from freetf_cli.generation.replay import text_lines
from freetf_cli.records.benchmarks import Benchmarks


def rescore(files: Sequence[Path], stage: Stage, *, allow_code: bool) -> list[Benchmarks]:
    """The scores of item files, those in the same folder as one result. A folder stands for all item files in it.

    Raises InputError for any other file, and for generated code unless allow_code is set.
    """
    folders: dict[Path, list[Path]] = {}
    for file in files:
        paths = _items_of(file) if file.is_dir() else [file]
        folders.setdefault(paths[0].parent, []).extend(paths)
    return [_rescore(folder, list(dict.fromkeys(paths)), stage, allow_code=allow_code) for folder, paths in folders.items()]


def _rescore(folder: Path, paths: Sequence[Path], stage: Stage, *, allow_code: bool) -> Benchmarks:
    about = _about(folder)
    scores = []
    for path in paths:
        started, items = time.perf_counter(), _read(path)
        benchmark = BENCHMARKS[items[0]["task"]]
        if benchmark.kind == "code" and not allow_code:
            raise InputError(f"the programs in {path.name} have to run again", str(path), "--allow-code-execution permits it")
        score_items(benchmark, items, stage)
        scores.append(score(benchmark, items, items[0]["shots"], time.perf_counter() - started))
    return Benchmarks(
        run=about.get("run", str(paths[0])),
        kind=about.get("kind"),
        steps=[about["step"]] if "step" in about else [],
        z=about.get("z") if about.get("kind") == "free" else None,
        draws=about.get("draws", 1),
        seed=about.get("seed", 0),
        limit=None,
        tasks=scores,
        folder=str(folder),
    )


def _items_of(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.glob("*.jsonl") if path.name != ANSWERS)
    if not found:
        raise InputError("--rescore: the folder has no items", str(folder), "name the folder that `freetf evaluate -o` wrote")
    return found


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
