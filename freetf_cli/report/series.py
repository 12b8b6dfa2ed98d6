"""Curves out of metrics: what the terminal's plot and the report's charts draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from freetf_cli.records import Metrics
from freetf_cli.report.units import Scale, is_number


@dataclass(frozen=True)
class Series:
    """A named curve. NaN in ys is a gap. colour_class names a CSS class of the report and a style of the terminal."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour_class: str

    def points(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if is_number(x) and is_number(y)]


def without_nulls(metrics: Sequence[Metrics]) -> list[Metrics]:
    """NaN for each null: metrics.jsonl has null where a run that diverged had NaN, and a record read back may hold None."""
    names = ("loss", "ce", "kl", "penalty", "above_kappa", "kappa")
    faults: list[dict[str, Any]] = [{name: math.nan for name in names if getattr(line, name) is None} for line in metrics]
    return [replace(line, **changes) if changes else line for line, changes in zip(metrics, faults, strict=True)]


def split_metrics(metrics: Sequence[Metrics]) -> tuple[list[Metrics], list[Metrics]]:
    """Training lines, and held-out lines (whatever that split is called)."""
    train = [line for line in metrics if line.split == "train"]
    return train, [line for line in metrics if line.split != "train"]


def last_metrics(metrics: Sequence[Metrics]) -> Metrics | None:
    """The newest held-out line, else the newest training line."""
    train, held_out = split_metrics(metrics)
    lines = held_out or train
    return lines[-1] if lines else None


def curve(name: str, lines: Sequence[Metrics], value: Callable[[Metrics], float | None], colour_class: str) -> Series:
    ys = [value(line) for line in lines]
    return Series(name, [line.step for line in lines], [math.nan if y is None else y for y in ys], colour_class)


def bit_series(metrics: Sequence[Metrics], to: Scale, *, free: bool) -> list[Series]:
    """CE and, for a Free model, KL and their sum, in bits: training first, so that held-out curves lie on top."""
    train, held_out = split_metrics(metrics)
    main = held_out or train
    found = []
    if held_out and train:
        found.append(curve("CE, train", train, lambda line: to.bits(line.ce), "ce-train"))
        if free:
            found.append(curve("KL, train", train, lambda line: to.bits(line.kl), "kl-train"))
    name = f", {main[0].split}" if main else ""
    if free:
        found.append(curve("CE + KL" + name, main, to.length, "length"))
        found.append(curve("KL" + name, main, lambda line: to.bits(line.kl), "kl"))
    return [*found, curve("CE" + name, main, lambda line: to.bits(line.ce), "ce")]


def y_limit(series: Sequence[Series], floor: float | None = None) -> float | None:
    """A top for the y axis that leaves out the steep first tenth of a run, if that would flatten all the rest. None: nothing to draw.

    The first steps of a run cost ten times what the last ones do; shown in full, they leave a line along the bottom.
    """
    points = [point for one in series for point in one.points()]
    if not points:
        return None
    xs = [x for x, _ in points]
    begin = min(xs) + 0.1 * (max(xs) - min(xs))
    highest = max(y for _, y in points)
    later = max([y for x, y in points if x >= begin] + ([floor] if floor is not None else []))
    return 1.08 * (later if highest > 1.3 * later > 0 else max(highest, later))
