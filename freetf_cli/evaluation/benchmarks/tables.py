"""Measured scores in the form of the paper's Tables 1 to 3, beside the paper's own figures, which are labelled as such."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from freetf_cli.durable import read_small
from freetf_cli.errors import InputError
from freetf_cli.evaluation.benchmarks import BENCHMARKS
from freetf_cli.evaluation.benchmarks.run import RESULT
from freetf_cli.records.benchmarks import Benchmarks, PaperRow, PaperTable

PAPER = Path(__file__).with_name("paper.tsv")
NAMES = {one.paper: one.name for one in BENCHMARKS.values() if one.paper}

Measured = tuple[str, Mapping[str, float]]  # a column: its heading, and the scores by benchmark name


def paper_table(number: int, result: Benchmarks, beside: Sequence[Path]) -> PaperTable:
    """The paper's table with a column for each folder in `beside` and one for the result. The folders are those of earlier `evaluate -o`.

    Raises InputError for a folder without a result.
    """
    with PAPER.open(encoding="utf-8", newline="") as file:
        lines = [line for line in file if not line.startswith("#")]
    rows = [row for row in csv.DictReader(lines, delimiter="\t") if row["table"] == str(number)]
    columns = list(dict.fromkeys(row["column"] for row in rows))
    scores = {task.task: task.scores[task.metric].value for task in result.tasks if task.metric in task.scores}
    measured = [*map(saved, beside), (_heading(result.run, result.kind, result.steps), scores)]
    figures = {(row["benchmark"], row["column"]): float(row["value"]) for row in rows}
    metrics = {row["benchmark"]: row["metric"] for row in rows}
    return PaperTable(
        number,
        f"{rows[0]['model']} parameters, {rows[0]['tokens']} tokens",
        [heading for heading, _ in measured],
        columns,
        [
            PaperRow(
                name, metric, [own.get(NAMES.get(name, "")) for _, own in measured], [figures.get((name, column)) for column in columns]
            )
            for name, metric in metrics.items()
        ],
    )


def saved(folder: Path) -> Measured:
    """The heading and the scores of an earlier evaluation. InputError if the folder has no result."""
    file = folder / RESULT if folder.is_dir() else folder
    try:
        found: dict[str, Any] = json.loads(read_small(file))
        scores = {one["task"]: one["scores"][one["metric"]]["value"] for one in found["tasks"] if one["metric"] in one["scores"]}
        return _heading(found["run"], found["kind"], found["steps"]), scores
    except FileNotFoundError:
        raise InputError("--beside: no result of an evaluation", str(file), "name a folder that `freetf evaluate -o` wrote") from None
    except (ValueError, KeyError, TypeError):
        raise InputError("--beside: not the result of an evaluation", str(file), "name a folder that `freetf evaluate -o` wrote") from None


def _heading(run: str, kind: str | None, steps: Sequence[int]) -> str:
    """`text-free (free, mean of 3)`."""
    many = f", mean of {len(steps)}" if len(steps) > 1 else ""
    return f"{Path(run).name} ({kind or 'unknown'}{many})"
