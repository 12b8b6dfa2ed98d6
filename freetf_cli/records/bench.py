"""The records of `freetf bench`: times with their spread, ratios within one run, and the share of what the machine can do."""

from __future__ import annotations

from dataclasses import dataclass

from freetf_cli.report.blocks import Facts, Note, Report, Section, Table
from freetf_cli.report.units import MISSING, count, number, share, short, size


@dataclass(frozen=True)
class Timing:
    """Seconds of one step: median, least and most of the means of `repeats` rounds of `steps` steps each, after a warm-up."""

    median: float
    least: float
    most: float
    steps: int
    repeats: int

    def cells(self) -> list[str]:
        """Milliseconds, and the range around the median: `1.23`, `−0.2 +1.3 %`."""
        milliseconds = number(self.median * 1e3, 3 if self.median < 1e-2 else 2 if self.median < 0.1 else 1)
        low, high = (100 * (end / self.median - 1) if self.median else 0.0 for end in (self.least, self.most))
        return [milliseconds, f"{low:+.1f} {high:+.1f} %"]


@dataclass(frozen=True)
class Machine:
    """The machine of a measurement."""

    device: str
    name: str
    torch: str
    precision: str
    threads: int
    ceiling: float  # FLOP/s of one large matrix product
    bandwidth: float  # bytes/s read and written by a large copy
    reading: float  # bytes/s read by a large sum

    def facts(self) -> Facts:
        device = f"{self.name} ({self.device}, {self.threads} threads), torch {self.torch}, {self.precision}"
        ceiling, bandwidth = f"{short(self.ceiling)}FLOP/s, a large matrix product", f"{short(self.bandwidth)}B/s, a large copy"
        return Facts([("device", device), ("ceiling", ceiling), ("bandwidth", f"{bandwidth}, bytes read and written")])


def _report(machine: Machine, sections: list[Section], note: str, time: Timing) -> Report:
    rounds = f"Median and range of {time.repeats} rounds of {time.steps}; ratios hold within one run."
    return Report("", [machine.facts(), *sections, Note(f"{note} {rounds}")])


@dataclass(frozen=True)
class StepRow:
    """A recipe's training step."""

    recipe: str
    kind: str
    time: Timing
    warm_up: float  # seconds of the first steps, which compile
    tokens: int
    tokens_per_second: float
    flops: float  # FLOP/s of what the model must compute (`--dry-run`'s count)
    share: float  # of the ceiling
    peak: int | None  # bytes of memory, measured; None where the device cannot say
    predicted: float  # bytes of memory, by `--dry-run`
    ratio: float  # time over the first row's time
    products: float  # seconds of its matrix products, each measured alone


@dataclass(frozen=True)
class PartRow:
    """A part of a Free model's step, measured alone; share: of the step of the named recipe."""

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

    def report(self) -> Report:
        rows = []
        for row in self.rows:
            products = f"× {row.time.median / row.products:.2f}" if row.products else MISSING
            memory = [size(row.peak), size(row.predicted)]
            speed = [short(row.tokens_per_second), share(row.share), products]
            rows.append([row.recipe, *row.time.cells(), f"× {row.ratio:.3f}", *speed, *memory])
        columns = ["recipe", "ms", "range", "ratio", "tokens/s", "of the ceiling", "of its products", "memory", "predicted"]
        sections = [Section("A training step, on random tokens", [Table(columns, rows, align="l" + "r" * 8)])]
        if self.parts:
            parts = Table(
                ["part", "ms", "range", "of the step"],
                [[one.part, *one.time.cells(), share(one.share)] for one in self.parts],
                align="lrrr",
            )
            sections.append(Section(f"Parts of {self.parts[0].recipe}, each measured alone", [parts]))
        warm = ", ".join(f"{row.recipe} {row.warm_up:.1f} s" for row in self.rows)
        return _report(self.machine, sections, f"Warm-up, compilation included: {warm}.", self.rows[0].time)


@dataclass(frozen=True)
class SampleRow:
    """Generation from a model with random weights. time: of one batch; share: of the memory bandwidth, weights read once per token."""

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

    def report(self) -> Report:
        rows = []
        for row in self.rows:
            speed = [short(row.tokens_per_second), f"× {row.ratio:.3f}", share(row.share)]
            rows.append([row.recipe, count(row.batch), count(row.new_tokens), *row.time.cells(), *speed])
        columns = ["recipe", "batch", "new tokens", "ms", "range", "tokens/s", "ratio", "of the bandwidth"]
        note = "Of the bandwidth: the bytes of the weights, read once for each new token, over what a large copy reads and writes."
        section = Section("Generation, from random weights", [Table(columns, rows, align="l" + "r" * 7)])
        return _report(self.machine, [section], note, self.rows[0].time)


@dataclass(frozen=True)
class MapperRow:
    """A method of computing the mapper's gradient."""

    way: str
    time: Timing
    flops: float  # FLOP/s of the product W · dr
    share: float
    error: float | None  # ‖dL − dL in float64‖ / ‖dL in float64‖ on some tokens; None for the product
    ratio: float  # time over the time of the product alone


@dataclass(frozen=True)
class MapperBench:
    """`bench mapper`, for `tokens` tokens of width `width` and `bits` bits."""

    machine: Machine
    tokens: int
    width: int
    bits: int
    rows: list[MapperRow]

    def report(self) -> Report:
        rows = [[row.way, *row.time.cells(), f"× {row.ratio:.3f}", share(row.share), share(row.error, 3)] for row in self.rows]
        table = Table(["method", "ms", "range", "ratio", "of the ceiling", "error"], rows, align="lrrrrr")
        heading = f"The mapper's gradient: {count(self.tokens)} tokens, width {count(self.width)}, {self.bits} bits"
        return _report(self.machine, [Section(heading, [table])], "Error: relative to float64, by the norm.", self.rows[0].time)
