"""Codes of Z for the values of a label, the record of `find-codes`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from freetf_cli.records.likelihood import Estimate
from freetf_cli.report.blocks import Cell, Facts, Note, Report, Table
from freetf_cli.report.units import count, number

READING = (
    "bits: those of Z that are set more often, or less often, in documents with this label than in the others (false discoveries: at most "
    "one in ten). share: of texts generated with the codes that a reader finds to have the label; prior: the same with Z from the prior."
)
NOTHING = "No bit of Z tells this label: the codes are draws from the prior, and steer nothing."


@dataclass(frozen=True)
class LabelCodes:
    """The codes of one value of a label. shares: of generated texts that the classifier assigns this value; None if it can read none."""

    value: str
    documents: int
    bits: int  # that tell the value
    positions: int  # of Z, that have such a bit
    strongest: float  # log-odds of the bit that tells it best, 0 without one
    share: Estimate | None
    prior: Estimate | None
    file: str


@dataclass(frozen=True)
class FoundCodes:
    """The result of `find-codes`. label: the factor's name; strength: as given; texts: generated for each share."""

    run: str
    step: int
    label: str
    split: str
    all_bits: int
    strength: float
    texts: int
    seed: int
    codes: list[LabelCodes]
    notes: list[str] = field(default_factory=list)

    def report(self) -> Report:
        facts = [("label", self.label), ("learned from", f"{count(sum(one.documents for one in self.codes))} documents of {self.split}")]
        facts += [("bits of Z", count(self.all_bits)), ("strength", number(self.strength, 1))]
        facts += [("texts", f"{count(self.texts)} for each share" if any(one.share for one in self.codes) else "")]
        columns = ["value", "documents", "bits", "positions", "log-odds", "share [95 %]", "prior [95 %]"]
        table = Table(columns, [self._row(one) for one in self.codes], align="lrrrrrr")
        nothing = Note("" if any(one.bits for one in self.codes) else NOTHING, "strong")
        run, first = shlex.quote(self.run), shlex.quote(self.codes[0].file)
        return Report(
            self.run,
            [Facts(facts), table, nothing, Note(READING), *map(Note, self.notes)],
            hints=[f"freetf sample {run} --z {first} --count 4"],
        )

    def _row(self, one: LabelCodes) -> Sequence[Cell]:
        shares = [found.share() if found else "" for found in (one.share, one.prior)]
        return [one.value, count(one.documents), count(one.bits), count(one.positions), number(one.strongest), *shares]
