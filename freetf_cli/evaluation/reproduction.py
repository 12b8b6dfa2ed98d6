"""Compares a run that was trained again with the original: records of metrics.jsonl, and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from freetf_cli.evaluation.weights import compare_weights
from freetf_cli.records import Metrics
from freetf_cli.records.reproduction import Difference, Reproduction, Terms
from freetf_cli.records.weights import WeightChanges
from freetf_cli.report.units import is_number
from freetf_cli.runs.checkpoint import Checkpoint, checkpoint_folders, folder_step
from freetf_cli.runs.folder import RunFolder

LOOSE = 0.01  # largest relative difference of a held-out loss where sums may be made in another order
SAME = ("device", "name", "platform", "torch")  # of a manifest's device, that decide how sums are made
FIELDS = [field.name for field in dataclasses.fields(Metrics)]


def terms(original: Mapping[str, Any], now: Mapping[str, Any], *, deterministic: bool, tolerance: float | None) -> Terms:
    """What may be required of a repetition. original: the run's manifest; now: of this machine, `device` and `processes` of a manifest."""
    parts = [original, *(one for one in original.get("resumed") or [] if isinstance(one, Mapping))]
    differing = []
    for part in parts:
        was, here = part.get("device") or {}, now["device"]
        keys = SAME if here["device"] != "cpu" else (*SAME, "threads")
        differing += [f"{key} is {here[key]}, was {was.get(key)}" for key in keys if here[key] != was.get(key)]
        if part.get("processes") != now["processes"]:
            differing.append(f"processes is {now['processes']}, was {part.get('processes')}")
    kind = str(now["device"]["device"])
    if kind != "cpu" and not deterministic:
        differing.append(f"{kind} sums in no fixed order without train.deterministic")
    if tolerance is not None:
        return Terms(tolerance, "--tolerance")
    return Terms(LOOSE, "; ".join(dict.fromkeys(differing))) if differing else Terms(0.0, f"same {kind}, torch and threads")


def compare_runs(original: Path, again: Path, steps: int, required: Terms) -> Reproduction:
    """Compare two runs up to a step. Held-out losses count where a tolerance is allowed, else every value of every record and weight."""
    first_run, second_run = RunFolder.open(original), RunFolder.open(again)
    pairs = _pairs(first_run.metrics(), second_run.metrics(), steps)
    apart = [_relative(a.loss, b.loss) for a, b in pairs if a and b]
    common = {folder_step(one) for one in checkpoint_folders(original)} & {folder_step(one) for one in checkpoint_folders(again)}
    at = max((step for step in common if step <= steps), default=None)
    changes = None if at is None else _weights(first_run, second_run, at)
    first = _first_difference(pairs, required.tolerance)
    if first is None and at is not None and required.tolerance == 0 and (name := _first_tensor(changes)):
        first = Difference(at, None, name)
    return Reproduction(
        run=str(original),
        again=str(again),
        steps=steps,
        of_steps=first_run.recipe().train.steps,
        terms=required,
        records=len(pairs),
        largest=max(apart, default=0.0),
        weights_step=at,
        weights=changes.all.relative if changes and changes.all else 0.0 if at is not None else None,
        first=first,
        holds=first is None,
    )


def _pairs(a: Sequence[Metrics], b: Sequence[Metrics], steps: int) -> list[tuple[Metrics | None, Metrics | None]]:
    """The records of both runs in their order; None where one run has no more."""
    one, other = ([line for line in lines if line.step <= steps] for lines in (a, b))
    return list(zip_longest(one, other))


def _first_difference(pairs: Sequence[tuple[Metrics | None, Metrics | None]], tolerance: float) -> Difference | None:
    for a, b in pairs:
        if a is None or b is None or (a.step, a.split) != (b.step, b.split):
            line = a or b
            assert line is not None
            places = [None if one is None else f"step {one.step}, {one.split}" for one in (a, b)]
            return Difference(line.step, line.split, "the record", *places)
        if tolerance == 0:
            for key in FIELDS:
                if (was := getattr(a, key)) != (found := getattr(b, key)):
                    return Difference(a.step, a.split, key, was, found)
        elif a.lr is None and _relative(a.loss, b.loss) > tolerance:
            return Difference(a.step, a.split, "loss", a.loss, b.loss)
    return None


def _relative(a: float | None, b: float | None) -> float:
    """|a − b| / max(|a|, |b|); infinite if only one of them is a number."""
    if is_number(a) and is_number(b):
        return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b))
    return 0.0 if is_number(a) == is_number(b) else float("inf")


def _weights(a: RunFolder, b: RunFolder, step: int) -> WeightChanges | None:
    """The changes of the weights of a step; None where their files have the same bytes."""
    one, other = Checkpoint.open(a.checkpoint(step)), Checkpoint.open(b.checkpoint(step))
    return None if one.weights_sha256 == other.weights_sha256 else compare_weights(one.weights, other.weights)


def _first_tensor(changes: WeightChanges | None) -> str:
    if changes is None:
        return ""
    shapes = [one.name for one in (*changes.only_a, *changes.only_b, *changes.reshaped)]
    return next(iter([*shapes, *(one.name for one in changes.tensors if one.change.relative != 0)]), "")
