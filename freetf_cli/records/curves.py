"""Curves of a run's metrics, for charts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from freetf_cli.records import DataFacts, Metrics
from freetf_cli.report.blocks import Reference, Series
from freetf_cli.report.units import number


def split_metrics(metrics: Sequence[Metrics]) -> tuple[list[Metrics], list[Metrics]]:
    """The lines of training steps, and those of evaluations, which have no learning rate; their split may be `train` too."""
    return [line for line in metrics if line.lr is not None], [line for line in metrics if line.lr is None]


def last_metrics(metrics: Sequence[Metrics]) -> Metrics | None:
    """The latest held-out record, or the latest training record if there is none."""
    train, held_out = split_metrics(metrics)
    return next(reversed(held_out or train), None)


def curve(
    name: str, lines: Sequence[Metrics], value: Callable[[Metrics], float | None], role: str = "plain", *, faint: bool = False
) -> Series:
    """A value of metrics lines by step. A null, where a run diverged, is a gap."""
    found = [math.nan if (y := value(line)) is None else y for line in lines]
    return Series(name, [line.step for line in lines], found, role, faint=faint)


def nelbo(facts: DataFacts) -> Callable[[Metrics], float]:
    """CE + KL of a line, in its own unit: lines differ in bytes per token."""
    return lambda line: facts.unit(line).nelbo(line)


def bit_curves(metrics: Sequence[Metrics], facts: DataFacts, *, free: bool) -> list[Series]:
    """CE and, for a Free model, KL and their sum, in bits. Training curves are faint, behind the held-out ones."""
    train, held_out = split_metrics(metrics)
    main = held_out or train
    ce, kl = ((lambda line, key=key: facts.unit(line).bits(getattr(line, key))) for key in ("ce", "kl"))
    names = {"ce": ("CE", ce), "kl": ("KL", kl), "nelbo": ("CE + KL", nelbo(facts))} if free else {"ce": ("CE", ce)}
    behind = {key: one for key, one in names.items() if key != "nelbo" and held_out and train}
    found = [curve(f"{name}, train", train, value, key, faint=True) for key, (name, value) in behind.items()]
    return found + [curve(f"{name}, {main[0].split}", main, value, key) for key, (name, value) in reversed(names.items())]


def floor_line(floor: float | None) -> list[Reference]:
    """The line of the floor in a chart, where it is known."""
    return [] if floor is None else [Reference(floor, f"floor {number(floor)}")]
