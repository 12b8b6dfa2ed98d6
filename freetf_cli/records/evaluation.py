"""The base of the records that `freetf evaluate` returns: which model was measured, and on which data."""

from __future__ import annotations

from dataclasses import dataclass

from freetf_cli.records import DataFacts
from freetf_cli.records.plan import KINDS
from freetf_cli.report.blocks import Facts, Report
from freetf_cli.report.units import count, duration


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A metric's result. task: the metric's name. kind: free or baseline. seconds: duration of the measurement."""

    run: str
    task: str
    kind: str
    step: int
    split: str
    sequences: int
    seed: int
    facts: DataFacts
    seconds: float

    def report(self) -> Report:
        raise NotImplementedError

    def about(self, *, tokens: int | None = None, floor: str = "") -> Facts:
        """The first block of a report: model, data and size of the measurement."""
        counted = "" if tokens is None else f"{count(tokens)} tokens, "
        facts = [("model", f"{KINDS[self.kind]}, step {count(self.step)}"), ("data", f"{self.facts.name}, split {self.split}")]
        facts += [("measured on", f"{count(self.sequences)} sequences, {counted}seed {self.seed}")]
        return Facts([*facts, ("floor", floor), ("took", duration(self.seconds))])
