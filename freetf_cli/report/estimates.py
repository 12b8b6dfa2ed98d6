"""Measured numbers in words: a value with its 95 % interval, a bracket, a cost in the unit that people quote."""

from __future__ import annotations

import math

from freetf_cli.records.likelihood import Cost, Estimate
from freetf_cli.report.units import MISSING, figure, is_number


def number(value: float | None, digits: int = 2) -> str:
    """As `figure`, without the sign of a zero: an estimate of -0.001 bits is `0.00`."""
    return figure(round(value, digits) + 0.0, digits) if value is not None and is_number(value) else MISSING


def signed(value: float | None, digits: int = 2) -> str:
    """With its sign: `+0.12`."""
    return f"{round(value, digits) + 0.0:+,.{digits}f}" if value is not None and is_number(value) else MISSING


def span(low: float | None, high: float | None, digits: int = 2) -> str:
    """`[3.98, 4.25]`; empty where either end is unknown."""
    return f"[{number(low, digits)}, {number(high, digits)}]" if is_number(low) and is_number(high) else ""


def interval(estimate: Estimate, digits: int = 2) -> str:
    """`4.12 [3.98, 4.25]`."""
    return f"{number(estimate.value, digits)} {span(estimate.low, estimate.high, digits)}".strip()


def share_interval(estimate: Estimate) -> str:
    """A share of one as per cent: `62.0 % [60.1, 64.2]`."""
    if not is_number(estimate.value):
        return MISSING
    return f"{100 * estimate.value:.1f} % {span(100 * estimate.low, 100 * estimate.high, 1)}".strip()


def bracket(low: float, high: float) -> str:
    """Two bounds: `7.91 to 8.63`, once where they meet."""
    return number(low) if number(low) == number(high) else f"{number(low)} to {number(high)}"


def fraction(part: float, whole: float) -> float:
    """part / whole, NaN where there is nothing to share."""
    return part / whole if is_number(part) and is_number(whole) and whole > 0 else math.nan


def quoted(cost: Cost) -> tuple[float, float, str]:
    """The mean in the unit that people quote, how many of that unit make one nat/token, and its name."""
    if cost.bits_per_sequence is not None:
        value, unit = cost.bits_per_sequence, "bits/sequence"
    elif cost.bits_per_byte is not None:
        value, unit = cost.bits_per_byte, "bits/byte"
    else:
        value, unit = cost.bits_per_token, "bits/token"
    return value, fraction(value, cost.nats_per_token), unit
