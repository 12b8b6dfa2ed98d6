"""What `probe-latent` measures on one run. Information and KL are in bits per sequence unless a name says otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from freetf_cli.records.likelihood import Cost, Estimate
from freetf_cli.records.samples import SampleGroups
from freetf_cli.report import blocks
from freetf_cli.report.blocks import Chart, Facts, Grid, Interval, Intervals, Mood, Note, Reference, Samples, Section, Series, Table
from freetf_cli.report.units import bracket, count, fraction, is_number, number, share, times

ROLES = ("plain", "target", "noise", "kl", "nelbo", "green")
MAP_ROLES = ("target", "noise", "kl", "blue")
FACTOR_ROLES = {"position": "target", "noise": "noise"}
SHOWN = {"letters": ("position", "noise")}  # the letter is given by the prompt
MOODS: dict[str, Mood] = {"unused": "warn", "global": "good"}

# Under each heading of a page: what the number is, how it was estimated, and when not to trust it.
RATE = (
    "KL(Q(Z|S) ‖ P) is what the encoder sends through Z, a mean over held-out sequences. It is the sum of the information of Z about the "
    "sequence, I(S; Z), and the mismatch between the average posterior and the prior, which carries no information. Both are bracketed "
    "by bounds from a finite number of sequences, not measured exactly."
)
ABLATION = (
    "The cost of the same held-out sequences with Z from their own posterior, from another sequence's, and from the prior. It says whether "
    "the decoder needs its Z, not what Z says; a decoder that an unusual Z confuses pays as well."
)
INTERVENTION = (
    "Each group holds one Z from the prior and samples many outputs of one prompt. I(Z; factor) is how much of the factor's entropy H "
    "the choice of Z determines. The shuffled control is the same estimate after the outputs were assigned to Zs at random: a value that "
    "does not exceed it is chance. A sum over sites is a lower bound of the whole where the sites are independent. Intervals are over Zs, "
    "not over training seeds."
)
SHUFFLED = "[low, high]: 95 % interval over Zs. shuffled: the same estimate after the outputs were assigned to Zs at random."
MAPS = "Each row is one Z, each column a position of the output; the stronger the colour, the more of that Z's outputs have it there."
SWAP = (
    "Z is inferred from a sequence and used under another prompt: how often the output has that sequence's factor. "
    "Chance is the same count against a sequence that gave no Z. Intervals are over sequences."
)
DECODING = (
    "A probe is trained to predict the factor and tested on held-out sequences. Its accuracy is what that probe can read, not "
    "information: a stronger probe may read more, and the decoder need not use what a probe reads. Compare it with the majority and with "
    "shuffled labels. The bits, H minus the probe's cross-entropy, bound from below what Z holds."
)


@dataclass(frozen=True)
class Rate:
    """What flows through Z on held-out sequences, with Z from the encoder.

    kl: KL(Q(Z|S) ‖ P), ce, and their sum nelbo, the negative ELBO, bits per sequence. by_position: mean KL at each input position, bits;
    by_bit: its sum over positions for each of the H bits of a token, bits. above_kappa: share of tokens whose KL exceeds κ; kappa: bits
    per token.
    active_bits: how many of the `all_bits` = T·H bits have a posterior probability that varies over sequences (variance above 0.01).
    KL = information + mismatch: `information_low` … `information_high` bracket the mutual information I(S; Z) of sequence and Z (from
    `paired` sequences; its lower end cannot exceed log2 of their number); `mismatch_low` … `mismatch_high` bracket
    KL(aggregate posterior ‖ P), which carries no information and which sampling from the prior does not reproduce.
    imbalance: the part of the mismatch that single bits show (each bit's mean against 1/2), bits per sequence.
    efficiency: (floor − CE) / KL, bits of CE saved by a bit of KL; None where no floor is known, or hardly any KL flows.
    targets: counted targets in a sequence, on average.
    """

    kl: Estimate
    ce: Estimate
    nelbo: Estimate
    by_position: list[float]
    by_bit: list[float]
    kappa: float
    above_kappa: float
    active_bits: int
    all_bits: int
    information_low: float
    information_high: float
    mismatch_low: float
    mismatch_high: float
    imbalance: float
    efficiency: Estimate | None
    floor: float | None
    sequences: int
    paired: int
    targets: float

    def section(self) -> Section:
        charts = [
            Chart("KL by position", [_profile(self.by_position)], "position", "bits/token", "bars", references=[self._kappa()]),
            Chart(
                "KL by bit of a token, summed over positions", [_profile(self.by_bit, "blue")], "bit", "bits/sequence", "bars", small=True
            ),
        ]
        shown = [Facts(self._facts()), Note(self.ceiling()), *(one for one in charts if any(map(is_number, one.series[0].y)))]
        return Section("Rate: what flows through Z", shown, RATE)

    def _kappa(self) -> Reference:
        return Reference(self.kappa, f"κ {number(self.kappa)}", "nelbo")

    def _facts(self) -> list[tuple[str, str]]:
        floor = f"; floor {number(self.floor)}" if self.floor is not None else ""
        efficiency = f"{self.efficiency.text()} bits of CE saved by each bit of KL" if self.efficiency is not None else ""
        active = share(fraction(self.active_bits, self.all_bits))
        return [
            ("KL", f"{self.kl.text()} bits/sequence"),
            ("CE, posterior Z", f"{self.ce.text()} bits/sequence{floor}"),
            ("CE + KL", f"{self.nelbo.text()} bits/sequence{floor}"),
            ("efficiency", efficiency),
            ("information I(S; Z)", f"{bracket(self.information_low, self.information_high)} bits/sequence"),
            ("prior mismatch", f"{bracket(self.mismatch_low, self.mismatch_high)} bits/sequence"),
            ("seen in single bits", f"{number(self.imbalance)} bits/sequence"),
            ("above κ", f"{share(self.above_kappa)} of tokens have a KL above κ = {number(self.kappa)} bits/token"),
            ("active bits", f"{count(self.active_bits)} of {count(self.all_bits)} ({active})"),
        ]

    def ceiling(self) -> str:
        """How far the bracket can reach, and whether it has reached that."""
        if self.paired <= 0:
            return ""
        most = math.log2(self.paired)
        reached = is_number(self.information_low) and self.information_low > most - 0.5
        words = f"From {count(self.paired)} sequences the bracket's lower end can show at most log2 of their number, {most:.2f} bits"
        return words + (": it has reached that, so there may be more." if reached else ".")


def _profile(values: list[float], role: str = "kl") -> Series:
    return Series("KL", range(len(values)), values, role)


@dataclass(frozen=True)
class LatentAblation:
    """CE with Z from the posterior, with the posterior Z of another sequence, and with Z from the prior.

    other_less_posterior: what a wrong Z costs, with a paired interval, nats per token.
    """

    posterior: Cost
    other: Cost
    prior: Cost
    other_less_posterior: Estimate

    def section(self) -> Section:
        costs = [("the same sequence", self.posterior), ("another sequence", self.other), ("the prior", self.prior)]
        whole = all(cost.bits_per_sequence is not None for _, cost in costs)
        rows = [
            [name, *cost.nats(), number(cost.bits_per_token, 4), *([number(cost.bits_per_sequence)] if whole else [])]
            for name, cost in costs
        ]
        columns = ["CE with Z from", "nats/token", "95 % interval", "bits/token", *(["bits/sequence"] if whole else [])]
        note = f"A wrong Z costs {self.other_less_posterior.text(4)} nats/token (paired over sequences)."
        return Section("Latent ablation: does the decoder need its Z?", [Table(columns, rows, align="lrrrr"), Note(note)], ABLATION)


@dataclass(frozen=True)
class FactorInformation:
    """I(Z; factor) in bits, over generated sequences: `groups` Zs from the prior, `count` sequences each, all from one prompt.

    entropy: of the factor over all outputs, the most that Z could tell. shuffled: the control, the same estimate after the sequences were
    assigned to Zs at random, zero up to chance. sites: how many per-site terms were summed (1: a factor of one value); with more
    than one, the sum is a lower bound. read: share of outputs in which the factor could be read.
    within, between: how often two outputs of one group, and of two groups, agree (noise: common places over all marked places).
    """

    factor: str
    information: Estimate
    shuffled: Estimate
    entropy: float
    sites: int
    groups: int
    count: int
    read: float
    within: float
    between: float

    def interval(self, role: str) -> Interval:
        one, control = self.information, self.shuffled
        return Interval(self.factor, one.value, one.low, one.high, role, (control.value, control.low, control.high), self.entropy)

    def information_cells(self) -> list[str]:
        part = share(fraction(self.information.value, self.entropy))
        return [self.factor, self.information.text(), number(self.entropy), part, self.shuffled.text()]

    def agreement_cells(self) -> list[str]:
        ratio = self.within / self.between if self.between else math.inf if self.within else math.nan
        return [self.factor, share(self.within), share(self.between), times(ratio), share(self.read)]


@dataclass(frozen=True)
class HeatMap:
    """shares[group][place]: in which share of a group's outputs a place of the line holds the thing. Groups sorted for the eye."""

    title: str
    shares: list[list[float]]


@dataclass(frozen=True)
class Intervention:
    """Fixed Zs, many sequences each, from the prior. valid: share of outputs that the task could have made (None: cannot be said).

    prompt_z: where Z at the prompt's positions came from. readers: how factors of text were read, with the reader's accuracy.
    """

    prompt: str
    prompt_z: str
    factors: list[FactorInformation]
    valid: Estimate | None
    heat_maps: list[HeatMap]
    samples: list[SampleGroups]
    readers: list[str] = field(default_factory=list)

    def section(self) -> Section:
        about = [("prompt", repr(self.prompt)), ("Z at the prompt", self.prompt_z), ("sample", groups_text(self.factors))]
        about += [("valid outputs", self.valid.share() if self.valid is not None else ""), *(("reader", line) for line in self.readers)]
        roles = factor_roles([one.factor for one in self.factors])
        intervals = [one.interval(roles[one.factor]) for one in self.factors]
        columns = ["factor", "I(Z; factor), bits", "H, bits", "share", "shuffled, bits"]
        bounds = [f"{one.factor}: lower bound, a sum over {count(one.sites)} sites" for one in self.factors if one.sites > 1]
        agreement = ["agreement on", "within a group", "between groups", "ratio", "outputs read"]
        maps = [
            blocks.HeatMap(one.title, one.shares, "position", "group, one Z each", "of a group's outputs", MAP_ROLES[i % len(MAP_ROLES)])
            for i, one in enumerate(self.heat_maps)
        ]
        shown = [
            Facts(about),
            Intervals("I(Z; factor), bits", intervals, "● estimate with 95 % interval   ○ shuffled control   ┃ H, the most"),
            Table(columns, [one.information_cells() for one in self.factors], align="lrrrr"),
            *map(Note, bounds),
            Note(SHUFFLED if self.factors else ""),
            Table(agreement, [one.agreement_cells() for one in self.factors], align="lrrrr"),
            Grid(maps),
            Note(MAPS if maps else "", detail=True),
            *(groups.block() for groups in self.samples),
        ]
        return Section("Intervention: fixed Z, many outputs", shown, INTERVENTION)

    def panel(self, title: str, task: str | None) -> Samples:
        """The paper's Figure 4 of one model: all boxes, and the numbers that were measured."""
        measured = [f"I(Z; {one.factor}) {one.information.text()} of {number(one.entropy)} bits" for one in self.shown_factors(task)]
        measured += [f"valid {self.valid.share()}"] if self.valid is not None else []
        return Samples([one for groups in self.samples for one in groups.boxes()], title, measured)

    def shown_factors(self, task: str | None) -> list[FactorInformation]:
        names = SHOWN.get(task or "")
        return [one for one in self.factors if names is None or one.factor in names]


def groups_text(factors: Sequence[FactorInformation]) -> str:
    """How many Zs, and how many sequences from each."""
    sizes = sorted({(one.groups, one.count) for one in factors})
    return ", ".join(f"{count(groups)} Zs from the prior, {count(each)} sequences each" for groups, each in sizes)


def factor_roles(names: Sequence[str]) -> dict[str, str]:
    """A colour for each factor; position and noise of letters have those that they have in samples."""
    free = [role for role in ROLES if role not in FACTOR_ROLES.values()]
    others = [name for name in names if name not in FACTOR_ROLES]
    return {**FACTOR_ROLES, **{name: free[i % len(free)] for i, name in enumerate(others)}}


@dataclass(frozen=True)
class LatentSwap:
    """Z inferred from a sequence A generates under another prompt B: how often B's output has A's factor (noise: common places over all).

    chance: the same under the same prompts with the Zs of other sequences. sequences: outputs in which the factor could be read.
    """

    factor: str
    taken: Estimate
    chance: Estimate
    sequences: int

    def cells(self) -> list[str]:
        return [self.factor, self.taken.share(), self.chance.share(), count(self.sequences)]


@dataclass(frozen=True)
class Decoding:
    """A probe that predicts a factor from `source` ("Z" or "hidden", the state at the injection layer), on held-out sequences.

    probe: "linear" or "mlp". accuracy: share right (noise: mean over sites). majority: accuracy of always saying the commonest.
    shuffled: accuracy of the same probe trained on shuffled labels. bits: H(factor) less the probe's held-out cross-entropy, at least 0:
    what a reader of this kind can use (noise: sum over sites).
    """

    factor: str
    source: str
    probe: str
    accuracy: Estimate
    majority: float
    shuffled: float
    bits: float
    entropy: float

    def cells(self) -> list[str]:
        accuracy = [self.accuracy.share(), share(self.majority), share(self.shuffled)]
        return [self.factor, f"{self.source}, {self.probe}", *accuracy, f"{number(self.bits)} of {number(self.entropy)}"]


@dataclass(frozen=True)
class Verdict:
    """What Z is used for, in words. label: unused, global, details, copying, or used (of no known factor)."""

    label: str
    sentence: str
    evidence: list[str]

    def block(self) -> blocks.Verdict:
        return blocks.Verdict(self.sentence, MOODS.get(self.label, ""), f"Verdict: {self.label}", self.evidence)
