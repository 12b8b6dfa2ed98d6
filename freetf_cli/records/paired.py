"""Costs of two models on the same sequences, and their paired difference B − A: a part of the record of `freetf compare`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from freetf_cli.records import Unit
from freetf_cli.records.likelihood import Cost
from freetf_cli.report.blocks import Chart, Section, Series, Table
from freetf_cli.report.units import MISSING, number, signed

METRICS = ("nll", "elbo", "ce_posterior", "ce_prior", "kl")
LEAST_COST = 0.001  # bits per token; a change relative to a smaller cost says nothing
LATENT_METRICS = ("ce_posterior", "ce_prior", "kl")  # a baseline has none of these
STRETCHES = 8  # of positions: rows that fit on a screen


@dataclass(frozen=True)
class Difference(Cost):
    """B − A of a cost: its mean and paired 95 % interval."""

    excludes_zero: bool

    @property
    def direction(self) -> Literal["lower", "higher", "none"]:
        """Where B lies, if the interval excludes zero."""
        return "none" if not self.excludes_zero else "lower" if self.nats_per_token < 0 else "higher"

    def text(self, unit: Unit) -> str:
        """`-0.12 [-0.20, -0.05]`."""
        return f"{signed(unit.bits(self.nats_per_token), unit.digits)} {self.interval(unit)}".strip()


@dataclass(frozen=True)
class MetricPair:
    """A metric of both models. A baseline lacks some metrics: then its cost and the difference are None."""

    a: Cost | None
    b: Cost | None
    difference: Difference | None
    relative_percent: float | None  # 100 (B − A) / |A|

    def percent(self) -> str:
        """`-2.50`; a dash where A is not known to be above zero, or hardly is."""
        known = self.a is not None and self.a.low > 0 and self.a.bits_per_token >= LEAST_COST
        return signed(self.relative_percent if known else None)

    def cells(self, unit: Unit) -> list[str]:
        """A, B, B − A, the same in per cent, and whether the interval shows a difference."""
        values = [cost.text(unit) if cost else MISSING for cost in (self.a, self.b)]
        apart, seen = "not compared", ""
        if self.difference is not None:
            apart, seen = self.difference.text(unit), {"none": "no"}.get(self.difference.direction, f"B {self.difference.direction}")
        return [*values, apart, self.percent(), seen]


@dataclass(frozen=True)
class Positions:
    """CE + KL (a baseline's CE) at each position, bits per token; NaN where no target counts."""

    a: list[float]
    b: list[float]
    targets: list[int]  # how many were counted at each position

    def rows(self) -> list[list[str]]:
        """Means over stretches of positions, weighted by targets: A, B and B − A in bits per token."""
        counted = [place for place, targets in enumerate(self.targets) if targets]
        stretches = min(STRETCHES, len(counted))
        rows = []
        for start, end in pairwise(round(i * len(counted) / max(stretches, 1)) for i in range(stretches + 1)):
            part = counted[start:end]
            weight = sum(self.targets[place] for place in part)
            a, b = (sum(values[place] * self.targets[place] for place in part) / weight for values in (self.a, self.b))
            name = str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}"
            rows.append([name, number(a, 3), number(b, 3), signed(b - a, 3)])
        return rows

    def section(self) -> Section:
        curves = [Series(name, range(len(self.targets)), values, name.lower()) for name, values in (("A", self.a), ("B", self.b))]
        chart = Chart("CE + KL (a baseline: CE)", curves, "position", "bits/token", detail=True)
        table = Table(["positions", "A", "B", "B − A"], self.rows(), align="lrrr")
        return Section("By position: CE + KL (a baseline: CE), bits/token", [chart, table] if len(table.rows) > 1 else [])
