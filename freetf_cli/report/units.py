"""Numbers as text: thousands separators, a fixed number of decimals, a named unit, and a dash where a value is not known."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TypeGuard

MISSING = "–"
LEAST_EVENTS = 10
LEAST_FRACTION = 1024  # κ = 1/2048 and smaller are written as decimals


def is_number(value: float | None) -> TypeGuard[float]:
    """False for None, NaN and infinities: metrics.jsonl has null where a run diverged."""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 2) -> str:
    """A decimal number such as `4.12`. From a thousand on it has no decimals, and zero has no sign."""
    if not is_number(value):
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, digits) + 0.0:.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    """A decimal number with its sign: `+0.12`."""
    return f"{round(value, digits) + 0.0:+,.{digits}f}" if is_number(value) else MISSING


def span(low: float | None, high: float | None, digits: int = 2) -> str:
    """An interval: `[3.98, 4.25]`. Empty where either end is unknown."""
    return f"[{number(low, digits)}, {number(high, digits)}]" if is_number(low) and is_number(high) else ""


def count(value: float | None) -> str:
    """A whole number: `1,511,912,448`."""
    return f"{value:,.0f}" if is_number(value) else MISSING


def short(value: float | None) -> str:
    """Three significant digits and a power of a thousand: `1.51 G`."""
    if not is_number(value):
        return MISSING
    for power, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.3g} {letter}" if abs(value) < 999.5 * power else f"{value / power:,.0f} {letter}"
    return f"{value:.3g}"


def size(value: float | None) -> str:
    """Bytes in binary units: `38.7 GiB`."""
    if not is_number(value):
        return MISSING
    for power, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= power:
            return f"{value / power:,.1f} {unit}"
    return f"{value:.0f} B"


def share(value: float | None, digits: int = 1) -> str:
    """A share of one in per cent: `62.0 %`."""
    return f"{round(100 * value, digits) + 0.0:.{digits}f} %" if is_number(value) else MISSING


def signed_share(value: float | None) -> str:
    """A relative change in per cent: `+12.6 %`."""
    return f"{100 * value:+.1f} %" if is_number(value) else MISSING


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds: `3:44`, `1:02:03`, `2 d 01:02:03`."""
    if not is_number(seconds):
        return MISSING
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def times(part: float, base: float, events: float) -> str:
    """How many times the base a part is: `12.3 ×`; `too few` from fewer than LEAST_EVENTS events, since such a ratio is chance."""
    if not (is_number(part) and is_number(base) and is_number(events)):
        return MISSING
    return f"{number(part / base, 1)} ×" if events >= LEAST_EVENTS and base else "too few"


def fraction(part: float | None, whole: float | None) -> float:
    """part / whole, or NaN where either is unknown or the whole is not positive."""
    return part / whole if is_number(part) and is_number(whole) and whole > 0 else math.nan


def kappa(value: float) -> str:
    """κ as the paper writes it: binary fractions as `1/64`, other numbers as decimals."""
    if not is_number(value):
        return MISSING
    exact = Fraction(round(value, 12))
    return f"1/{exact.denominator}" if exact.numerator == 1 and 1 < exact.denominator <= LEAST_FRACTION else f"{value:.4g}"
