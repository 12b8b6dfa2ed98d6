"""What a training run will cost: the record of `train --dry-run`."""

from __future__ import annotations

from dataclasses import dataclass

from freetf_cli.report.blocks import Facts, Grid, Report, Table
from freetf_cli.report.units import count, share, short, signed_share, size

KINDS = {"free": "Free Transformer", "baseline": "baseline decoder"}


@dataclass(frozen=True)
class PartCost:
    """One part of a model: parameters, and forward FLOPs per token (a multiply-add is two)."""

    name: str
    parameters: int
    flops: float


@dataclass(frozen=True)
class Plan:
    """The predicted cost of a run, computed without a device. Overheads are relative to the baseline, minus one."""

    recipe: str
    kind: str
    parts: list[PartCost]
    parameters: int
    train_flops_per_token: float  # forward and backward
    overhead_compute: float | None
    overhead_compute_paper: float | None  # the paper's count, the encoder's blocks in L
    overhead_parameters: float | None
    memory: dict[str, float]  # bytes in each process: parameters, gradients, optimizer, activations, total
    steps: int
    tokens: int  # positions of all steps, padding included, as each costs the same; a run's own tokens are the targets that count
    precision: str
    processes: int = 1

    def report(self) -> Report:
        return Report(self.recipe, [self.facts(), self.sizes()], kicker="planned run")

    def facts(self) -> Facts:
        each, total = short(self.train_flops_per_token), short(self.train_flops_per_token * self.tokens)
        overhead = ""
        if self.overhead_compute is not None:
            paper = f"{signed_share(self.overhead_compute_paper)} counted as in the paper: the encoder's blocks in L"
            overhead = f"{signed_share(self.overhead_compute)} FLOPs ({paper}), {signed_share(self.overhead_parameters)} parameters"
        return Facts(
            [
                ("model", f"{KINDS[self.kind]}, {count(self.parameters)} parameters"),
                ("training", f"{count(self.steps)} steps, {count(self.tokens)} positions, padding included, {self.precision}"),
                ("compute", f"{each}FLOP per position, forward and backward; {total}FLOP in total"),
                ("versus its baseline", overhead),
            ]
        )

    def sizes(self) -> Grid:
        """Tables of the model's parts and of the memory."""
        rows = [[one.name, count(one.parameters), share(one.parameters / self.parameters), short(one.flops)] for one in self.parts]
        total = ["total", count(self.parameters), share(1.0), short(sum(one.flops for one in self.parts))]
        memory = [["optimizer state" if name == "optimizer" else name, size(value)] for name, value in self.memory.items()]
        each = f", each of {count(self.processes)} processes" if self.processes > 1 else ""
        return Grid(
            [
                Table(["part", "parameters", "share", "FLOPs/token, forward"], [*rows, total], "Parts", "lrrr", total=True),
                Table(["memory", "size"], memory, f"Memory during training{each}", "lr", total=True),
            ]
        )
