"""The base of the records of `evaluate`, and how likely a model finds held-out sequences, which `probe-latent` and `compare` use too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from freetf_cli.records import DataFacts, Unit, floor_text, latent_fault
from freetf_cli.records.curves import floor_line
from freetf_cli.records.glossary import glossary
from freetf_cli.records.plan import KINDS
from freetf_cli.report.blocks import Chart, Facts, Note, Report, Section, Series, Table
from freetf_cli.report.units import MISSING, count, duration, fraction, is_number, number, signed, span

COMPARABLE = (
    "Compare nll and CE + KL with a baseline's CE: all of them bound -log P(S) from above. Do not compare CE with posterior Z: that Z was "
    "inferred from the sequence itself, and the CE leaves out what Z costs, the KL."
)
BASELINE = "A baseline has no Z: its CE is -log P(S) itself. Compare it with the nll and the CE + KL of a Free model."


def sequences_of(split: str) -> str:
    """What a report calls the sequences of a split."""
    return "sequences of the train split" if split == "train" else "held-out sequences"


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % bootstrap interval, all in one unit. The interval is about the sampled sequences (or Zs) only."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        """`4.12 [3.98, 4.25]`."""
        return f"{number(self.value, digits)} {span(self.low, self.high, digits)}".strip()

    def share(self) -> str:
        """A share of one in per cent: `62.0 % [60.1, 64.2]`."""
        if not is_number(self.value):
            return MISSING
        return f"{100 * self.value:.1f} % {span(100 * self.low, 100 * self.high, 1)}".strip()


@dataclass(frozen=True)
class Cost:
    """A mean cost over the held-out targets with its 95 % interval, in nats per token; the mean also in the units that people quote."""

    nats_per_token: float
    low: float
    high: float
    bits_per_token: float
    bits_per_byte: float | None  # where the data is text
    bits_per_sequence: float | None  # where every sequence has as many targets

    def unit(self) -> Unit:
        """Bits per byte of text, else per sequence where all are as long, else per token."""
        known = ((self.bits_per_byte, "bits/byte", 4), (self.bits_per_sequence, "bits/sequence", 2), (self.bits_per_token, "bits/token", 4))
        value, name, digits = next(one for one in known if one[0] is not None)
        return Unit(fraction(value, self.nats_per_token), name, digits)

    def nats(self, digits: int = 4) -> list[str]:
        """Mean and interval in nats per token, as two cells."""
        return [number(self.nats_per_token, digits), span(self.low, self.high, digits)]

    def text(self, unit: Unit) -> str:
        """The mean in a unit of bits."""
        return number(unit.bits(self.nats_per_token), unit.digits)

    def interval(self, unit: Unit) -> str:
        """The interval in a unit of bits."""
        return span(unit.bits(self.low), unit.bits(self.high), unit.digits)


@dataclass(frozen=True)
class BoundPoint:
    """An importance-weighted bound on −log P(S) with `samples` draws of Z a sequence."""

    samples: int
    nll: Cost


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


@dataclass(frozen=True, kw_only=True)
class Likelihood(Evaluation):
    """The result of `evaluate --task likelihood`. ce_posterior, kl and ce_prior are None for a baseline."""

    tokens: int
    nll: Cost  # a baseline's CE, or a Free model's tightest importance-weighted bound
    proposal: str  # the distribution of that bound's Zs: posterior, prior, or both if rows differ; none for a baseline
    elbo: Cost  # the negative ELBO, CE + KL; a baseline's CE
    ce_posterior: Cost | None
    kl: Cost | None
    ce_prior: Cost | None
    bound: list[BoundPoint]  # with Z from the posterior, by increasing number of draws; falls towards −log P(S)
    prior_bound: list[BoundPoint]  # the same with Z from the prior
    floor_bits: float | None  # the data's entropy in bits per sequence; None where it is unknown
    frequencies: float | None = None  # CE of the targets if each is predicted by its frequency, nats per token

    def report(self) -> Report:
        free, known = self.kl is not None, self.floor_bits is not None
        bounds = [self._bound(points, source) for source, points in (("posterior", self.bound), ("prior", self.prior_bound)) if points]
        return Report(
            self.run,
            [
                self.about(tokens=self.tokens, floor=f"{floor_text(self.floor_bits)}, the data's entropy" if known else ""),
                Section(f"Cost of {sequences_of(self.split)}", [cost_table("", self._costs())]),
                Note(self._fault(), "strong"),
                *bounds,
                Note(self._reading() if bounds else ""),
                Note(COMPARABLE if free else BASELINE),
            ],
            kicker=f"likelihood of {sequences_of(self.split)}",
            glossary=glossary("CE", "KL", "CE + KL", "nll", "Z", free=free, floor=known),
        )

    def _costs(self) -> dict[str, Cost]:
        if self.kl is None:
            return {"nll = CE": self.nll}
        last = {count(points[-1].samples) for points in self._used() if points}
        draws = f", K = {' or '.join(sorted(last))}" if last else ""
        costs = {f"nll{draws}": self.nll, "CE + KL (negative ELBO)": self.elbo, "CE, posterior Z": self.ce_posterior, "KL": self.kl}
        return {name: cost for name, cost in {**costs, "CE, prior Z": self.ce_prior}.items() if cost is not None}

    def _used(self) -> list[list[BoundPoint]]:
        """The bounds that are part of nll."""
        return [points for name, points in (("prior", self.prior_bound), ("posterior", self.bound)) if self.proposal in (name, "both")]

    def _fault(self) -> str:
        """What is wrong with Z; empty for a baseline."""
        if self.ce_posterior is None or self.ce_prior is None:
            return ""
        return latent_fault(self.ce_posterior.nats_per_token, self.ce_prior.nats_per_token, self.nll.nats_per_token, self.frequencies)

    def _bound(self, points: Sequence[BoundPoint], source: str) -> Section:
        """A bound by K, with its distance to the floor, or to the nll if the floor is unknown."""
        unit, floor = self.nll.unit(), self._floor()
        base = unit.bits(self.nll.nats_per_token) if floor is None else floor
        values = [unit.bits(point.nll.nats_per_token) for point in points]
        rows = [
            [count(point.samples), point.nll.text(unit), point.nll.interval(unit), signed(value - base, unit.digits)]
            for point, value in zip(points, values, strict=True)
        ]
        series = Series("nll", [point.samples for point in points], values, "nelbo")
        return Section(
            f"Importance-weighted bound on -log P(S), Z from the {source}, {unit.name}",
            [
                Chart("Bound by number of draws", [series], "K", unit.name, references=floor_line(floor), log=True, detail=True),
                Table(["K", "nll", "95 % interval", f"above the {'nll' if floor is None else 'floor'}"], rows, align="rrrr"),
            ],
        )

    def _floor(self) -> float | None:
        """The floor, if the bound is in bits per sequence too."""
        return self.floor_bits if self.nll.unit().name == "bits/sequence" else None

    def _reading(self) -> str:
        words = "K: draws of Z for each sequence; more draws lower the bound towards -log P(S). "
        if self.prior_bound:
            which = "the posterior for some, the prior for others" if self.proposal == "both" else f"the {self.proposal}"
            words += f"nll is the tighter of the two at its last K, for each sequence by the draws of the others: Z from {which}. "
        floor, unit = self._floor(), self.nll.unit()
        if floor is None:
            return words + "Where the last steps still fall, the model is better than the bound says."
        return f"{words}The gap from nll to the floor is {signed(unit.bits(self.nll.nats_per_token) - floor)} {unit.name}."


def cost_table(label: str, costs: Mapping[str, Cost], digits: int = 4) -> Table:
    """Costs in every unit that the data has; per sequence with half the width of the interval: `27.91 ± 0.12`. digits: in nats."""
    byte, sequence = (all(getattr(cost, f"bits_per_{of}") is not None for cost in costs.values()) for of in ("byte", "sequence"))
    first, rows = next(iter(costs.values())), []
    scale = fraction(first.bits_per_sequence, first.nats_per_token)  # the same for all costs: they are of the same targets
    for name, cost in costs.items():
        half = (cost.high - cost.low) / 2 * scale
        whole = number(cost.bits_per_sequence) + (f" ± {number(half)}" if is_number(half) else "")
        rows.append(
            [name, *cost.nats(digits), number(cost.bits_per_token, 4), *[number(cost.bits_per_byte, 4)] * byte, *[whole] * sequence]
        )
    units = ["nats/token", "95 % interval", "bits/token", *["bits/byte"] * byte, *["bits/sequence"] * sequence]
    return Table([label, *units], rows, align="lrrrrr")
