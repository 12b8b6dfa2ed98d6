"""Two models side by side: the record of `freetf compare`, its parts and its report. A difference is always B − A."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from freetf_cli.records import DataFacts, Metrics, Unit
from freetf_cli.records.curves import curve, floor_line, nelbo, split_metrics
from freetf_cli.records.glossary import glossary
from freetf_cli.records.likelihood import Cost, Estimate, cost_table, sequences_of
from freetf_cli.records.paired import METRICS, MetricPair, Positions
from freetf_cli.records.plan import KINDS
from freetf_cli.records.recipes import Setting, settings_table
from freetf_cli.records.run import run_names
from freetf_cli.records.samples import HIDDEN, Spans, box
from freetf_cli.records.weights import WeightChanges
from freetf_cli.report.blocks import Cell, Chart, Facts, Interval, Intervals, Mood, Note, Report, Samples, Section, Table, Verdict
from freetf_cli.report.units import MISSING, count, fraction, is_number, kappa, number, share, short, size

NAMES = dict(zip(METRICS, ("nll", "CE + KL", "CE posterior Z", "CE prior Z", "KL"), strict=True))
EQUAL = "Equal: the same weights, tokenizer and architecture. Nothing had to be measured."
COSTS = (
    "Both costs are measured on the same sequences. The interval of B − A is paired: it resamples the difference of each "
    "sequence, so that whatever is hard for both cancels. It is about these sequences, not about training seeds."
)
SIZES = "Seconds and tokens/s depend on the machine; training rates are from each run's own record."


@dataclass(frozen=True)
class LatentUse:
    """How much a Free model's Z is used on held-out sequences."""

    kl: Cost  # of all bits of Z
    above_kappa: float  # share of Zs, one a token unless tokens share it, whose KL exceeds κ
    kappa: float  # bits per token
    prior_less_posterior: Estimate  # CE with Z from the prior less CE with Z from the encoder, bits per token, paired


@dataclass(frozen=True)
class Side:
    """One of the two models. Where nothing was measured, what a measurement finds is None."""

    run: str  # as the user named it
    checkpoint: str
    kind: str
    step: int
    sha256: str  # of the weights
    checkpoint_bytes: int  # of the whole folder
    parameters: int | None = None
    train_flops_per_token: float | None = None
    train_tokens_per_second: float | None = None  # the median of the run's own record, None without one
    evaluation_seconds: float | None = None  # of this measurement, on this machine
    curve: list[Metrics] = field(default_factory=list)  # of the run, in nats per token; empty where the checkpoint lies in no run
    latent: LatentUse | None = None

    def text(self) -> str:
        """`Free Transformer, step 20, 263,489 parameters`."""
        size = f", {count(self.parameters)} parameters" if self.parameters is not None else ""
        return f"{KINDS[self.kind]}, step {count(self.step)}{size}"


@dataclass(frozen=True)
class SamplePair:
    """Sequences of both models from the same prompt and seeds. Each sequence has its own Z from the prior, at the prompt too."""

    prompt: str
    seed: int
    a: list[str]
    b: list[str]
    spans: Spans = field(default_factory=dict, metadata=HIDDEN)


@dataclass(frozen=True)
class CheckResult:
    """The result of one --fail-if."""

    expression: str
    metric: str
    unit: Literal["%", "bits/token"]
    found: float  # B relative to A
    passed: bool  # the failure that the expression describes did not occur

    def text(self) -> str:
        """The value that was found, with four digits and its unit: `+0.7312 %`."""
        return "no number" if math.isnan(self.found) else f"{self.found:+.4g} {self.unit}"

    def cells(self) -> list[Cell]:
        """Whether it passed, the condition, and the value that was found."""
        return [("passed", "good") if self.passed else ("FAILED", "bad"), self.expression, self.text()]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. Between equal models nothing was measured: every measured field is None or empty."""

    a: Side
    b: Side
    equal: bool  # weights, tokenizer and architecture are the same
    recipe: list[Setting]
    checks: list[CheckResult]
    facts: DataFacts | None = None
    split: str | None = None
    sequences: int | None = None
    tokens: int | None = None
    importance_samples: int | None = None
    seed: int | None = None
    floor_bits: float | None = None  # the data's entropy in bits per sequence where it is known
    weights: WeightChanges | None = None
    metrics: dict[str, MetricPair] = field(default_factory=dict)
    by_position: Positions | None = None
    samples: SamplePair | None = None

    def report(self) -> Report:
        (sentence, mood), names = self.verdict(), run_names([self.a.run, self.b.run])
        facts = [(f"{name}: {side.run}", side.text()) for name, side in self._sides()]
        if self.facts:
            facts += [("data", f"{self.facts.name}, split {self.split}"), ("measured on", self._measured())]
        positions = [self.by_position.section()] if self.by_position else []
        measured = [] if self.weights is None else [self._costs(), *positions, self._curves(), self._latent(), self.weights.section()]
        symbols = [] if self.equal else ["CE", "KL", "CE + KL", "nll", "Z", "κ"]
        return Report(
            " and ".join(names[side.run] for _, side in self._sides()),
            [
                Verdict(sentence, mood),
                Facts(facts),
                *measured,
                Section("Recipe: settings that differ", [settings_table(self.recipe)]),
                *([self._samples(self.samples)] if self.samples else []),
                *([] if self.equal else [self._sizes()]),
                Section("Checks: B relative to A", [Table(["", "fails if", "found"], [one.cells() for one in self.checks])]),
            ],
            kicker="comparison of A and B",
            glossary=glossary(*symbols, free="free" in (self.a.kind, self.b.kind), floor=self.floor_bits is not None),
            hints=[f"freetf probe-latent {shlex.quote(side.run)}" for _, side in self._sides() if side.latent],
        )

    def _sides(self) -> list[tuple[str, Side]]:
        return [("A", self.a), ("B", self.b)]

    def _unit(self) -> Unit:
        """The unit in which all costs are reported."""
        cost = self.metrics["elbo"].a
        assert cost is not None  # every model has it
        return cost.unit()

    def _measured(self) -> str:
        latent = self.a.latent or self.b.latent
        draws = f", K = {count(self.importance_samples)} draws of Z for each sequence's nll" if latent else ""
        return f"{count(self.sequences)} sequences, {count(self.tokens)} tokens, the same for both{draws}, seed {self.seed}"

    def verdict(self) -> tuple[str, Mood]:
        """A sentence that says which model has the lower nll, and its mood: good if that is B."""
        if self.equal:
            return EQUAL, "good"
        pair, unit = self.metrics["nll"], self._unit()
        if pair.difference is None or not is_number(pair.difference.nats_per_token):
            return "No verdict: a cost is not a number.", "bad"
        percent = "" if pair.percent() == MISSING else f", {pair.percent()} %"
        numbers = f"B − A of nll is {pair.difference.text(unit)} {unit.name}{percent}"
        direction = pair.difference.direction
        if direction == "none":
            return f"No difference seen: {numbers}; the 95 % interval holds zero.", "warn"
        (worse, lost), (better, won) = self._sides() if direction == "lower" else self._sides()[::-1]
        if (won.kind, lost.kind) == ("baseline", "free"):  # the worse nll is an upper bound: the order may be reversed
            bound = f"{better} is below the bound of {worse}, whose own nll may be lower (more --samples tighten it)"
            return f"Undecided: {bound}: {numbers}.", "warn"
        both_bounds = won.kind == lost.kind == "free"
        return f"{better} {'has the lower bound' if both_bounds else 'is better'}: {numbers}.", "good" if better == "B" else "bad"

    def _costs(self) -> Section:
        unit, intervals = self._unit(), []
        known = {name: pair for name, pair in self.metrics.items() if pair.a is not None or pair.b is not None}
        latent = self.a.latent or self.b.latent
        rows = [[NAMES[name] if latent else f"{name} = CE", *pair.cells(unit)] for name, pair in known.items()]
        for name, pair in known.items():
            if pair.difference is not None:
                low, value, high = (unit.bits(end) for end in (pair.difference.low, pair.difference.nats_per_token, pair.difference.high))
                role = {"lower": "a", "higher": "b", "none": "plain"}[pair.difference.direction]
                intervals.append(Interval(NAMES[name], value, low, high, role))
        every = {
            f"{NAMES[name]}, {side}": cost
            for name, pair in known.items()
            for side, cost in (("A", pair.a), ("B", pair.b), ("B − A", pair.difference))
            if cost is not None
        }
        return Section(
            f"Cost of {sequences_of(self.split or '')}, {unit.name}",
            [
                Intervals(f"B − A, {unit.name}, 95 % interval", intervals, "left of zero: B costs less"),
                Table(["", "A", "B", "B − A [95 %]", "%", "seen"], rows, align="lrrrrl"),
                *map(Note, self._reading()),
                replace(cost_table("metric, of", every, digits=5), caption="Every unit", fold=True, detail=True),
            ],
            about=COSTS,
        )

    def _reading(self) -> list[str]:
        """Sentences that say how to read the costs."""
        words = ["The interval of B − A is over the same sequences (paired bootstrap): where it holds zero, no difference is seen."]
        if self.floor_bits is not None:
            words.append(f"Floor, the data's entropy: {number(self.floor_bits)} bits/sequence.")
        if self.a.kind != self.b.kind:
            free, other = ("A", "B") if self.a.kind == "free" else ("B", "A")
            words.append(f"{other}'s nll is exact, {free}'s an upper bound that more --samples tighten.")
            words.append("CE with a posterior Z has read the sequence through Z, so it is not compared with a baseline's CE.")
        elif self.a.kind == "free":
            words.append(
                "Both nll are upper bounds that more --samples tighten. Lower CE with a posterior Z, or lower KL, is not better in itself."
            )
        return words

    def _curves(self) -> Section:
        """Held-out CE + KL (a baseline's CE) during training, for checkpoints that lie in a run."""
        assert self.facts is not None
        lines = {name: held_out for name, side in self._sides() if (held_out := split_metrics(side.curve)[1])}
        if not lines:
            return Section("Training, held out", [])
        unit, value, sides = self.facts.unit(next(iter(lines.values()))[-1]), nelbo(self.facts), dict(self._sides())
        found = [
            curve(f"{name}: {'CE + KL' if sides[name].kind == 'free' else 'CE'}", held_out, value, name.lower())
            for name, held_out in lines.items()
        ]
        chart = Chart(f"Held out, {unit.name}", found, "step", unit.name, references=floor_line(unit.floor))
        return Section("Training, held out", [chart])

    def _latent(self) -> Section:
        """How much Z is used, side by side; empty for two baselines."""
        unit, uses = self._unit(), (self.a.latent, self.b.latent)
        wanted: list[tuple[str, Callable[[LatentUse], str]]] = [
            (f"KL, {unit.name}", lambda use: use.kl.text(unit)),
            ("KL, bits/token", lambda use: number(use.kl.bits_per_token, 4)),
            ("κ, bits/token", lambda use: kappa(use.kappa)),
            ("Zs above κ", lambda use: share(use.above_kappa)),
            ("CE prior − CE posterior, bits/token", lambda use: use.prior_less_posterior.text(4)),
        ]
        rows = [[name, *(text(use) if use else MISSING for use in uses)] for name, text in wanted[unit.name == "bits/token" :]]
        note = Note("To find out what Z encodes: freetf probe-latent RUN.", detail=True)
        return Section("Use of Z", [Table(["", "A", "B"], rows, align="lrr"), note] if any(uses) else [])

    def _samples(self, samples: SamplePair) -> Section:
        start = f"after the prompt {samples.prompt!r}" if samples.prompt else "without a prompt"
        title = f"Samples {start}, seed {samples.seed}, each with its own Z from the prior"
        boxes = [
            box(f"{name}: {'independent Z' if side.kind == 'free' else 'no Z'}", texts, samples.prompt, spans=samples.spans)
            for (name, side), texts in zip(self._sides(), (samples.a, samples.b), strict=True)
        ]
        return Section(title, [Samples(boxes)])

    def _sizes(self) -> Section:
        """What each model costs. Only exact numbers have a ratio."""
        wanted: list[tuple[str, Callable[[Side], float | None], Callable[[float | None], str], bool]] = [
            ("parameters", lambda side: side.parameters, count, True),
            ("training FLOPs per token", lambda side: side.train_flops_per_token, short, True),
            ("checkpoint", lambda side: side.checkpoint_bytes, size, True),
            ("training, tokens/s", lambda side: side.train_tokens_per_second, count, False),
            ("this measurement, s", lambda side: side.evaluation_seconds, number, False),
        ]
        rows = []
        for name, value, text, exact in wanted:
            a, b = value(self.a), value(self.b)
            if is_number(a) or is_number(b):
                ratio = fraction(b, a)
                rows.append([name, text(a), text(b), f"{ratio:.2f} ×" if exact and is_number(ratio) else MISSING])
        draws = f" For each sequence, this measurement runs a Free model with {count(self.importance_samples)} draws of Z."
        note = Note(SIZES + draws * bool(self.a.latent or self.b.latent))
        return Section("Size and speed", [Table(["", "A", "B", "B / A"], rows, align="lrrr"), note])
