"""What a training run will cost: the record of `train --dry-run`, and with `--gpus` what it will cost on several GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from freetf_cli.report.blocks import Block, Cell, Facts, Grid, Note, Report, Table
from freetf_cli.report.units import count, number, share, short, signed_share, size

KINDS = {"free": "Free Transformer", "baseline": "baseline decoder"}


@dataclass(frozen=True)
class PartCost:
    """One part of a model: parameters, and forward FLOPs per token (a multiply-add is two)."""

    name: str
    parameters: int
    flops: float


@dataclass(frozen=True)
class SpreadRow:
    """One way of spreading training over the GPUs: what each GPU holds and sends. Bytes and seconds, of one GPU and one step."""

    mode: Literal["none", "ddp", "fsdp", "hsdp"]
    shards: int  # GPUs that share one copy of parameters, gradients and optimizer state
    replicas: int  # such copies
    reshard_after_forward: bool
    cpu_offload: bool
    grad_accum_steps: int
    sequences: int  # in a forward pass
    activation_checkpointing: Literal["none", "full"]
    memory: dict[str, float]  # parameters, gathered, gradients, unsharded, optimizer, activations, total
    host_memory: float
    fits: bool
    sent: float  # to other GPUs
    host_traffic: float  # between the GPU and its host, both directions
    communication_seconds: float
    compute_seconds: float
    hidden: float | None  # share of the communication's time that computation can hide; None where there is no communication

    @property
    def name(self) -> str:
        """A short name: the mode, or what distinguishes a variant of fsdp."""
        if self.mode == "hsdp":
            return f"hsdp {self.shards}×{self.replicas}"
        return "offload" if self.cpu_offload else self.mode if self.mode != "fsdp" or self.reshard_after_forward else "no reshard"


@dataclass(frozen=True)
class Spread:
    """The ways of spreading training over `gpus` GPUs of `gpu_memory` bytes. links and peak: bytes and FLOPs per second."""

    gpus: int
    gpu_memory: float
    links: dict[str, float]
    peak: float  # of a GPU, in the precision of the matrix products
    peak_share: float  # that a step is assumed to reach
    rows: list[SpreadRow]

    def blocks(self) -> list[Block]:
        """A table of the memory and one of a step, with a column for each way."""
        each, fits = f"each of {count(self.gpus)} GPUs" if self.gpus > 1 else "one GPU", f"fits {number(self.gpu_memory / 1e9, 0)} GB"
        align = "l" + "r" * len(self.rows)
        names = ["", *(row.name for row in self.rows)]
        memory = [[label, *(size(row.memory[key]) for row in self.rows)] for label, key in MEMORY.items()]
        step = [
            self._line(fits, lambda row: ("yes", "good") if row.fits else ("no", "bad")),
            self._line("grad_accum_steps", lambda row: count(row.grad_accum_steps)),
            self._line("sequences at once", lambda row: count(row.sequences)),
            self._line("checkpointing", lambda row: row.activation_checkpointing),
            self._line("host memory", lambda row: size(row.host_memory), any(row.host_memory for row in self.rows)),
            self._line("host traffic", lambda row: size(row.host_traffic), any(row.host_traffic for row in self.rows)),
            self._line("sent", lambda row: size(row.sent), self.gpus > 1),
            self._line("communication", lambda row: _milliseconds(row.communication_seconds)),
            self._line("computation", lambda row: _milliseconds(row.compute_seconds)),
            self._line("hidden", lambda row: share(row.hidden, 0)),
        ]
        return [
            Table(names, memory, f"Memory of {each}, estimated", align, total=True),
            Table(names, [line for line in step if line], f"A step on {each}", align),
            *map(Note, self._notes()),
        ]

    def _line(self, label: str, cell: Callable[[SpreadRow], Cell], shown: bool = True) -> list[Cell]:
        """One property of all ways; empty where it is not shown."""
        return [label, *map(cell, self.rows)] if shown else []

    def _notes(self) -> list[str]:
        """What the tables assume, and what their words mean."""
        links = ", ".join(f"{name} {number(rate / 1e9, 0)} GB/s" for name, rate in self.links.items())
        notes = [
            f"computation: at {share(self.peak_share, 0)} of {short(self.peak)}FLOP/s. communication: one direction of {links}; "
            "hidden: the share of it that computation can overlap.",
            "grad_accum_steps: the fewest that fit; checkpointing: of activations, full where nothing else fits.",
            "activations: what they need beyond the gradients, which replace them one by one in the backward.",
        ]
        if any(row.mode == "fsdp" for row in self.rows):
            notes.append("gathered: parameters of the units that compute; unsharded: gradients that are not reduced yet.")
            notes.append("no reshard: fsdp with reshard_after_forward = false; offload: fsdp, AdamW's time on the CPU not counted.")
        return notes


MEMORY = {  # rows of the table, and keys of SpreadRow.memory
    "parameters": "parameters",
    "+ gathered": "gathered",
    "gradients": "gradients",
    "+ unsharded": "unsharded",
    "optimizer state": "optimizer",
    "activations": "activations",
    "total": "total",
}


def _milliseconds(seconds: float) -> str:
    return f"{number(1000 * seconds, 1)} ms"


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
    spread: Spread | None = None  # over several GPUs, where asked for
    turns: dict[str, int] | None = None  # updates of encoder and decoder where they take turns
    lagging: bool = False  # whether turns may end earlier

    def report(self) -> Report:
        sizes = [self.sizes()] if self.spread is None else [self.parts_table(), *self.spread.blocks()]
        return Report(self.recipe, [self.facts(), *sizes], kicker="planned run")

    def facts(self) -> Facts:
        each, total = short(self.train_flops_per_token), short(self.train_flops_per_token * self.tokens)
        overhead = ""
        if self.overhead_compute is not None:
            paper = f"{signed_share(self.overhead_compute_paper)} counted as in the paper: the encoder's blocks in L"
            overhead = f"{signed_share(self.overhead_compute)} FLOPs ({paper}), {signed_share(self.overhead_parameters)} parameters"
        turns = ""
        if self.turns is not None:
            most, least = ("at most ", "at least ") if self.lagging else ("", "")
            turns = f"{most}{count(self.turns['encoder'])} updates of the encoder, {least}{count(self.turns['decoder'])} of the decoder"
            turns += "; each costs what an update of both costs"
        return Facts(
            [
                ("model", f"{KINDS[self.kind]}, {count(self.parameters)} parameters"),
                ("training", f"{count(self.steps)} steps, {count(self.tokens)} positions, padding included, {self.precision}"),
                ("turns", turns),
                ("compute", f"{each}FLOP per position, forward and backward; {total}FLOP in total"),
                ("versus its baseline", overhead),
            ]
        )

    def sizes(self) -> Grid:
        """Tables of the model's parts and of the memory."""
        memory = [["optimizer state" if name == "optimizer" else name, size(value)] for name, value in self.memory.items()]
        each = f", each of {count(self.processes)} processes" if self.processes > 1 else ""
        return Grid([self.parts_table(), Table(["memory", "size"], memory, f"Memory during training{each}", "lr", total=True)])

    def parts_table(self) -> Table:
        rows = [[one.name, count(one.parameters), share(one.parameters / self.parameters), short(one.flops)] for one in self.parts]
        total = ["total", count(self.parameters), share(1.0), short(sum(one.flops for one in self.parts))]
        return Table(["part", "parameters", "share", "FLOPs/token, forward"], [*rows, total], "Parts", "lrrr", total=True)
