"""One run of scripts/open_ended.py: `python open_ended_worker.py --rows N RECIPE RUN OPTIONS-OF-TRAIN…`.

It trains the run, or resumes it. Then it measures the checkpoints one by one, at every temperature, and deletes all but the last and the
one with the lowest held-out cost.
What was measured is in RUN/measured.jsonl as it comes, so that an interrupted worker goes on where it ended, and in RUN/measured.json
when all is done.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resumable import MEASURED, train

from freetf_cli.device import resolve_device
from freetf_cli.durable import write_durably
from freetf_cli.evaluation.metrics import Request, default_sequences, load
from freetf_cli.evaluation.run_data import open_split
from freetf_cli.records import to_json
from freetf_cli.runs.checkpoint import checkpoint_folders, folder_step, open_model

TEMPERATURES = (0.0, 0.5, 1.0)
LEFT_OUT = ("schema_version", "run", "facts", "seconds")  # of a metric's record


def measure(folder: Path, rows: int, device: str, done: set[tuple[int, float]]) -> Iterator[dict[str, Any]]:
    """What is measured of a checkpoint, at each temperature that is not done."""
    checkpoint, model = open_model(folder, resolve_device(device), print)
    source, split = open_split(checkpoint, None, None)
    metric = "attempts" if source.task is None or source.task.objects is None else "creativity"
    for temperature in TEMPERATURES:
        if (checkpoint.step, temperature) not in done:
            request = Request(folder.parts[-3], split, rows or default_sequences(metric), temperature=temperature)
            found = json.loads(to_json(load(metric)(checkpoint, model, source, request)))
            yield {name: value for name, value in found.items() if name not in LEFT_OUT}


def held_out(run: Path) -> dict[int, dict[str, float]]:
    """The held-out costs by step, in nats per token."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: {name: line[name] for name in ("ce", "kl") if name in line} for line in lines if line["split"] != "train"}


def best(folders: Sequence[Path], costs: Mapping[int, Mapping[str, float]]) -> Path:
    """The checkpoint with the lowest held-out cost, CE + KL; the last one where none has a cost."""
    costed = [folder for folder in folders if folder_step(folder) in costs]
    return min(costed, key=lambda folder: sum(costs[folder_step(folder)].values())) if costed else folders[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("options", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    device = train(options.recipe, options.run, options.options)
    costs, partial = held_out(options.run), options.run / "measured.jsonl"
    rows = [json.loads(line) for line in partial.read_text(encoding="utf-8").splitlines()] if partial.is_file() else []
    folders = checkpoint_folders(options.run)
    kept = {folders[-1], best(folders, costs)}
    with partial.open("a", encoding="utf-8") as out:
        for folder in folders:
            for found in measure(folder, options.rows, device, {(row["step"], row["temperature"]) for row in rows}):
                rows.append({"name": options.run.name, "recipe": options.recipe, "held_out": costs.get(found["step"]), **found})
                print(json.dumps(rows[-1]), file=out, flush=True)
            if folder not in kept:
                shutil.rmtree(folder)
    write_durably(options.run / MEASURED, json.dumps(rows))


if __name__ == "__main__":
    main()
