"""How likely a model finds held-out sequences, in the terminal: `evaluate --task likelihood`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from freetf_cli.records.likelihood import BoundPoint, Cost, Likelihood
from freetf_cli.report.bars import bar
from freetf_cli.report.console import out, page_width, visible
from freetf_cli.report.estimates import fraction, number, quoted, signed, span
from freetf_cli.report.fitting import print_fitting
from freetf_cli.report.tables import Cell, print_facts, print_heading
from freetf_cli.report.terminal import kind_text
from freetf_cli.report.units import MISSING, count, duration, is_number

COMPARABLE = (
    "Comparable with a baseline's CE: nll and CE + KL, which both bound -log P(S) from above. "
    "Not CE with the posterior Z: it has read the sequence through Z, and leaves out what Z costs, the KL."
)
BASELINE = "A baseline has no Z: its CE is -log P(S) itself. Compare it with the nll and the CE + KL of a Free model."


def likelihood(result: Likelihood) -> None:
    """Costs, the importance bound as it tightens, and what may be compared with what."""
    console = out()
    _facts(console, result)
    print_heading(console, "Cost of a held-out sequence")
    _costs(console, result)
    for source, points in (("posterior", result.bound), ("prior", result.prior_bound)):
        if points:
            _bound(console, result, points, source)
    if result.bound or result.prior_bound:
        console.print(Text(_bound_text(result), style="dim"))
    console.print()
    console.print(Text(COMPARABLE if result.kl is not None else BASELINE))


def _facts(console: Console, result: Likelihood) -> None:
    facts: list[tuple[str, Cell]] = [
        ("run", Text(visible(result.run), style="bold")),
        ("model", f"{kind_text(result.kind)}, step {count(result.step)}"),
        ("data", f"{result.facts.name}, split {result.split}"),
        ("measured on", f"{count(result.sequences)} sequences, {count(result.tokens)} tokens, seed {result.seed}"),
    ]
    if result.floor_bits is not None:
        facts.append(("floor", f"{number(result.floor_bits)} bits/sequence, the data's entropy"))
    print_facts(console, [*facts, ("took", duration(result.seconds))])


def _named_costs(result: Likelihood) -> list[tuple[str, Cost]]:
    if result.kl is None:
        return [("nll = CE", result.nll)]
    bound = result.prior_bound if result.proposal == "prior" else result.bound
    samples = f", K = {count(bound[-1].samples)}" if bound else ""
    costs = [(f"nll{samples}", result.nll), ("CE + KL (elbo)", result.elbo)]
    others = [("CE, posterior Z", result.ce_posterior), ("KL", result.kl), ("CE, prior Z", result.ce_prior)]
    return costs + [(name, cost) for name, cost in others if cost is not None]


def _costs(console: Console, result: Likelihood) -> None:
    costs = _named_costs(result)
    byte = any(cost.bits_per_byte is not None for _, cost in costs)
    sequence = any(cost.bits_per_sequence is not None for _, cost in costs)
    headers = ["", "nats/token", "95 % interval", "bits/token"]
    headers += (["bits/byte"] if byte else []) + (["bits/sequence"] if sequence else [])
    rows: list[list[Cell]] = []
    for name, cost in costs:
        row = [name, number(cost.nats_per_token, 4), span(cost.low, cost.high, 4), number(cost.bits_per_token, 4)]
        row += ([number(cost.bits_per_byte, 4)] if byte else []) + ([_sequence_text(cost)] if sequence else [])
        rows.append([Text(cell, style="bold" if not rows else "") for cell in row])
    print_fitting(console, headers, rows, right=range(1, len(headers)))


def _sequence_text(cost: Cost) -> str:
    """Bits per sequence with half the width of the interval: `27.91 ± 0.12`."""
    half = (cost.high - cost.low) / 2 * quoted(cost)[1] if cost.bits_per_sequence is not None else math.nan
    return number(cost.bits_per_sequence) + (f" ± {number(half)}" if is_number(half) else "")


def _bound(console: Console, result: Likelihood, points: Sequence[BoundPoint], source: str) -> None:
    """A bound by K. Its bar is what lies above the floor, or where that is unknown above the tightest bound, the nll."""
    unit = quoted(points[0].nll)[2]
    base = _floor(result)
    values = [quoted(point.nll)[0] - (quoted(result.nll)[0] if base is None else base) for point in points]
    highest = max((value for value in values if is_number(value)), default=math.nan)
    width = 24 if page_width(console) >= 100 else 12
    print_heading(console, f"Importance-weighted bound on -log P(S), Z from the {source}, {unit}")
    rows = [
        [*_bound_cells(point), signed(value, _digits(unit)), bar(fraction(value, highest), width)]
        for point, value in zip(points, values, strict=True)
    ]
    rest = "above the nll" if base is None else "above the floor"
    print_fitting(console, ["K", "nll", "95 % interval", rest, ""], rows, right=range(1, 4))


def _floor(result: Likelihood) -> float | None:
    """The floor, where the bound is told in its unit."""
    return result.floor_bits if result.nll.bits_per_sequence is not None else None


def _bound_cells(point: BoundPoint) -> list[str]:
    value, factor, unit = quoted(point.nll)
    digits = _digits(unit)
    return [count(point.samples), number(value, digits), span(point.nll.low * factor, point.nll.high * factor, digits)]


def _digits(unit: str) -> int:
    """Bits of a whole sequence are tens; of a token or a byte, ones."""
    return 2 if unit == "bits/sequence" else 4


def _bound_text(result: Likelihood) -> str:
    tighter = f"nll is the tighter of the two at its last K, here with Z from the {result.proposal}. " if result.prior_bound else ""
    words = f"K: draws of Z a sequence; more lower the bound towards -log P(S). {tighter}"
    floor, (value, _, unit) = _floor(result), quoted(result.nll)
    if floor is None:
        return words + "Where the last steps still fall, the model is better than the bound says."
    gap = signed(value - floor) if is_number(value) else MISSING
    return f"{words}From nll to the floor the gap is {gap} {unit}."
