"""What `freetf bench` measures: times with their spread, ratios within one run, and the share of what the machine can do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one step: median, least and most of the means of `repeats` rounds of `steps` steps each, after a warm-up."""

    median: float
    least: float
    most: float
    steps: int
    repeats: int


@dataclass(frozen=True)
class Machine:
    """Where it was measured. ceiling: FLOP/s of one large matrix product; bandwidth: bytes/s read and written by a large copy; reading:
    bytes/s read by a large sum."""

    device: str
    name: str
    torch: str
    precision: str
    threads: int
    ceiling: float
    bandwidth: float
    reading: float


@dataclass(frozen=True)
class StepRow:
    """A recipe's training step. flops: FLOP/s of what the model must compute (`--dry-run`'s count), share: of the ceiling.

    warm_up: seconds of the first steps, which compile. peak, predicted: bytes of memory, measured (None where the device does not tell) and
    foretold by `--dry-run`. ratio: time over that of the first row. products: seconds that its matrix products take, each by itself.
    """

    recipe: str
    kind: str
    time: Timing
    warm_up: float
    tokens: int
    tokens_per_second: float
    flops: float
    share: float
    peak: int | None
    predicted: float
    ratio: float
    products: float


@dataclass(frozen=True)
class PartRow:
    """A part of a Free step measured by itself, of the recipe named; share: of that recipe's step."""

    recipe: str
    part: str
    time: Timing
    share: float


@dataclass(frozen=True)
class TrainBench:
    """`bench train`."""

    machine: Machine
    rows: list[StepRow]
    parts: list[PartRow]


@dataclass(frozen=True)
class SampleRow:
    """Generation from a recipe's model with random weights. time: of a whole batch; share: of the bandwidth, weights read once a token."""

    recipe: str
    kind: str
    batch: int
    new_tokens: int
    time: Timing
    tokens_per_second: float
    weight_bytes: int
    share: float
    ratio: float


@dataclass(frozen=True)
class SampleBench:
    """`bench sample`."""

    machine: Machine
    rows: list[SampleRow]


@dataclass(frozen=True)
class MapperRow:
    """A way to the mapper's gradient. flops: FLOP/s of the product W · dr; error: ‖dL − dL in float64‖ / ‖dL in float64‖ on some
    tokens (None of the product). ratio: time over that of the product."""

    way: str
    time: Timing
    flops: float
    share: float
    error: float | None
    ratio: float


@dataclass(frozen=True)
class MapperBench:
    """`bench mapper`, for `tokens` tokens of width `width` and `bits` bits."""

    machine: Machine
    tokens: int
    width: int
    bits: int
    rows: list[MapperRow]
