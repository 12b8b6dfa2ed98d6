"""How much the weights of two models differ: a part of the record of `freetf compare`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from freetf_cli.report.blocks import Facts, Section, Table
from freetf_cli.report.units import MISSING, count, number


def part_of_model(tensor: str) -> str:
    """The module that a tensor belongs to: `blocks`, `lm_head`, `latent.encoder`, …"""
    words = tensor.split(".")
    return ".".join(words[:2]) if words[0] == "latent" else words[0]


@dataclass(frozen=True)
class TensorShape:
    """A tensor that cannot be compared: its shape in A and in B, None where it is missing."""

    name: str
    a: list[int] | None
    b: list[int] | None


@dataclass(frozen=True)
class Change:
    """How far weights moved."""

    relative: float | None  # ‖B − A‖ / ‖A‖; 0 where both are zero, None where only A is
    cosine: float | None  # of A and B; None where either is zero

    def text(self) -> str:
        """`0.123 (0.9921)`: the relative norm of the difference, and the cosine."""
        return f"{number(self.relative, 3)} ({number(self.cosine, 4)})"


@dataclass(frozen=True)
class TensorChange:
    """A tensor that both models have in the same shape. group: `blocks.3`, `embedding`, …; part: `attention`, `ffn` or ``."""

    name: str
    group: str
    part: str
    shape: list[int]
    change: Change


@dataclass(frozen=True)
class GroupChange:
    """The tensors of a group together, and those of its attention and its feed-forward part (None where it has none)."""

    group: str
    tensors: int
    all: Change
    attention: Change | None
    ffn: Change | None


@dataclass(frozen=True)
class WeightChanges:
    """Weights of B against those of A; `all` is over every tensor that both have in the same shape (None: there is none)."""

    only_a: list[TensorShape]
    only_b: list[TensorShape]
    reshaped: list[TensorShape]
    all: Change | None
    groups: list[GroupChange]
    tensors: list[TensorChange]

    def section(self) -> Section:
        total = f"{self.all.text()}, over {count(len(self.tensors))} tensors" if self.all else ""
        facts = [("in total", total), ("only in A", _tensor_counts(self.only_a)), ("only in B", _tensor_counts(self.only_b))]
        facts.append(("other shape", _tensor_counts(self.reshaped)))
        groups = [[one.group, *(part.text() if part else "" for part in (one.all, one.attention, one.ffn))] for one in self.groups]
        every = [[one.name, _shape(one.shape), one.change.text()] for one in self.tensors]
        alone = [*self.only_a, *self.only_b, *self.reshaped]
        every += [[one.name, f"A {_shape(one.a)}, B {_shape(one.b)}", "not compared"] for one in alone]
        folded = Table(["tensor", "shape", "change"], every, f"Every tensor, {count(len(every))}", "llr", fold=True, detail=True)
        table = Table(["", "all", "attention", "ffn"], groups, align="lrrr")
        return Section("Weights: ‖B − A‖ / ‖A‖ (cosine)", [Facts(facts), table, folded])


def _tensor_counts(tensors: Sequence[TensorShape]) -> str:
    """`13 tensors: encoder 12, post_sampler 1`; a single one by its name and shapes; empty if there are none."""
    if len(tensors) == 1:
        return f"{tensors[0].name} {' → '.join(_shape(shape) for shape in (tensors[0].a, tensors[0].b) if shape is not None)}"
    groups = Counter(part_of_model(tensor.name) for tensor in tensors)
    return f"{count(len(tensors))} tensors: {', '.join(f'{name} {found}' for name, found in groups.items())}" if tensors else ""


def _shape(shape: Sequence[int] | None) -> str:
    return MISSING if shape is None else "×".join(map(str, shape)) or "scalar"
