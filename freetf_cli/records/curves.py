"""Curves out of a run's metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from freetf_cli.records import Metrics, Unit
from freetf_cli.report.blocks import Reference, Series
from freetf_cli.report.units import number


def split_metrics(metrics: Sequence[Metrics]) -> tuple[list[Metrics], list[Metrics]]:
    """Training lines, and held-out lines of whatever split."""
    return [line for line in metrics if line.split == "train"], [line for line in metrics if line.split != "train"]


def last_metrics(metrics: Sequence[Metrics]) -> Metrics | None:
    """The latest held-out record, or the latest training record if there is none."""
    train, held_out = split_metrics(metrics)
    return next(reversed(held_out or train), None)


def curve(
    name: str, lines: Sequence[Metrics], value: Callable[[Metrics], float | None], role: str = "plain", *, faint: bool = False
) -> Series:
    """One number of metrics lines by step. A null, which metrics.jsonl has where a run diverged, is a gap."""

    def known(line: Metrics) -> float:
        try:
            found = value(line)
        except TypeError:  # arithmetic on a null
            return math.nan
        return math.nan if found is None else found

    return Series(name, [line.step for line in lines], [known(line) for line in lines], role, faint=faint)


def bit_curves(metrics: Sequence[Metrics], unit: Unit, *, free: bool) -> list[Series]:
    """CE and, for a Free model, KL and their sum, in bits: faint in training, held-out on top of it."""
    train, held_out = split_metrics(metrics)
    main = held_out or train
    ce, kl = (lambda line: unit.bits(line.ce)), (lambda line: unit.bits(line.kl))
    found = []
    if held_out and train:
        found.append(curve("CE, train", train, ce, "ce", faint=True))
        found += [curve("KL, train", train, kl, "kl", faint=True)] if free else []
    name = f", {main[0].split}" if main else ""
    if free:
        found += [curve(f"CE + KL{name}", main, unit.nelbo, "nelbo"), curve(f"KL{name}", main, kl, "kl")]
    return [*found, curve(f"CE{name}", main, ce, "ce")]


def floor_line(floor: float | None) -> list[Reference]:
    """The line of the floor in a chart, where it is known."""
    return [] if floor is None else [Reference(floor, f"floor {number(floor)}")]
