"""Recipes in lists and side by side: the records of `recipe list` and `recipe diff`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from freetf_cli.report.blocks import Cell, Note, Report, Table
from freetf_cli.report.units import MISSING


@dataclass(frozen=True)
class RecipeEntry:
    """One shipped recipe. family: the heading that it is listed under, or the sweep that it is a variant of."""

    name: str
    kind: str
    description: str
    layers: int
    width: int
    steps: int
    family: str


@dataclass(frozen=True)
class SweepEntry:
    """A family of recipes that are variants of one file."""

    name: str
    description: str


@dataclass(frozen=True)
class RecipeList:
    """The shipped recipes, and the families among them that are sweeps."""

    recipes: list[RecipeEntry]
    sweeps: list[SweepEntry]

    def report(self) -> Report:
        groups: dict[str, list[list[str]]] = {}
        for one in self.recipes:
            groups.setdefault(one.family, []).append([one.name, one.kind, f"{one.layers} × {one.width}", one.description])
        headings = {sweep.name: f"{sweep.name}, a sweep: {sweep.description}" for sweep in self.sweeps}
        columns = ["recipe", "kind", "size", "description"]
        return Report("", [Table(columns, rows, headings.get(name, name)) for name, rows in groups.items()])


@dataclass(frozen=True)
class Setting:
    """A setting that differs between two resolved recipes; None where one of them has no such setting."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class RecipeDiff:
    """The settings that differ between recipes a and b."""

    a: str
    b: str
    differences: list[Setting]

    def report(self) -> Report:
        same = Note(f"{self.a} and {self.b} are the same")
        return Report("", [settings_table(self.differences, self.a, self.b) if self.differences else same])


def settings_table(settings: Sequence[Setting], a: str = "A", b: str = "B") -> Table:
    """Settings side by side."""

    def text(value: Any) -> str:
        return MISSING if value is None else str(value)

    rows: list[list[Cell]] = [[one.key, (text(one.a), "bad"), (text(one.b), "good")] for one in settings]
    return Table(["key", a, b], rows)
