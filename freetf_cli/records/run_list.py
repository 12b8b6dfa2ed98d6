"""The runs below a folder, for `freetf runs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from freetf_cli.report.blocks import Block, Cell, Note, Report, Table
from freetf_cli.report.units import MISSING, count, number

DAMAGED = "damaged"
ROLES = {"done": "good", "failed": "bad", DAMAGED: "bad", "running": "strong"}


@dataclass(frozen=True)
class HeldOut:
    """The newest held-out record of a run. ce, kl and nelbo, their sum, are in `unit`; loss, the objective, is in nats per token."""

    step: int
    split: str
    loss: float | None
    ce: float
    kl: float
    nelbo: float
    unit: str


@dataclass(frozen=True)
class ListedRun:
    """One run. state: the status that `freetf show` gives, or "damaged", with the reason in `fault`. when: ISO 8601, UTC."""

    run: str
    recipe: str | None  # its name
    kind: Literal["free", "baseline"] | None
    state: str
    step: int | None
    steps: int | None
    held_out: HeldOut | None
    when: str | None  # when it ended; if it has not ended, when it was started or last resumed
    fault: str | None = None

    def cells(self) -> list[Cell]:
        step = "" if self.steps is None else f"{count(self.step)} of {count(self.steps)}"
        held_out = "" if self.held_out is None else f"{number(self.held_out.nelbo)} {self.held_out.unit}"
        when = (self.when or "")[:16].replace("T", " ")
        state = (self.state, ROLES.get(self.state, "warn"))
        return [self.run, self.recipe or "", state, step, held_out, when or MISSING]


@dataclass(frozen=True)
class RunList:
    """The runs below a folder, newest first."""

    folder: str
    runs: Sequence[ListedRun]

    def report(self) -> Report:
        if not self.runs:
            return Report("", [Note(f"no runs below {self.folder}")], hints=["freetf train demo-free -o runs/first"])
        columns = ["run", "recipe", "state", "step", "held out", "when (UTC)"]
        table = Table(columns, [one.cells() for one in self.runs], align="lrrrrr")  # columns on the right are never folded
        faults: list[Block] = [Note(f"{one.run} is damaged: {one.fault}") for one in self.runs if one.fault]
        return Report("", [table, *faults])
