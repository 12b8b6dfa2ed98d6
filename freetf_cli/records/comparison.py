"""Two models side by side: the record of `freetf compare`, and its report."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePath

from freetf_cli.records import DataFacts
from freetf_cli.records.compare import CheckResult, LatentUse, MetricPair, Positions, SamplePair, Side, TensorShape, WeightChanges
from freetf_cli.records.curves import curve, split_metrics
from freetf_cli.records.glossary import glossary
from freetf_cli.records.likelihood import Unit
from freetf_cli.records.recipes import Setting, settings_table
from freetf_cli.records.samples import box
from freetf_cli.report.blocks import (
    Block,
    Cell,
    Chart,
    Facts,
    Interval,
    Intervals,
    Mood,
    Note,
    Reference,
    Report,
    Samples,
    Section,
    Series,
    Table,
)
from freetf_cli.report.blocks import Verdict as VerdictBlock
from freetf_cli.report.units import MISSING, count, fraction, is_number, kappa, number, share, short, signed, size, span

NAMES = {"nll": "nll", "elbo": "CE + KL", "ce_posterior": "CE posterior Z", "ce_prior": "CE prior Z", "kl": "KL"}
STRETCHES = 8  # of positions: rows that fit on a screen
EQUAL = "Equal: the same weights, tokenizer and architecture. Nothing had to be measured."
COSTS = (
    "Both costs are measured on the same held-out sequences. The interval of B − A is paired: it resamples the difference of each "
    "sequence, so that whatever is hard for both cancels. It is about these sequences, not about training seeds."
)
SIZES = "Seconds and tokens/s depend on the machine; training rates are from each run's own record."
WEIGHTS = "Weights: ‖B − A‖ / ‖A‖ (cosine)"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. floor_bits: the data's entropy in bits per sequence where it is known.

    equal: weights, tokenizer and architecture are the same; then nothing was measured, and every measured field is None or empty.
    """

    a: Side
    b: Side
    equal: bool
    recipe: list[Setting]
    checks: list[CheckResult]
    facts: DataFacts | None = None
    split: str | None = None
    sequences: int | None = None
    tokens: int | None = None
    importance_samples: int | None = None
    seed: int | None = None
    floor_bits: float | None = None
    weights: WeightChanges | None = None
    metrics: dict[str, MetricPair] = field(default_factory=dict)
    by_position: Positions | None = None
    samples: SamplePair | None = None

    def report(self) -> Report:
        sentence, mood = verdict(self)
        sides = (("A", self.a), ("B", self.b))
        facts = [(f"{name}: {side.run}", side.text()) for name, side in sides]
        if self.facts:
            facts += [("data", f"{self.facts.name}, split {self.split}"), ("measured on", _measured(self))]
        rows: list[list[Cell]] = [[("holds", "good") if one.holds else ("FAILS", "bad"), one.expression, one.text()] for one in self.checks]
        measured = [] if self.equal else [_costs(self), _positions(self), _curves(self), _latent(self), _weights(self)]
        free = "free" in (self.a.kind, self.b.kind) and not self.equal
        symbols = ("CE", "KL", "CE + KL", "nll", "Z", "κ", "floor") if free else () if self.equal else ("CE", "nll", "floor")
        return Report(
            " and ".join(_names(self.a.run, self.b.run)),
            [
                VerdictBlock(sentence, mood),
                Facts(facts),
                *measured,
                Section("Recipe: settings that differ", [settings_table(self.recipe)]),
                *([_samples(self, self.samples)] if self.samples else []),
                *([] if self.equal else [_sizes(self)]),
                Section("Checks: B relative to A", [Table(["", "fails if", "found"], rows)]),
            ],
            kicker="comparison of A and B",
            glossary=glossary(*(one for one in symbols if one != "floor" or self.floor_bits is not None)),
            hints=[f"freetf probe-latent {shlex.quote(side.run)}" for _, side in sides if side.latent],
        )


def _names(*runs: str) -> list[str]:
    """The ends of the paths, a checkpoint's folder with its run; the whole paths where their ends are the same."""
    paths = [PurePath(run) for run in runs]
    ends = ["/".join(path.parts[-3::2]) if path.parent.name == "checkpoints" else path.name or str(path) for path in paths]
    return ends if len(set(ends)) == len(ends) else list(runs)


def unit(result: Comparison) -> Unit:
    """The bits of all numbers."""
    cost = result.metrics["elbo"].a
    assert cost is not None  # every model has it
    return cost.unit()


def _measured(result: Comparison) -> str:
    draws = f", K = {count(result.importance_samples)} draws of Z for each sequence's nll" if result.a.latent or result.b.latent else ""
    return f"{count(result.sequences)} sequences, {count(result.tokens)} tokens, the same for both{draws}, seed {result.seed}"


def verdict(result: Comparison) -> tuple[str, Mood]:
    """Which side is better by nll, in a sentence, and whether that is good news about B."""
    if result.equal:
        return EQUAL, "good"
    pair, to = result.metrics["nll"], unit(result)
    if pair.difference is None or not is_number(pair.difference.nats_per_token):
        return "No verdict: a cost is not a number.", "bad"
    percent = f"{signed(pair.relative_percent)} %" if is_number(pair.relative_percent) else MISSING
    numbers = f"B − A of nll is {pair.difference.text(to)} {to.name}, {percent}"
    direction = pair.difference.direction
    if direction == "none":
        return f"No difference seen: {numbers}; the 95 % interval holds zero.", "warn"
    better, worse = (("B", result.b), ("A", result.a)) if direction == "lower" else (("A", result.a), ("B", result.b))
    if (better[1].kind, worse[1].kind) == ("baseline", "free"):  # the worse nll is an upper bound: the order may be reversed
        bound = f"{better[0]} is below the bound of {worse[0]}, whose own nll may be lower (more --samples tighten it)"
        return f"Undecided: {bound}: {numbers}.", "warn"
    both_bounds = worse[1].kind == better[1].kind == "free"
    return f"{better[0]} {'has the lower bound' if both_bounds else 'is better'}: {numbers}.", "good" if better[0] == "B" else "bad"


def _costs(result: Comparison) -> Section:
    to = unit(result)
    latent = result.a.latent is not None or result.b.latent is not None
    known = {name: pair for name, pair in result.metrics.items() if pair.a is not None or pair.b is not None}
    rows = [_metric_row(NAMES[name] if latent else f"{name} = CE", pair, to) for name, pair in known.items()]
    every = [
        [NAMES[name], side, number(cost.nats_per_token, 5), span(cost.low, cost.high, 5)]
        + [number(value, 4) for value in (cost.bits_per_token, cost.bits_per_byte, cost.bits_per_sequence)]
        for name, pair in known.items()
        for side, cost in (("A", pair.a), ("B", pair.b), ("B − A", pair.difference))
        if cost is not None
    ]
    units = ["metric", "of", "nats/token", "95 % interval", "bits/token", "bits/byte", "bits/sequence"]
    return Section(
        f"Held-out cost, {to.name}",
        [
            Intervals(f"B − A, {to.name}, 95 % interval", _intervals(result, to), "left of zero: B costs less"),
            Table(["", "A", "B", "B − A [95 %]", "%", "seen"], rows, align="lrrrrl"),
            *(Note(line) for line in reading(result)),
            Table(units, every, "Every unit", "llrrrrr", fold=True, detail=True),
        ],
        about=COSTS,
    )


def _metric_row(name: str, pair: MetricPair, to: Unit) -> list[str]:
    values = [MISSING if cost is None else number(to.of(cost.nats_per_token), to.digits) for cost in (pair.a, pair.b)]
    apart = pair.difference.text(to) if pair.difference else "not compared"
    seen = {"lower": "B lower", "higher": "B higher", "none": "no"}[pair.difference.direction] if pair.difference else ""
    return [name, *values, apart, signed(pair.relative_percent), seen]


def _intervals(result: Comparison, to: Unit) -> list[Interval]:
    found = []
    for name, pair in result.metrics.items():
        if pair.difference is not None:
            low, value, high = (to.of(end) for end in (pair.difference.low, pair.difference.nats_per_token, pair.difference.high))
            role = "plain" if not pair.difference.excludes_zero else "b" if value > 0 else "a"
            found.append(Interval(NAMES[name], value, low, high, role))
    return found


def reading(result: Comparison) -> list[str]:
    """How the numbers are to be read."""
    words = ["The interval of B − A is over the same sequences (paired bootstrap): where it holds zero, no difference is seen."]
    if result.floor_bits is not None:
        words.append(f"Floor, the data's entropy: {number(result.floor_bits)} bits/sequence.")
    if result.a.kind != result.b.kind:
        free, other = ("A", "B") if result.a.kind == "free" else ("B", "A")
        words.append(f"{other}'s nll is exact, {free}'s an upper bound that more --samples tighten.")
        words.append("CE with a posterior Z has read the sequence through Z, so it is not compared with a baseline's CE.")
    elif result.a.kind == "free":
        words.append(
            "Both nll are upper bounds that more --samples tighten. Lower CE with a posterior Z, or lower KL, is not better in itself."
        )
    return words


def _positions(result: Comparison) -> Section:
    places = result.by_position
    rows = position_rows(result)
    xs = list(range(len(places.targets))) if places else []
    curves = [Series("A", xs, places.a, "a"), Series("B", xs, places.b, "b")] if places else []
    chart = Chart("CE + KL (a baseline: CE)", curves, "position", "bits/token", detail=True)
    table = Table(["positions", "A", "B", "B − A"], rows, align="lrrr")
    return Section("By position: CE + KL (a baseline: CE), bits/token", [chart, table] if len(rows) > 1 else [])


def position_rows(result: Comparison) -> list[list[str]]:
    """Means over stretches of positions, weighted by targets: A, B and B − A in bits per token."""
    places = result.by_position
    if places is None:
        return []
    counted = [place for place, targets in enumerate(places.targets) if targets]
    stretches = min(STRETCHES, len(counted))
    edges = [round(i * len(counted) / stretches) for i in range(stretches + 1)] if counted else []
    rows = []
    for start, end in pairwise(edges):
        part = counted[start:end]
        weight = sum(places.targets[place] for place in part)
        a, b = (sum(values[place] * places.targets[place] for place in part) / weight for values in (places.a, places.b))
        name = str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}"
        rows.append([name, number(a, 3), number(b, 3), signed(b - a, 3)])
    return rows


def _curves(result: Comparison) -> Section:
    """Held-out CE + KL (a baseline's CE) of both, where their runs are at hand."""
    assert result.facts is not None
    to, found = result.facts.scale(), []
    for name, side in (("A", result.a), ("B", result.b)):
        _, held_out = split_metrics(side.curve)
        if held_out:
            found.append(curve(f"{name}: {'CE + KL' if side.kind == 'free' else 'CE'}", held_out, to.nelbo, name.lower()))
    floor = [Reference(to.floor, f"floor {number(to.floor)}")] if to.floor is not None else []
    chart = Chart(f"Held out, {to.unit}", found, "step", to.unit, references=floor)
    return Section("Training, held out", [chart] if found else [])


def _latent(result: Comparison) -> Section:
    """How much Z is used, side by side; empty for two baselines."""
    uses, to = (result.a.latent, result.b.latent), unit(result)
    cells = [[MISSING] * 5 if use is None else _latent_cells(use, to) for use in uses]
    names = [f"KL, {to.name}", "KL, bits/token", "κ, bits/token", "tokens above κ", "CE prior − CE posterior, bits/token"]
    rows = [list(row) for row in zip(names, *cells, strict=True)]
    rows = rows[1:] if names[0] == names[1] else rows
    note = Note("To find out what Z encodes: freetf probe-latent RUN.", detail=True)
    return Section("Use of Z", [Table(["", "A", "B"], rows, align="lrr"), note] if any(uses) else [])


def _latent_cells(use: LatentUse, to: Unit) -> list[str]:
    kl = [number(to.of(use.kl.nats_per_token), to.digits), number(use.kl.bits_per_token, 4)]
    return [*kl, kappa(use.kappa), share(use.above_kappa), use.prior_less_posterior.text(4)]


def _weights(result: Comparison) -> Section:
    changes = result.weights
    assert changes is not None
    facts = [("in total", f"{changes.all.text()}, over {count(len(changes.tensors))} tensors")] if changes.all else []
    lists = (("only in A", changes.only_a), ("only in B", changes.only_b), ("other shape", changes.reshaped))
    facts += [(name, _tensor_counts(tensors)) for name, tensors in lists if tensors]
    groups = [[one.group, *(part.text() if part else "" for part in (one.all, one.attention, one.ffn))] for one in changes.groups]
    every = [[one.name, _shape(one.shape), one.change.text()] for one in changes.tensors]
    alone = [*changes.only_a, *changes.only_b, *changes.reshaped]
    every += [[one.name, f"A {_shape(one.a)}, B {_shape(one.b)}", "not compared"] for one in alone]
    folded = Table(["tensor", "shape", "change"], every, f"Every tensor, {count(len(every))}", "llr", fold=True, detail=True)
    return Section(WEIGHTS, [Facts(facts), Table(["", "all", "attention", "ffn"], groups, align="lrrr"), folded])


def _tensor_counts(tensors: Sequence[TensorShape]) -> str:
    """`13 tensors: encoder 12, post_sampler 1`; a single one by its name and shapes."""
    if len(tensors) == 1:
        return f"{tensors[0].name} {' → '.join(_shape(shape) for shape in (tensors[0].a, tensors[0].b) if shape is not None)}"
    groups = Counter(tensor.name.split(".")[0] for tensor in tensors)
    return f"{count(len(tensors))} tensors: {', '.join(f'{name} {found}' for name, found in groups.items())}"


def _shape(shape: Sequence[int] | None) -> str:
    return MISSING if shape is None else "×".join(map(str, shape)) or "scalar"


def _samples(result: Comparison, samples: SamplePair) -> Section:
    start = f"after the prompt {samples.prompt!r}" if samples.prompt else "without a prompt"
    title = f"Samples {start}, seed {samples.seed}, each with its own Z from the prior"
    boxes = [
        box(f"{name}: {'independent Z' if side.kind == 'free' else 'no Z'}", texts, samples.prompt, spans=samples.spans)
        for name, side, texts in (("A", result.a, samples.a), ("B", result.b, samples.b))
    ]
    return Section(title, [Samples(boxes)])


def _sizes(result: Comparison) -> Section:
    wanted: list[tuple[str, Callable[[Side], float | None], Callable[[float], str]]] = [
        ("parameters", lambda side: side.parameters, count),
        ("training FLOPs per token", lambda side: side.train_flops_per_token, short),
        ("checkpoint", lambda side: side.checkpoint_bytes, size),
        ("training, tokens/s", lambda side: side.train_tokens_per_second, count),
        ("this measurement, s", lambda side: side.evaluation_seconds, number),
    ]
    rows = []
    for name, value, text in wanted:
        a, b = value(result.a), value(result.b)
        ratio = fraction(b, a)
        rows.append([name, *(MISSING if one is None else text(one) for one in (a, b)), f"{ratio:.2f} ×" if is_number(ratio) else MISSING])
    shown: list[Block] = [Table(["", "A", "B", "B / A"], [row for row in rows if row[1:] != [MISSING] * 3], align="lrrr"), Note(SIZES)]
    return Section("Size and speed", shown)
