"""Curves of a run's metrics, for charts."""

from __future__ import annotations

from collections.abc import Sequence

from freetf_cli.records import Metrics, Unit
from freetf_cli.report.blocks import Reference, Series
from freetf_cli.report.units import number


def split_metrics(metrics: Sequence[Metrics]) -> tuple[list[Metrics], list[Metrics]]:
    """The lines of the train split, and those of every held-out split."""
    return [line for line in metrics if line.split == "train"], [line for line in metrics if line.split != "train"]


def last_metrics(metrics: Sequence[Metrics]) -> Metrics | None:
    """The latest held-out record, or the latest training record if there is none."""
    train, held_out = split_metrics(metrics)
    return next(reversed(held_out or train), None)


def curve(name: str, lines: Sequence[Metrics], key: str, unit: Unit, role: str = "plain", *, faint: bool = False) -> Series:
    """One field of metrics lines by step, in a unit; or CE + KL, named `nelbo`. A null, where a run diverged, is a gap."""
    values = [unit.nelbo(line) if key == "nelbo" else unit.bits(getattr(line, key)) for line in lines]
    return Series(name, [line.step for line in lines], values, role, faint=faint)


def bit_curves(metrics: Sequence[Metrics], unit: Unit, *, free: bool) -> list[Series]:
    """CE and, for a Free model, KL and their sum, in bits. Training curves are faint, behind the held-out ones."""
    train, held_out = split_metrics(metrics)
    main = held_out or train
    names = {"ce": "CE", "kl": "KL", "nelbo": "CE + KL"} if free else {"ce": "CE"}
    behind = {key: name for key, name in names.items() if key != "nelbo" and held_out and train}
    found = [curve(f"{name}, train", train, key, unit, key, faint=True) for key, name in behind.items()]
    return found + [curve(f"{name}, {main[0].split}", main, key, unit, key) for key, name in reversed(names.items())]


def floor_line(floor: float | None) -> list[Reference]:
    """The line of the floor in a chart, where it is known."""
    return [] if floor is None else [Reference(floor, f"floor {number(floor)}")]
