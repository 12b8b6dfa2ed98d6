"""What `freetf bench` measured, in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from freetf_cli.records.bench import Machine, MapperBench, SampleBench, StepRow, Timing, TrainBench
from freetf_cli.report.console import out
from freetf_cli.report.fitting import print_fitting
from freetf_cli.report.tables import Cell, print_facts, print_heading
from freetf_cli.report.units import MISSING, count, figure, share, short, size


def train(result: TrainBench) -> None:
    """Steps of recipes, then the parts of the Free one."""
    console = out()
    _machine(console, result.machine)
    print_heading(console, "A training step, on random tokens")
    rows: list[list[Cell]] = []
    for row in result.rows:
        memory = MISSING if row.peak is None else size(row.peak)
        speed = [short(row.tokens_per_second), share(row.share), times(row)]
        rows.append([row.recipe, milliseconds(row.time), spread(row.time), ratio(row.ratio), *speed, memory, size(row.predicted)])
    headers = ["recipe", "ms", "range", "ratio", "tokens/s", "of the ceiling", "of its products", "memory", "foretold"]
    print_fitting(console, headers, rows, right=range(1, len(headers)))
    if result.parts:
        print_heading(console, f"Parts of {result.parts[0].recipe}, each by itself")
        parts: list[list[Cell]] = [[part.part, milliseconds(part.time), spread(part.time), share(part.share)] for part in result.parts]
        print_fitting(console, ["part", "ms", "range", "of the step"], parts, right=range(1, 4))
    warm = ", ".join(f"{row.recipe} {row.warm_up:.1f} s" for row in result.rows)
    _notes(console, f"Warm-up, compilation in it, apart: {warm}.", result.rows[0].time if result.rows else None)


def sample(result: SampleBench) -> None:
    """Generation by batch."""
    console = out()
    _machine(console, result.machine)
    print_heading(console, "Generation, from random weights")
    rows: list[list[Cell]] = []
    for row in result.rows:
        took = [figure(row.time.median * 1e3, 1), spread(row.time)]
        speed = [short(row.tokens_per_second), ratio(row.ratio), share(row.share)]
        rows.append([row.recipe, count(row.batch), count(row.new_tokens), *took, *speed])
    headers = ["recipe", "batch", "new tokens", "ms", "range", "tokens/s", "ratio", "of the bandwidth"]
    print_fitting(console, headers, rows, right=range(1, len(headers)))
    about = "Of the bandwidth: had each new token only read the weights once, as many bytes a second as a large copy reads and writes."
    _notes(console, about, result.rows[0].time if result.rows else None)


def mapper(result: MapperBench) -> None:
    """Ways to the gradient of the bits' logits."""
    console = out()
    _machine(console, result.machine)
    print_heading(console, f"The mapper's gradient: {count(result.tokens)} tokens, width {count(result.width)}, {result.bits} bits")
    rows: list[list[Cell]] = []
    for row in result.rows:
        error = MISSING if row.error is None else share(row.error, 3)
        rows.append([row.way, milliseconds(row.time), spread(row.time), ratio(row.ratio), share(row.share), error])
    print_fitting(console, ["way", "ms", "range", "ratio", "of the ceiling", "error"], rows, right=range(1, 6))
    _notes(console, "Error: against float64, by the norm.", result.rows[0].time if result.rows else None)


def _machine(console: Console, machine: Machine) -> None:
    print_facts(
        console,
        [
            ("device", f"{machine.name} ({machine.device}, {machine.threads} threads), torch {machine.torch}, {machine.precision}"),
            ("ceiling", f"{short(machine.ceiling)}FLOP/s, a large matrix product"),
            ("bandwidth", f"{short(machine.bandwidth)}B/s, a large copy, reads and writes"),
        ],
    )


def _notes(console: Console, text: str, time: Timing | None) -> None:
    rounds = f" Median and range of {time.repeats} rounds of {time.steps}; ratios hold within one run." if time else ""
    console.print(Text(text + rounds, style="dim"))


def milliseconds(time: Timing) -> str:
    return figure(time.median * 1e3, 3 if time.median < 1e-2 else 2 if time.median < 0.1 else 1)


def spread(time: Timing) -> str:
    """The range around the median: `−0.2 +1.3 %`."""
    low, high = (100 * (end / time.median - 1) if time.median else 0.0 for end in (time.least, time.most))
    return f"{low:+.1f} {high:+.1f} %"


def times(row: StepRow) -> str:
    """The step as a multiple of its matrix products."""
    return f"× {row.time.median / row.products:.2f}" if row.products else MISSING


def ratio(value: float) -> str:
    return f"× {value:.3f}"
