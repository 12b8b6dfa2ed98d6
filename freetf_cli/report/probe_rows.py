"""What a probe found, as rows of text: the terminal and the page show the same tables under the same headers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import PurePath

from freetf_cli.records.probe import Budget, Decoding, FactorInformation, ProbeResult, Reliance, Transplant
from freetf_cli.report.estimates import bracket, fraction, interval, number, share_interval, span
from freetf_cli.report.units import MISSING, count, figure, is_number, share, times

LEAST_FRACTION = 1024  # smaller ones are written plain


@dataclass(frozen=True)
class Rows:
    """A table. right: the columns that hold numbers; shares: for each row a share of one that a bar can show."""

    headers: list[str]
    cells: list[list[str]]
    right: Sequence[int] = ()
    shares: list[float] = field(default_factory=list)


def budget_facts(budget: Budget) -> list[tuple[str, str]]:
    """What flows through Z, a number a line."""
    floor = f"; floor {number(budget.floor)}" if budget.floor is not None else ""
    facts = [
        ("KL", f"{interval(budget.kl)} bits/sequence"),
        ("CE, posterior Z", f"{interval(budget.ce)} bits/sequence{floor}"),
        ("CE + KL", f"{interval(budget.length)} bits/sequence{floor}"),
    ]
    if budget.efficiency is not None:
        facts.append(("efficiency", f"{interval(budget.efficiency)} bits of CE saved by each bit of KL"))
    active = fraction(budget.active_bits, budget.all_bits)
    return [
        *facts,
        ("information I(S; Z)", f"{bracket(budget.information_low, budget.information_high)} bits/sequence"),
        ("prior mismatch", f"{bracket(budget.mismatch_low, budget.mismatch_high)} bits/sequence"),
        ("of it, single bits", f"{number(budget.imbalance)} bits/sequence"),
        ("above κ", f"{share(budget.above_kappa)} of tokens have a KL above κ = {figure(budget.kappa)} bits/token"),
        ("active bits", f"{count(budget.active_bits)} of {count(budget.all_bits)} ({share(active)})"),
    ]


def ceiling(budget: Budget) -> float:
    """What a bracket from so many sequences can show at most, in bits."""
    return math.log2(budget.paired) if budget.paired > 0 else math.nan


def ceiling_text(budget: Budget) -> str:
    """Says how far the bracket reaches, and whether it stands there."""
    most = ceiling(budget)
    if not is_number(most):
        return ""
    reached = is_number(budget.information_low) and budget.information_low > most - 0.5
    words = f"From {count(budget.paired)} sequences the bracket's lower end can show at most log2 of their number, {most:.2f} bits"
    return words + (": it has reached that, so there may be more." if reached else ".")


def reliance_rows(reliance: Reliance) -> Rows:
    """CE by where Z came from; the share is of the largest CE."""
    costs = [("the same sequence", reliance.posterior), ("another sequence", reliance.other), ("the prior", reliance.prior)]
    sequence = all(cost.bits_per_sequence is not None for _, cost in costs)
    cells = [
        [
            name,
            number(cost.nats_per_token, 4),
            span(cost.low, cost.high, 4),
            number(cost.bits_per_token, 4),
            *([number(cost.bits_per_sequence)] if sequence else []),
        ]
        for name, cost in costs
    ]
    top = max((cost.nats_per_token for _, cost in costs if is_number(cost.nats_per_token)), default=math.nan)
    headers = ["CE with Z from", "nats/token", "95 % interval", "bits/token", *(["bits/sequence"] if sequence else [])]
    return Rows(headers, cells, range(1, len(headers)), [fraction(cost.nats_per_token, top) for _, cost in costs])


def wrong_z_text(reliance: Reliance) -> str:
    return f"A wrong Z costs {interval(reliance.other_less_posterior, 4)} nats/token (paired over sequences)."


def information_rows(factors: Sequence[FactorInformation]) -> Rows:
    """I(Z; factor); the share is of the factor's entropy."""
    shares = [fraction(one.information.value, one.entropy) for one in factors]
    cells = [
        [one.factor, interval(one.information), number(one.entropy), share(part), interval(one.shuffled)]
        for one, part in zip(factors, shares, strict=True)
    ]
    return Rows(["factor", "I(Z; factor), bits", "H, bits", "share", "shuffled, bits"], cells, (1, 2, 3, 4), shares)


def agreement_rows(factors: Sequence[FactorInformation]) -> Rows:
    """How often two outputs agree, within a group and between groups."""
    cells = []
    for one in factors:
        ratio = one.within / one.between if one.between else math.inf if one.within else math.nan
        cells.append([one.factor, share(one.within), share(one.between), times(ratio), share(one.read)])
    return Rows(["agreement on", "within a group", "between groups", "ratio", "outputs read"], cells, (1, 2, 3, 4))


def bound_texts(factors: Sequence[FactorInformation]) -> list[str]:
    """Which informations are sums over sites, and so bounds."""
    return [f"{one.factor}: lower bound, a sum over {count(one.sites)} sites" for one in factors if one.sites > 1]


def groups_text(factors: Sequence[FactorInformation]) -> str:
    """How many Zs, and how many sequences of each."""
    sizes = sorted({(one.groups, one.count) for one in factors})
    return ", ".join(f"{count(groups)} Zs from the prior, {count(each)} sequences each" for groups, each in sizes)


def transplant_rows(transplant: Sequence[Transplant]) -> Rows:
    cells = [[one.factor, share_interval(one.taken), share_interval(one.chance), count(one.sequences)] for one in transplant]
    return Rows(["factor", "taken over", "chance", "sequences"], cells, (1, 2, 3), [one.taken.value for one in transplant])


def decoding_rows(decoding: Sequence[Decoding]) -> Rows:
    """What probes read; the share is the accuracy."""
    cells = [
        [
            *(one.factor, f"{one.source}, {one.probe}"),
            *(share_interval(one.accuracy), share(one.majority), share(one.shuffled)),
            f"{number(one.bits)} of {number(one.entropy)}",
        ]
        for one in decoding
    ]
    headers = ["factor", "read from, by", "accuracy", "majority", "shuffled", "bits of H"]
    return Rows(headers, cells, (2, 3, 4, 5), [one.accuracy.value for one in decoding])


def kappa_text(kappa: float) -> str:
    """Binary fractions as the paper writes them, 1/64; other numbers plain."""
    if not is_number(kappa):
        return MISSING
    exact = Fraction(round(kappa, 12))
    return f"1/{exact.denominator}" if exact.numerator == 1 and 1 < exact.denominator <= LEAST_FRACTION else f"{kappa:.4g}"


def by_kappa(runs: Sequence[ProbeResult]) -> list[ProbeResult]:
    return sorted(runs, key=lambda one: (one.kappa, one.run))


def run_names(runs: Sequence[ProbeResult]) -> dict[str, str]:
    """The last part of each run's folder, or all of it where that would not tell them apart."""
    last = {run.run: PurePath(run.run).name or run.run for run in runs}
    return last if len(set(last.values())) == len(last) else {name: name for name in last}


def sweep_factors(runs: Sequence[ProbeResult]) -> list[str]:
    """The factors that any run has, in the order in which they first appear."""
    return list(dict.fromkeys(one.factor for run in runs if run.intervention for one in run.intervention.factors))


def factor_of(run: ProbeResult, name: str) -> FactorInformation | None:
    factors = run.intervention.factors if run.intervention else []
    return next((one for one in factors if one.factor == name), None)


def rate_rows(runs: Sequence[ProbeResult]) -> Rows:
    """Rate and distortion, a run a row."""
    names = run_names(runs)
    cells = []
    for run in by_kappa(runs):
        budget = run.budget
        valid = run.intervention.valid.value if run.intervention and run.intervention.valid else None
        numbers = [number(budget.ce.value), number(budget.kl.value), number(budget.length.value)]
        efficiency = number(budget.efficiency.value) if budget.efficiency else MISSING
        cells.append([kappa_text(run.kappa), *numbers, efficiency, share(valid), run.verdict.label, names[run.run]])
    return Rows(["κ", "CE", "KL", "CE + KL", "efficiency", "valid", "Z is", "run"], cells, range(6))


def information_by_kappa_rows(runs: Sequence[ProbeResult]) -> Rows:
    """I(Z; factor) with its interval, a run a row, a factor a column."""
    names = sweep_factors(runs)
    cells = []
    for run in by_kappa(runs):
        found = [factor_of(run, name) for name in names]
        cells.append([kappa_text(run.kappa), *(interval(one.information) if one else MISSING for one in found)])
    return Rows(["κ", *(f"I(Z; {name})" for name in names)], cells if names else [], range(len(names) + 1))
