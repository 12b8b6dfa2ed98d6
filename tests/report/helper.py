"""Runs made up for the tests: nothing here was trained."""

from __future__ import annotations

import io
import math
import random
from dataclasses import replace
from typing import Any

from freetf_cli.records import Agreement, CheckpointInfo, DataFacts, Metrics, PartCost, Plan, Progress, RunSummary, SampleGroups

FACTS = DataFacts("letters", "letters", 29, 65, 65, 27.412, "ab" * 32)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def letters_row(letter: str, start: int, seed: int) -> str:
    draw = random.Random(seed)
    body = ["_"] * 64
    body[start : start + 8] = letter * 8
    return f"{letter}>" + "".join("!" if draw.random() < 1 / 16 else char for char in body)


def letters_groups(shared: bool, groups: int = 3, count: int = 6) -> SampleGroups:
    rows = [[letters_row("K", (7 * g + (0 if shared else 9 * i)) % 57, 100 * g + i) for i in range(count)] for g in range(groups)]
    return SampleGroups("K> with one Z a group" if shared else "K> with a Z each", shared, rows)


def metrics(step: int, split: str = "train", *, free: bool = True, **changes: Any) -> Metrics:
    fall = math.exp(-step / 150)
    wobble = 0.004 * math.sin(step * 1.7) if split == "train" else 0.0
    ce = (0.245 if free else 0.2925) + 2.8 * fall + wobble
    kl = 0.09 * (1 - fall) + wobble / 3 if free else 0.0
    kappa = 0.125 * math.log(2) if free else 0.0
    line = Metrics(step, step * 256 * 65, split, ce + 0.01, ce, kl, 0.01 if free else 0.0, 0.1 if free else 0.0, kappa, None, None)
    line = replace(line, lr=1e-3 * (1 - step / 5000), grad_norm=0.4) if split == "train" else line
    return replace(line, **changes)


def all_metrics(free: bool = True, steps: int = 4000) -> list[Metrics]:
    lines = []
    for step in range(10, steps + 1, 10):
        lines.append(metrics(step, free=free))
        if step % 200 == 0:
            lines.append(metrics(step, "val", free=free))
    return lines


def progress(step: int = 1240, *, facts: DataFacts = FACTS, free: bool = True, split: str = "train", **changes: Any) -> Progress:
    return Progress(metrics(step, split, free=free, **changes), 4000, 12.34, 224.0, facts)


def plan(free: bool = True) -> Plan:
    parts = [PartCost("embedding", 7_424, 0.0), PartCost("blocks 1-4", 3_150_000, 6.3e6), PartCost("blocks 5-8", 3_150_000, 6.3e6)]
    parts += [PartCost("encoder block", 787_968, 1.6e6), PartCost("latent table", 65_536, 0.0)] if free else []
    memory = {"parameters": 2.9e7, "gradients": 2.9e7, "optimizer": 5.8e7, "activations": 1.9e9, "total": 2.02e9}
    total = sum(part.parameters for part in parts)
    extra = (0.126, 0.125, 0.135) if free else (None, None, None)
    return Plan("letters-free", "free" if free else "baseline", parts, total, 4.3e7, *extra, memory, 4000, 66_560_000, "fp32")


RECIPE: dict[str, Any] = {
    "description": "letters, as in the paper's Figure 4",
    "data": {"task": "letters", "params": {}, "dir": None},
    "model": {"layers": 8, "width": 256, "heads": 8},
    "latent": {"bits": 8, "kappa": 0.125, "objective": {"free_bits": "sequence"}},
    "train": {"steps": 4000, "batch": 256, "lr": 1e-3, "seed": 0},
}
MANIFEST: dict[str, Any] = {
    "argv": ["freetf", "train", "letters-free", "-o", "runs/letters"],
    "versions": {"python": "3.11.9", "torch": "2.13.0", "freetf": "0.1.0"},
    "seed": 0,
    "data_sha256": "ab" * 32,
    "git": None,
}


def summary(free: bool = True, **changes: Any) -> RunSummary:
    made = RunSummary(
        run="runs/letters",
        kind="free" if free else "baseline",
        status="finished",
        recipe=RECIPE if free else {key: value for key, value in RECIPE.items() if key != "latent"},
        facts=FACTS,
        plan=plan(free),
        metrics=all_metrics(free),
        checkpoints=[
            CheckpointInfo(s, f"runs/letters/checkpoints/step-{s:06}", 0.26 - s * 1e-6, s == 4000, 88_000_000) for s in (2000, 4000)
        ],
        samples=[letters_groups(False, groups=2)] + ([letters_groups(True)] if free else []),
        agreement=[Agreement("position", 0.621, 0.051, 45, 108), Agreement("noise", 0.31, 0.0, 45, 108)] if free else [],
        manifest=MANIFEST,
    )
    return replace(made, **changes)
