"""The result of `freetf reproduce`: a run that was trained again, against the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freetf_cli.report.blocks import Facts, Report, Verdict
from freetf_cli.report.units import count


@dataclass(frozen=True)
class Terms:
    """What must agree, and why. tolerance: the largest relative difference of a held-out loss; 0: everything is equal bit by bit."""

    tolerance: float
    why: str


@dataclass(frozen=True)
class Difference:
    """The first value that differs: of a record of metrics.jsonl (place: its key), or of the weights (place: a tensor; no values)."""

    step: int
    split: str | None
    place: str
    original: Any = None
    again: Any = None

    def text(self) -> str:
        if self.split is None:
            return f"{self.place} in the weights of step {count(self.step)}"
        return f"step {count(self.step)}, {self.split}: {self.place} is {self.again!r}, was {self.original!r}"


@dataclass(frozen=True)
class Reproduction:
    """A comparison up to `steps`. records: the compared lines of metrics.jsonl. largest: the largest relative difference of a loss in them.

    weights_step: of the newest checkpoint that both runs have; weights: ‖again − original‖ / ‖original‖ there; None without one.
    """

    run: str
    again: str
    steps: int
    of_steps: int
    terms: Terms
    records: int
    largest: float
    weights_step: int | None
    weights: float | None
    first: Difference | None
    holds: bool

    def report(self) -> Report:
        losses = "equal losses" if self.largest == 0 else f"losses at most {self.largest:.2g} apart, relative"
        compared = f"{count(self.records)} records up to step {count(self.steps)} of {count(self.of_steps)}; {losses}"
        weights = ""
        if self.weights is not None:
            weights = f"of step {count(self.weights_step)}: {'equal' if self.weights == 0 else f'{self.weights:.2g} apart, relative'}"
        bitwise = self.terms.tolerance == 0
        sentence = "Reproduced, bit by bit." if bitwise else f"Reproduced within {self.terms.tolerance:g}."
        facts = [
            ("again", self.again),
            ("required", f"{'equal bit by bit' if bitwise else f'held-out losses within {self.terms.tolerance:g}'}: {self.terms.why}"),
            ("metrics", compared),
            ("weights", weights or "not compared: no step has a checkpoint in both runs"),
            ("first difference", self.first.text() if self.first else ""),
        ]
        return Report(self.run, [Verdict(sentence if self.holds else "Not reproduced.", "good" if self.holds else "bad"), Facts(facts)])
