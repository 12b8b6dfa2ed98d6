"""Recipes in lists and side by side: the records of `recipe list` and `recipe diff`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    family: str = ""


@dataclass(frozen=True)
class RecipeList:
    """The shipped recipes. sweeps: the description of each family that is a sweep, by name."""

    recipes: list[RecipeEntry]
    sweeps: dict[str, str] = field(default_factory=dict)

    def report(self) -> Report:
        groups: dict[str, list[list[str]]] = {}
        for one in self.recipes:
            groups.setdefault(one.family, []).append([one.name, one.kind, f"{one.layers} × {one.width}", one.description])
        return Report("", [Table(["recipe", "kind", "size", "description"], rows, self._heading(name)) for name, rows in groups.items()])

    def _heading(self, family: str) -> str:
        return f"{family}: {self.sweeps[family]}" if family in self.sweeps else family


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
    rows: list[list[Cell]] = [[one.key, (_text(one.a), "bad"), (_text(one.b), "good")] for one in settings]
    return Table(["key", a, b], rows)


def _text(value: Any) -> str:
    return MISSING if value is None else str(value)
