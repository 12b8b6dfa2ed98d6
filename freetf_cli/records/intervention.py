"""What Z decides: many outputs under fixed Zs, a part of the record of `probe-latent`. Information is in bits per sequence."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from freetf_cli.records.likelihood import Estimate
from freetf_cli.records.samples import SampleGroups
from freetf_cli.report import blocks
from freetf_cli.report.blocks import Facts, Grid, Interval, Intervals, Note, Samples, Section, Table
from freetf_cli.report.units import count, number, share

COLOURS = ("target", "noise", "kl", "nelbo", "green", "blue")  # of factors and heat maps; samples have the first two
INTERVENTION = (
    "Each group holds one Z from the prior and samples many outputs of one prompt. I(Z; factor) is how much of the factor's entropy H "
    "the choice of Z determines. The shuffled control is the same estimate after the outputs were assigned to Zs at random: a value that "
    "does not exceed it is chance. A sum over sites is a lower bound of the whole where the sites are independent. Intervals are over Zs, "
    "not over training seeds."
)
SHUFFLED = "[low, high]: 95 % interval over Zs. shuffled: the same estimate after the outputs were assigned to Zs at random."
MAPS = "Each row is one Z, each column a position of the output; the stronger the colour, the more of that Z's outputs have it there."


@dataclass(frozen=True)
class FactorInformation:
    """I(Z; factor) in bits, over generated sequences: `groups` Zs from the prior, `count` sequences each, all from one prompt."""

    factor: str
    information: Estimate
    shuffled: Estimate  # the control: the same estimate after the sequences were assigned to Zs at random, zero up to chance
    entropy: Estimate  # of the factor over all outputs, the most that Z could tell
    sites: int  # how many per-site terms were summed (1: a factor of one value); with more than one, the sum is a lower bound
    groups: int
    count: int
    read: float  # share of outputs in which the factor could be read
    within: Estimate  # how often two outputs of one group agree (noise: common places over all marked places)
    across: float  # its control, two outputs of different groups; NaN without such a pair
    given: bool = False  # the prompt fixes the factor: it was measured over all prompts, and is no part of Figure 4


def colours(factors: Sequence[FactorInformation]) -> dict[str, str]:
    """The role that colours each factor. Factors that the prompt leaves open take COLOURS in the task's order."""
    roles = itertools.cycle(COLOURS)
    return {one.factor: "plain" if one.given else next(roles) for one in factors}


def sizes_text(factors: Sequence[FactorInformation]) -> str:
    """How many Zs, and how many sequences from each; with the factors' names where these differ: `letter: 64 Zs …; position, noise: …`."""
    sizes: dict[str, list[str]] = {}
    for one in factors:
        sizes.setdefault(f"{count(one.groups)} Zs from the prior, {count(one.count)} sequences each", []).append(one.factor)
    return "; ".join(f"{', '.join(dict.fromkeys(names))}: {text}" if len(sizes) > 1 else text for text, names in sizes.items())


@dataclass(frozen=True)
class HeatMap:
    """Where a mark stands. Groups are sorted by its mean place."""

    title: str
    shares: list[list[float]]  # [group][place]: share of the group's outputs with the mark there


@dataclass(frozen=True)
class Intervention:
    """Fixed Zs, many sequences each, from the prior."""

    prompt: str
    prompt_z: str  # where Z at the prompt's positions came from
    factors: list[FactorInformation]
    valid: Estimate | None  # share of outputs that the task could have made; None: validity means nothing
    heat_maps: list[HeatMap]
    samples: list[SampleGroups]
    readers: list[str] = field(default_factory=list)  # how factors of text were read, with the reader's accuracy

    def section(self) -> Section:
        about = [("prompt", repr(self.prompt)), ("Z at the prompt", self.prompt_z), ("sample", sizes_text(self.factors))]
        about += [("valid outputs", self.valid.share() if self.valid else ""), *(("reader", line) for line in self.readers)]
        roles = colours(self.factors)
        intervals, information, agreement, bounds = [], [], [], []
        for one in self.factors:
            estimate, control = one.information, (one.shuffled.value, one.shuffled.low, one.shuffled.high)
            ends = estimate.value, estimate.low, estimate.high
            intervals.append(Interval(one.factor, *ends, roles[one.factor], control, one.entropy.value))
            information.append([one.factor, one.information.text(), one.entropy.text(), one.shuffled.text()])
            agreement.append([one.factor, one.within.share(), share(one.across), share(one.read)])
            if one.sites > 1:
                bounds.append(Note(f"{one.factor}: lower bound, a sum over {count(one.sites)} sites"))
        maps = [
            blocks.HeatMap(one.title, one.shares, "position", "group, one Z each", "of a group's outputs", role)
            for one, role in zip(self.heat_maps, itertools.cycle(COLOURS), strict=False)
        ]
        shown = [
            Facts(about),
            Intervals("I(Z; factor), bits", intervals, "● estimate with 95 % interval   ○ shuffled control   ┃ H, the most"),
            Table(["factor", "I(Z; factor), bits", "H, bits", "shuffled, bits"], information, align="lrrr"),
            *bounds,
            Note(SHUFFLED if self.factors else ""),
            Table(["agreement on", "within groups", "across groups", "outputs read"], agreement, align="lrrr"),
            Grid(maps),
            Note(MAPS if maps else "", detail=True),
            *(groups.block() for groups in self.samples),
        ]
        return Section("Intervention: fixed Z, many outputs", shown, INTERVENTION)

    def open_factors(self) -> list[FactorInformation]:
        """The factors that the prompt leaves open."""
        return [one for one in self.factors if not one.given]

    def panel(self, title: str) -> Samples:
        """The paper's Figure 4 of one model: all boxes, and the numbers that were measured."""
        measured = [f"I(Z; {one.factor}) {one.information.text()} of {number(one.entropy.value)} bits" for one in self.open_factors()]
        measured += [f"valid {self.valid.share()}"] if self.valid else []
        return Samples([one for groups in self.samples for one in groups.boxes()], title, measured)
