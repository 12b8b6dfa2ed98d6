"""What `compare` says, as sentences and rows of cells: the terminal and the page show the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from freetf_cli.records.compare import Change, CheckResult, Comparison, Difference, LatentUse, MetricPair, SamplePair, Side, TensorShape
from freetf_cli.records.likelihood import Cost, Estimate
from freetf_cli.report.estimates import fraction, number, signed, span
from freetf_cli.report.series import Series, curve, split_metrics, without_nulls
from freetf_cli.report.terminal import kind_text
from freetf_cli.report.units import MISSING, Scale, count, figure, is_number, share, short, size

NAMES = {"nll": "nll", "elbo": "CE + KL (elbo)", "ce_posterior": "CE posterior Z", "ce_prior": "CE prior Z", "kl": "KL"}
STRETCHES = 8  # of positions: rows that fit on a screen
A_CLASS, B_CLASS = "kl", "length"  # colours of curves that the report and the terminal both have
EQUAL = "Equal: the same weights, tokenizer and architecture. Nothing had to be measured."
Row = list[str]


@dataclass(frozen=True)
class Unit:
    """The bits that a comparison is told in: how many of them make a nat per token, their name, and the decimals that they deserve."""

    factor: float
    name: str
    digits: int

    def of(self, cost: Cost | Difference) -> float:
        return cost.nats_per_token * self.factor


def unit(result: Comparison) -> Unit:
    """Bits per byte of text, else per sequence where all are as long, else per token: as `show` tells a run."""
    elbo = result.metrics["elbo"].a
    assert elbo is not None  # every model has it
    if elbo.bits_per_byte is not None:
        return Unit(fraction(elbo.bits_per_byte, elbo.nats_per_token), "bits/byte", 4)
    if elbo.bits_per_sequence is not None:
        return Unit(fraction(elbo.bits_per_sequence, elbo.nats_per_token), "bits/sequence", 2)
    return Unit(fraction(elbo.bits_per_token, elbo.nats_per_token), "bits/token", 4)


def side_text(side: Side) -> str:
    """`Free Transformer, step 20, 263,489 parameters`."""
    size_text = f", {count(side.parameters)} parameters" if side.parameters is not None else ""
    return f"{kind_text(side.kind)}, step {count(side.step)}{size_text}"


def measured_text(result: Comparison) -> str:
    draws = f", K = {count(result.importance_samples or 0)} draws of Z a sequence for nll" if result.a.latent or result.b.latent else ""
    return f"{count(result.sequences or 0)} sequences, {count(result.tokens or 0)} tokens, the same for both{draws}, seed {result.seed}"


def verdict(result: Comparison) -> tuple[str, str]:
    """Which is better by nll, in a sentence, and its mood: good (B is better), bad or open."""
    pair, to = result.metrics["nll"], unit(result)
    if pair.difference is None or not is_number(pair.difference.nats_per_token):
        return "No verdict: a cost is not a number.", "bad"
    told = f"B − A of nll is {difference_text(pair.difference, to)} {to.name}, {percent_text(pair)}"
    direction = pair.difference.direction
    if direction == "none":
        return f"No difference seen: {told}; the 95 % interval holds zero.", "open"
    better, worse = (("B", result.b), ("A", result.a)) if direction == "lower" else (("A", result.a), ("B", result.b))
    if bounded(better[1], worse[1]):  # what a bound leaves open may be more than the difference
        return (
            f"Undecided: {better[0]} is below the bound of {worse[0]}, whose own nll may be lower (more --samples tighten it): {told}.",
            "open",
        )
    if worse[1].kind == "free" and better[1].kind == "free":
        return f"{better[0]} has the lower bound: {told}.", "good" if better[0] == "B" else "bad"
    return f"{better[0]} is better: {told}.", "good" if better[0] == "B" else "bad"


def bounded(better: Side, worse: Side) -> bool:
    """Whether only the worse one's nll is a bound: then its true nll may be lower."""
    return (better.kind, worse.kind) == ("baseline", "free")


def difference_text(difference: Difference, to: Unit) -> str:
    """`-0.12 [-0.20, -0.05]`."""
    value = signed(to.of(difference), to.digits)
    return f"{value} {span(difference.low * to.factor, difference.high * to.factor, to.digits)}".strip()


def percent_text(pair: MetricPair) -> str:
    return f"{signed(pair.relative_percent)} %" if is_number(pair.relative_percent) else MISSING


def metric_headers(result: Comparison) -> Row:
    return [unit(result).name, "A", "B", "B − A [95 %]", "%", "seen"]


def metric_rows(result: Comparison) -> list[Row]:
    """Metrics that at least one of them has."""
    to = unit(result)
    latent = result.a.latent is not None or result.b.latent is not None
    rows = []
    for name, pair in result.metrics.items():
        if pair.a is None and pair.b is None:
            continue
        values = [MISSING if cost is None else number(to.of(cost), to.digits) for cost in (pair.a, pair.b)]
        apart = difference_text(pair.difference, to) if pair.difference else "not compared"
        seen = {"lower": "B lower", "higher": "B higher", "none": "no"}[pair.difference.direction] if pair.difference else ""
        rows.append([NAMES[name] if latent else f"{name} = CE", *values, apart, signed(pair.relative_percent), seen])
    return rows


def metric_differences(result: Comparison) -> list[float | None]:
    """B − A of the rows of `metric_rows`."""
    pairs = [pair for pair in result.metrics.values() if pair.a is not None or pair.b is not None]
    return [pair.difference.nats_per_token if pair.difference else None for pair in pairs]


def cost_rows(result: Comparison) -> list[Row]:
    """Every unit of every cost."""
    rows = []
    for name, pair in result.metrics.items():
        for side, cost in (("A", pair.a), ("B", pair.b), ("B − A", pair.difference)):
            if cost is not None:
                units = [number(value, 4) for value in (cost.bits_per_token, cost.bits_per_byte, cost.bits_per_sequence)]
                rows.append([NAMES[name], side, number(cost.nats_per_token, 5), span(cost.low, cost.high, 5), *units])
    return rows


def reading(result: Comparison) -> list[str]:
    """What a reader must know of these numbers."""
    words = ["The interval is of B − A over the same sequences (paired bootstrap): where it holds zero, no difference is seen."]
    if result.floor_bits is not None:
        words.append(f"Floor, the data's entropy: {number(result.floor_bits)} bits/sequence.")
    if result.a.kind != result.b.kind:
        free, other = ("A", "B") if result.a.kind == "free" else ("B", "A")
        words.append(f"{other}'s nll is exact, {free}'s an upper bound that more --samples tighten.")
        words.append("CE with a posterior Z has read the sequence through Z, so it is not compared with a baseline's CE.")
    elif result.a.kind == "free":
        words.append(
            "Both nll are upper bounds, which more --samples tighten. Lower CE with a posterior Z, or lower KL, is not better by itself."
        )
    return words


def position_rows(result: Comparison) -> tuple[list[Row], list[float]]:
    """Rows of a stretch of positions, A, B and B − A in bits per token, weighted by targets; and the differences by themselves."""
    places = result.by_position
    if places is None:
        return [], []
    counted = [place for place, targets in enumerate(places.targets) if targets]
    stretches = min(STRETCHES, len(counted))
    edges = [round(i * len(counted) / stretches) for i in range(stretches + 1)] if counted else []
    rows, apart = [], []
    for start, end in pairwise(edges):
        part = counted[start:end]
        a, b = (_mean([values[place] for place in part], [places.targets[place] for place in part]) for values in (places.a, places.b))
        name = str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}"
        rows.append([name, number(a, 3), number(b, 3), signed(b - a, 3)])
        apart.append(b - a)
    return rows, apart


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def change_text(change: Change | None) -> str:
    """`0.123 (0.9921)`: the relative norm of the difference, and the cosine."""
    if change is None:
        return ""
    return f"{figure(change.relative, 3)} ({figure(change.cosine, 4)})"


def weight_facts(result: Comparison) -> list[tuple[str, str]]:
    changes = result.weights
    if changes is None:
        return []
    facts = [("in all", f"{change_text(changes.all)}, over {count(len(changes.tensors))} tensors")] if changes.all else []
    lists = (("only in A", changes.only_a), ("only in B", changes.only_b), ("other shape", changes.reshaped))
    return facts + [(name, _tensor_counts(tensors)) for name, tensors in lists if tensors]


def _tensor_counts(tensors: Sequence[TensorShape]) -> str:
    """`13 tensors: encoder 12, post_sampler 1`; one by name."""
    if len(tensors) == 1:
        return f"{tensors[0].name} {' → '.join(shape_text(shape) for shape in (tensors[0].a, tensors[0].b) if shape is not None)}"
    groups = Counter(tensor.name.split(".")[0] for tensor in tensors)
    return f"{count(len(tensors))} tensors: {', '.join(f'{name} {number}' for name, number in groups.items())}"


def shape_text(shape: Sequence[int] | None) -> str:
    return MISSING if shape is None else "×".join(map(str, shape)) or "scalar"


def group_rows(result: Comparison) -> list[Row]:
    groups = result.weights.groups if result.weights else []
    return [[one.group, change_text(one.all), change_text(one.attention), change_text(one.ffn)] for one in groups]


def curves(result: Comparison, to: Scale) -> list[Series]:
    """Held-out CE + KL (a baseline's CE) of both, where their runs are at hand."""
    found = []
    for name, side, colour in (("A", result.a, A_CLASS), ("B", result.b, B_CLASS)):
        _, held_out = split_metrics(without_nulls(side.curve))
        if held_out:
            found.append(curve(f"{name}: {'CE + KL' if side.kind == 'free' else 'CE'}", held_out, to.length, colour))
    return found


def latent_rows(result: Comparison) -> list[Row]:
    """How much Z is used, A and B side by side; empty for two baselines."""
    a, b = result.a.latent, result.b.latent
    if a is None and b is None:
        return []
    to = unit(result)
    told = [[MISSING] * 5 if use is None else _latent_cells(use, to) for use in (a, b)]
    names = [f"KL, {to.name}", "KL, bits/token", "κ, bits/token", "tokens above κ", "CE prior − CE posterior, bits/token"]
    rows = [list(row) for row in zip(names, *told, strict=True)]
    return rows[1:] if names[0] == names[1] else rows


def _latent_cells(use: LatentUse, to: Unit) -> list[str]:
    kl = [number(to.of(use.kl), to.digits), number(use.kl.bits_per_token, 4)]
    return [*kl, f"{use.kappa:g}", share(use.above_kappa), _saved(use.prior_less_posterior)]


def _saved(estimate: Estimate) -> str:
    return f"{number(estimate.value, 4)} {span(estimate.low, estimate.high, 4)}".strip()


def samples_text(samples: SamplePair) -> str:
    start = f"after the prompt {samples.prompt!r}" if samples.prompt else "without a prompt"
    return f"Samples {start}, seed {samples.seed}, each with a Z of its own from the prior"


def size_rows(result: Comparison) -> list[Row]:
    a, b = result.a, result.b
    rows = [
        _size_row("parameters", a.parameters, b.parameters, count),
        _size_row("training FLOPs a token", a.train_flops_per_token, b.train_flops_per_token, short),
        _size_row("checkpoint", a.checkpoint_bytes, b.checkpoint_bytes, size),
        _size_row("training, tokens/s", a.train_tokens_per_second, b.train_tokens_per_second, count),
        _size_row("measuring here, s", a.evaluation_seconds, b.evaluation_seconds, figure),
    ]
    return [row for row in rows if row[1:] != [MISSING] * 3]


def _size_row(name: str, a: float | None, b: float | None, text: Callable[[float], str]) -> Row:
    values = [MISSING if value is None else text(value) for value in (a, b)]
    ratio = fraction(b, a) if a is not None and b is not None else math.nan
    return [name, *values, f"{ratio:.2f} ×" if is_number(ratio) else MISSING]


SIZES_NOTE = "Seconds and tokens/s depend on the machine; training rates are those of each run's own record."


def check_text(check: CheckResult) -> str:
    """`B relative to A: +0.731 %`."""
    return f"{check.found:+.4g} {check.unit}" if is_number(check.found) else MISSING
