"""Generated sequences: their records, and the boxes of the paper's Figure 4 that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from freetf_cli.report.blocks import Box, Samples, Span, Table
from freetf_cli.report.units import count, share, times

# What each piece of a text is: (piece, role) with roles prompt, blank, target, noise, invalid, plain. Joined, the pieces are the text.
Spans = Mapping[str, Sequence[Span]]
HIDDEN = {"json": ""}  # metadata of a field that `to_json` leaves out


@dataclass(frozen=True)
class Sample:
    """One generated sequence, with all that generates it again: the record of `sample --json`."""

    prompt: str
    text: str  # prompt and continuation
    group: int
    index: int
    seed: int
    prompt_index: int  # the prompt's number, from 0
    temperature: float
    top_k: int
    top_p: float
    max_tokens: int | None  # of the continuation; None: as many as the data's rows have room for
    prompt_z: str | None  # where the prompt's Z comes from; None of a baseline, or where Z was given
    precision: str | None  # of the weights
    checkpoint: str | None  # SHA-256 of its model.safetensors
    z: list[Any] | None  # for each input position, the prompt's first (of the binary latent, a code); None for a baseline
    given: Any = field(default=None, compare=False, repr=False, metadata=HIDDEN)  # the record whose Z was used


@dataclass(frozen=True)
class HeldZ:
    """The Z that `sample --interactive` holds; a record of it can be given to `sample --z`."""

    prompt: str
    z: list[Any]


@dataclass(frozen=True)
class Agreement:
    """How often two sequences agree, in shares of pairs; NaN without a pair."""

    factor: str
    within: float  # of pairs in a group that shares Z
    across: float  # of pairs from two groups
    pairs_within: int  # the compared pairs: without those that lack the factor (an output with no target)
    pairs_across: int

    def ratio(self) -> str:
        """How many times as often sequences agree within a group; `too few` if chance alone makes fewer than ten of the pairs agree."""
        return times(self.within, self.across, self.across * min(self.pairs_within, self.pairs_across))


@dataclass(frozen=True)
class SampleGroups:
    """Samples of one prompt in groups, as in the paper's Figure 4."""

    title: str
    shared: bool  # the sequences of a group share one Z
    groups: list[list[str]]
    prompt: str = ""
    spans: Spans = field(default_factory=dict, metadata=HIDDEN)  # of some texts

    def boxes(self, *, latent: bool = True) -> list[Box]:
        """A box for each group. latent: False for a baseline, which has no Z."""
        title = "shared Z" if self.shared else "independent Z" if latent else "no Z"
        return [box(title, rows, self.prompt, shared=self.shared, spans=self.spans) for rows in self.groups if rows]

    def block(self, *, latent: bool = True) -> Samples:
        return Samples(self.boxes(latent=latent), self.title)


def box(title: str, rows: Sequence[str], prompt: str, *, shared: bool = False, spans: Spans | None = None) -> Box:
    """Sequences in one frame."""
    lines = [line_spans(row, prompt, spans) for row in rows]
    fixed = all(role != "plain" for line in lines for _, role in line)
    return Box(title, "shared" if shared else "independent", lines, fixed)


def line_spans(text: str, prompt: str = "", spans: Spans | None = None) -> list[Span]:
    """The pieces of a text: the given ones, else the prompt and the rest."""
    if spans and text in spans:
        return list(spans[text])
    given = prompt if text.startswith(prompt) else ""
    return [piece for piece in ((given, "prompt"), (text[len(given) :], "plain")) if piece[0]]


def agreement_table(agreement: Sequence[Agreement]) -> Table:
    """How often sequences agree within a group and across groups."""
    rows = [
        [one.factor, share(one.within), share(one.across), one.ratio(), count(one.pairs_within), count(one.pairs_across)]
        for one in agreement
    ]
    return Table(["agreement on", "within groups", "across groups", "ratio", "pairs within", "pairs across"], rows, align="lrrrrr")
