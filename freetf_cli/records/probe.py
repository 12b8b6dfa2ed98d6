"""What Z encodes: the record of `probe-latent` on one run, its parts and its report. Bits are per sequence unless a name says otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from freetf_cli.records import DataFacts
from freetf_cli.records.glossary import glossary
from freetf_cli.records.intervention import FactorInformation, Intervention, sizes_text
from freetf_cli.records.likelihood import Cost, Estimate, cost_table
from freetf_cli.report import blocks
from freetf_cli.report.blocks import Chart, Facts, Mood, Note, Reference, Report, Section, Series, Table
from freetf_cli.report.units import count, duration, is_number, kappa, number, share

SYMBOLS = ("CE", "KL", "CE + KL", "Z", "κ", "I(Z; factor)", "H")
MOODS: dict[str, Mood] = {"unused": "warn", "global": "good"}

# Under each heading of a page: what the number is, how it was estimated, and when not to trust it.
RATE = (
    "KL(Q(Z|S) ‖ P) is what the encoder sends through Z, a mean over the sequences. It is the sum of the information of Z about the "
    "sequence, I(S; Z), and the mismatch between the average posterior and the prior, which carries no information. Both are bracketed "
    "by bounds from a finite number of sequences, not measured exactly."
)
ABLATION = (
    "The cost of the same sequences with Z from their own posterior, from another sequence's, and from the prior. It says whether "
    "the decoder needs its Z, not what Z says; a decoder that an unusual Z confuses pays as well."
)
SWAP = (
    "Z is inferred from a sequence and used under another prompt: how often the output has that sequence's factor. "
    "Chance is the same count against a sequence that gave no Z. Intervals are over sequences."
)
DECODING = (
    "A probe is trained to predict the factor and tested on others of the sequences. Its accuracy is what that probe can read, not "
    "information: a stronger probe may read more, and the decoder need not use what a probe reads. Compare it with the majority and with "
    "shuffled labels. The bits, H minus the probe's cross-entropy, bound from below what Z holds. Read from the hidden state, they show "
    "what such a probe can read at all; from the sequence, what the best of several readers finds in all that the encoder sees."
)


@dataclass(frozen=True)
class Rate:
    """What flows through Z on held-out sequences, with Z from the encoder, in bits per sequence.

    KL = information + mismatch. Two bounds bracket each, and each bound is an estimate with an interval of its own. Where tokens share a Z,
    it counts once. What a latent has not, such as bits, is None.
    """

    kl: Estimate  # KL(Q(Z|S) ‖ P)
    ce: Estimate
    nelbo: Estimate  # CE + KL, the negative ELBO
    by_position: list[Estimate]  # mean KL at each input position that has a Z of its own, bits per token; without the row's bits
    by_bit: list[Estimate] | None  # KL of each of the H bits of a Z, summed over positions
    kappa: float  # bits per token
    above_kappa: Estimate  # share of tokens whose KL, without the row's bits, exceeds κ; of Zs where tokens share them
    active_bits: Estimate | None  # how many bits have a posterior probability that varies over sequences (variance above 0.01)
    all_bits: int | None  # Zs · H, and the row's bits
    information_low: Estimate  # of the mutual information I(S; Z) of sequence and Z; at most log2 of `paired`
    information_high: Estimate
    mismatch_low: Estimate  # of KL(aggregate posterior ‖ P), which carries no information and which samples from the prior lack
    mismatch_high: Estimate
    imbalance: Estimate | None  # the part of the mismatch that single bits show: each bit's mean against 1/2
    efficiency: Estimate | None  # (floor − CE) / KL; None where no floor is known, or where the KL may be less than half a bit
    floor: float | None
    sequences: int
    paired: int  # sequences from which the information was estimated
    targets: float  # counted targets in a sequence, on average
    positions: list[int] = field(default_factory=list)  # of by_position: all, or those that infer a Z; empty in results of before: all
    by_dim: list[Estimate] | None = None  # KL of each of the K dimensions (numbers) of a Z, summed over positions
    active_dims: Estimate | None = None  # how many dimensions have a KL above 0.01 bits, a mean over sequences
    active_units: Estimate | None = None  # how many have a posterior mean that varies over sequences (variance above 0.01)
    all_dims: int | None = None  # Zs · K
    row_bits: int = 0  # how many of the last entries of by_bit belong to the whole row, as a plan's do
    row_kl: Estimate | None = None  # the part of kl in them; None if there are none

    def section(self) -> Section:
        kappa_line = [Reference(self.kappa, f"κ {number(self.kappa)}", "nelbo")]
        charts = []
        if len(self.by_position) > 1:
            places = _with_intervals(self.by_position, "kl", self.positions)
            unit = "bits/token" if self.has_own else "bits/Z"
            charts.append(
                Chart(
                    "KL by position" + ", without the row's bits" * bool(self.row_bits),
                    [places],
                    "position",
                    unit,
                    "bars",
                    references=kappa_line,
                )
            )
        for found, name in ((self.by_bit, "bit"), (self.by_dim, "dimension")):
            if found is not None:
                whole = f"KL by {name} of a token, summed over positions" if self.has_own else f"KL by {name} of Z"
                whole += f"; from {len(found) - self.row_bits} on, bits of the row" if self.row_bits else ""
                charts.append(Chart(whole, [_with_intervals(found, "blue")], name, "bits/sequence", "bars", small=True))
        shown = [Facts(self._facts()), Note(self._ceiling()), *(one for one in charts if any(map(is_number, one.series[0].y)))]
        return Section("Rate: what flows through Z", shown, RATE)

    @property
    def has_own(self) -> bool:
        """Whether every token has a Z of its own."""
        return len(self.by_position) > 1 and self.positions in ([], list(range(len(self.by_position))))

    def _facts(self) -> list[tuple[str, str]]:
        floor = f"; floor {number(self.floor)}" if self.floor is not None else ""
        return [
            ("KL", f"{self.kl.text()} bits/sequence"),
            ("KL of the row's bits", f"{self.row_kl.text()} bits/sequence, of {self.row_bits} bits" if self.row_kl else ""),
            ("CE, posterior Z", f"{self.ce.text()} bits/sequence{floor}"),
            ("CE + KL", f"{self.nelbo.text()} bits/sequence{floor}"),
            ("efficiency", self.saving()),
            ("information I(S; Z)", _bracket(self.information_low, self.information_high)),
            ("prior mismatch", _bracket(self.mismatch_low, self.mismatch_high)),
            ("seen in single bits", f"{self.imbalance.text()} bits/sequence" if self.imbalance else ""),
            ("above κ", self._above()),
            ("active bits", _of(self.active_bits, self.all_bits)),
            ("active dimensions", _of(self.active_dims, self.all_dims, " have a mean KL above 0.01 bits")),
            ("active units", _of(self.active_units, self.all_dims, " have a mean of variance above 0.01")),
        ]

    def _above(self) -> str:
        """How many tokens, or Zs that tokens share, have a KL above κ."""
        whose, unit = ("tokens", "bits/token") if self.has_own else ("Zs", "bits")
        without = ", without the row's bits" if self.row_bits else ""
        return f"{self.above_kappa.share()} of {whose} have a KL above κ = {number(self.kappa)} {unit}{without}"

    def saving(self) -> str:
        """What a bit of KL saves, in words; empty where that is unknown."""
        if self.efficiency is None:
            return ""
        if self.efficiency.high < 0:
            return "none: even with posterior Z, CE lies above the floor"
        return f"{self.efficiency.text()} bits of CE saved by each bit of KL"

    def _ceiling(self) -> str:
        """The highest lower end that this number of sequences can show, and whether it was reached."""
        most = math.log2(self.paired)
        reached = self.information_low.value > most - 0.5
        words = f"From {count(self.paired)} sequences the bracket's lower end can show at most log2 of their number, {most:.2f} bits"
        return words + (": it has reached that, so there may be more." if reached else ".")


def _bracket(low: Estimate, high: Estimate) -> str:
    """Two bounds of one number, each with its interval; written once where they agree."""
    return f"{' to '.join(dict.fromkeys((low.text(), high.text())))} bits/sequence"


def _of(found: Estimate | None, total: int | None, what: str = "") -> str:
    """`12 [10, 13] of 64`; empty for None."""
    return "" if found is None or total is None else f"{found.text(0)} of {count(total)}{what}"


def _with_intervals(found: Sequence[Estimate], role: str, places: Sequence[int] | None = None) -> Series:
    values, low, high = zip(*((one.value, one.low, one.high) for one in found), strict=True)
    return Series("KL", places or range(len(found)), values, role, low, high)


@dataclass(frozen=True)
class LatentAblation:
    """CE with Z from the posterior, with the posterior Z of another sequence, and with Z from the prior."""

    posterior: Cost
    other: Cost
    prior: Cost
    other_less_posterior: Estimate  # what a wrong Z costs, with a paired interval, nats per token

    def section(self) -> Section:
        costs = {"the same sequence": self.posterior, "another sequence": self.other, "the prior": self.prior}
        note = Note(f"A wrong Z costs {self.other_less_posterior.text(4)} nats/token (paired over sequences).")
        return Section("Latent ablation: does the decoder need its Z?", [cost_table("CE with Z from", costs), note], ABLATION)


@dataclass(frozen=True)
class LatentSwap:
    """Z inferred from a sequence A generates under another prompt B: how often B's output has A's factor."""

    factor: str
    taken: Estimate  # share of outputs (noise: common places over all)
    chance: Estimate  # the same under the same prompts with the Zs of other sequences
    sequences: int  # outputs in which the factor could be read


@dataclass(frozen=True)
class Decoding:
    """A probe that predicts a factor from `source`, on held-out sequences.

    source: "Z"; "hidden", the state at the injection layer; or "sequence", the best of the two probes of that state and of the reader that
    reads the factor from outputs, chosen without the sequences that it is tested on.
    """

    factor: str
    source: str
    probe: str  # "linear", "mlp" or "reader"
    accuracy: Estimate  # share right (noise: mean over sites)
    majority: float  # accuracy of always saying the commonest
    shuffled: float  # accuracy of the same probe trained on shuffled labels
    bits: Estimate  # H(factor) less the cross-entropy, at least 0: what a reader of this kind can use (noise: sum over sites)
    entropy: float  # H(factor) of the tested labels


@dataclass(frozen=True)
class Verdict:
    """What Z is used for, in words."""

    label: str  # unused, global, details, copying, or used (of no known factor)
    sentence: str
    evidence: list[str]


@dataclass(frozen=True)
class ProbeResult:
    """Everything that `probe-latent` measures on one run."""

    run: str
    step: int
    facts: DataFacts
    bits: int | None  # of a Z, H; None for another kind of latent
    kappa: float
    split: str
    seed: int
    rate: Rate
    latent_ablation: LatentAblation
    intervention: Intervention | None
    latent_swap: list[LatentSwap]
    decoding: list[Decoding]
    verdict: Verdict
    notes: list[str]
    seconds: float
    dims: int | None = None  # numbers of a Z, K; None for another kind of latent
    every: int | Literal["sequence"] = 1  # tokens that share one Z

    def report(self) -> Report:
        found = self.verdict
        about = [("run", self.run), ("sample", sizes_text(self.factors())), ("seed", str(self.seed)), ("took", duration(self.seconds))]
        taken = [[one.factor, one.taken.share(), one.chance.share(), count(one.sequences)] for one in self.latent_swap]
        read = []
        for one in self.decoding:
            accuracies = [one.accuracy.share(), share(one.majority), share(one.shuffled)]
            by = f"{one.source}, {'best: ' * (one.source == 'sequence')}{one.probe}"
            read.append([one.factor, by, *accuracies, f"{one.bits.text()} of {number(one.entropy)}"])
        swap = Table(["factor", "taken over", "chance", "sequences"], taken, align="lrrr")
        decoding = Table(["factor", "read from, by", "accuracy", "majority", "shuffled", "bits of H"], read, align="llrrrr")
        reading = Note("Accuracy is what that probe can read, not information." if read else "")
        return Report(
            PurePath(self.run).name or self.run,
            [
                blocks.Verdict(found.sentence, MOODS.get(found.label, ""), f"Verdict: {found.label}", found.evidence),
                Facts(about),
                self.rate.section(),
                self.latent_ablation.section(),
                *([self.intervention.section()] if self.intervention else []),
                Section("Latent swap: Z of a sequence under another prompt", [swap], SWAP),
                Section("Decoding: what a probe reads on sequences that it did not learn from", [decoding, reading], DECODING),
                Section("Notes", [Note(f"· {line}") for line in self.notes]),
                Facts([("data, SHA-256", self.facts.sha256)], detail=True),
            ],
            kicker="what Z encodes · probe-latent",
            about=[
                f"{self._latent()}, κ = {kappa(self.kappa)} bits/token",
                f"{self.facts.name}, {count(self.rate.sequences)} sequences of split {self.split}, step {count(self.step)}",
            ],
            glossary=glossary(*SYMBOLS),
        )

    def _latent(self) -> str:
        """`16 bits of Z for each token`, `32 normal numbers of Z for a sequence`, or what else Z is."""
        of_row = self.rate.row_bits
        size, unit = (self.bits and self.bits - of_row, "bit") if self.dims is None else (self.dims, "normal number")
        parts = "one Z" if size is None else f"{size} {unit if size == 1 else f'{unit}s'} of Z"
        return (
            f"{parts} for {'each token' if self.every == 1 else 'a sequence' if self.every == 'sequence' else f'every {self.every} tokens'}"
            + (f" and {of_row} for the row" if of_row else "")
        )

    def factors(self) -> list[FactorInformation]:
        return self.intervention.factors if self.intervention else []
