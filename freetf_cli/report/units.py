"""Numbers as people read them: thousands separators, bits and nats named, and a dash for what is not known."""

from __future__ import annotations

import math
from dataclasses import dataclass

from freetf_cli.records import LN2, DataFacts, Metrics

MISSING = "–"


def is_number(value: float | None) -> bool:
    """False for None, NaN and infinities: a metric of a run that diverged is null in metrics.jsonl."""
    return value is not None and math.isfinite(value)


def figure(value: float | None, digits: int = 2) -> str:
    """A decimal number; from a thousand on the decimals say nothing."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"


def count(value: float) -> str:
    """A whole number: `1,511,912,448`."""
    return f"{value:,.0f}"


def short(value: float | None) -> str:
    """Three digits and a power of a thousand: `1.51 G`."""
    if value is None or not math.isfinite(value):
        return MISSING
    for power, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.3g} {letter}" if abs(value) < 999.5 * power else f"{value / power:,.0f} {letter}"
    return f"{value:.3g}"


def size(value: float) -> str:
    """Bytes in binary units: `38.7 GiB`."""
    for power, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= power:
            return f"{value / power:,.1f} {unit}"
    return f"{value:.0f} B"


def share(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def signed_share(value: float | None) -> str:
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:+.1f} %"


def duration(seconds: float | None) -> str:
    """`3:44`, `1:02:03`, `2 d 01:02:03`."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def times(ratio: float) -> str:
    """A ratio: `12.3 ×`."""
    return "∞ ×" if ratio == math.inf else MISSING if math.isnan(ratio) else f"{figure(ratio, 1)} ×"


@dataclass(frozen=True)
class Scale:
    """From nats per token to the bits that a run is told in, and the floor in the same bits (None: not known, or not comparable)."""

    factor: float
    unit: str
    floor: float | None

    def bits(self, nats: float | None) -> float:
        """NaN where there is no value."""
        return math.nan if nats is None else nats * self.factor

    def length(self, metrics: Metrics) -> float:
        """CE + KL: the code length, which no model brings below the floor."""
        return self.bits(metrics.ce) + self.bits(metrics.kl)


def scale(facts: DataFacts) -> Scale:
    """Bits per byte of text; else bits per sequence where every row has as many targets, else per token: there the floor has no place."""
    if facts.bytes_per_token:
        return Scale(1 / LN2 / facts.bytes_per_token, "bits/byte", None)
    if facts.targets:
        return Scale(facts.targets / LN2, "bits/sequence", facts.floor_bits)
    return Scale(1 / LN2, "bits/token", None)


def floor_text(facts: DataFacts) -> str:
    return f"{facts.floor_bits:.2f} bits/sequence" if facts.floor_bits is not None else "not known"


def latent_use(metrics: Metrics, to: Scale) -> float | None:
    """Bits of CE saved below the floor by each bit of KL: 1 if Z tells nothing twice. None where it cannot be said."""
    kl = to.bits(metrics.kl)
    if to.floor is None or not kl > 0.01 or not is_number(metrics.ce):
        return None
    return (to.floor - to.bits(metrics.ce)) / kl
