"""How often a model is wrong about what a row asks: the record of `evaluate --task answers`."""

from __future__ import annotations

from dataclasses import dataclass

from freetf_cli.records import DataFacts
from freetf_cli.records.likelihood import Estimate
from freetf_cli.records.plan import KINDS
from freetf_cli.report.blocks import Facts, Note, Report, Table
from freetf_cli.report.units import count, duration, share

READING = "A sequence counts as wrong if at any counted position the likeliest token, given the true ones before it, is not the true one."


@dataclass(frozen=True)
class Errors:
    """Rows with any wrong token among those that count, and their share with its 95 % interval (Wilson's)."""

    wrong: int
    share: Estimate

    def cells(self) -> list[str]:
        return [count(self.wrong), share(self.share.value), f"{100 * self.share.low:.1f} – {100 * self.share.high:.1f} %"]


@dataclass(frozen=True)
class Answers:
    """What `evaluate --task answers` measures: the likeliest token at every position that counts, given the true ones before it.

    Greedy generation answers the same up to its first wrong token. errors: of a baseline; of a Free model with Z from the prior, as in
    generation. errors_posterior: with Z from the encoder, which has read the answer; None for a baseline.
    """

    run: str
    task: str
    kind: str
    step: int
    split: str
    sequences: int
    seed: int
    facts: DataFacts
    errors: Errors
    errors_posterior: Errors | None
    seconds: float

    def report(self) -> Report:
        facts = [
            ("model", f"{KINDS.get(self.kind, self.kind)}, step {count(self.step)}"),
            ("data", f"{self.facts.name}, split {self.split}"),
        ]
        facts += [("measured on", f"{count(self.sequences)} sequences, seed {self.seed}"), ("took", duration(self.seconds))]
        rows = [["wrong answers" if self.errors_posterior is None else "wrong answers, prior Z", *self.errors.cells()]]
        if self.errors_posterior is not None:
            rows.append(["posterior Z, which has read them", *self.errors_posterior.cells()])
        table = Table(["", "sequences", "share", "95 % interval"], rows, align="lrrr")
        return Report(self.run, [Facts(facts), table, Note(READING)], kicker="answers")
