"""The result of `freetf reproduce`: a run that was trained again, compared with the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from freetf_cli.report.blocks import Facts, Report, Verdict
from freetf_cli.report.units import count


@dataclass(frozen=True)
class Terms:
    """The required agreement, and why. tolerance: the largest allowed relative difference of a held-out loss; 0: bitwise equality."""

    tolerance: float
    why: str


@dataclass(frozen=True)
class Difference:
    """The first difference. place: the key of a metrics.jsonl record, or the name of a tensor; a tensor has no split and no values here."""

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
    """The comparison of the first `steps` steps of `of_steps`. first: the first difference; holds: whether the terms are met.

    records: the number of metrics.jsonl records compared; largest: the largest relative difference of a loss in them. weights_step: the
    newest step with a checkpoint in both runs; weights: ‖again − original‖ / ‖original‖ at that step. Both are None if there is none.
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
        losses = "equal losses" if self.largest == 0 else f"losses differ by at most {self.largest:.2g}, relative"
        compared = f"{count(self.records)} records up to step {count(self.steps)} of {count(self.of_steps)}; {losses}"
        weights = ""
        if self.weights is not None:
            weights = f"of step {count(self.weights_step)}: {'equal' if self.weights == 0 else f'relative difference {self.weights:.2g}'}"
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
