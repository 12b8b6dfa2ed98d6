"""siblings: two children of one parent, then the parent; an open-ended task of Nagarajan et al. (arXiv 2504.15266).

    {"text": "1155 1050 p2", "factors": {"parent": "p2"}}

How a row is made: one of `parents` parents (5), then two distinct ones of its children in random order, all uniform; `children` (2,500)
are divided among the parents once and for all, in order: p0 has 0 … 499. The planning: with `order` = last (the default) the parent is
written last, but decides both children. With `order` = first nothing has to be planned. Two rows with the same children show the same
object; there are 5 · 500 · 499 / 2 = 623,750.
`seed_length`: random letters before each row (see `open_ended.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from freetf_cli.errors import InputError
from freetf_cli.tasks.base import BLOCK_ROWS, Param, Tokens, distinct
from freetf_cli.tasks.factors import Factor, Reading
from freetf_cli.tasks.open_ended import SEED_LENGTH, OpenEnded


class Siblings(OpenEnded):
    """Pairs of children with their parent; the factor is the parent."""

    label = "parent"
    PARAMS: ClassVar[Mapping[str, Param]] = {
        "parents": Param(5, "parents", 1, 1000),
        "children": Param(2500, "children of all parents together", 2, 100_000),
        "order": Param("last", "where the parent is written", choices=("last", "first")),
        "seed_length": SEED_LENGTH,
    }

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.parents, self.children = params["parents"], params["children"]
        self.each = self.children // self.parents
        if self.children % self.parents or self.each < 2:
            what = f"siblings: children = {self.children} do not give each of {self.parents} parents equally many, two or more"
            raise InputError(what)
        self.names = tuple(f"p{number}" for number in range(self.parents))
        super().__init__(params, [*map(str, range(self.children)), *self.names], 3)
        self.factors = (Factor("parent", self.names),)
        self.objects: int = self.parents * math.comb(self.each, 2)
        self.floor_bits = self.entropy()["sequence"]

    def draw_words(self, rng: np.random.Generator) -> Tokens:
        parent = rng.integers(self.parents, size=(BLOCK_ROWS, 1))
        children = parent * self.each + distinct(rng, (BLOCK_ROWS,), 2, self.each)
        named = self.children + parent
        return np.concatenate([children, named] if self.params["order"] == "last" else [named, children], axis=1)

    def _read(self, text: str) -> tuple[str | None, list[int]]:
        """The parent that a row names, and its children; either is missing where a row has something else in its place."""
        words = self.words(text)
        if self.params["order"] == "first":
            words = [*words[1:], *words[:1]]
        parent = words[2] if len(words) == 3 and words[2] in self.names else None
        return parent, [int(word) for word in words[:2] if word.isdigit()]

    def read(self, text: str) -> Reading:
        """Valid: two distinct children and their common parent. parent: the parent that the row names."""
        parent, children = self._read(text)
        own = {self.names[child // self.each] for child in children}
        return Reading({"parent": parent}, valid=len(set(children)) == 2 and own == {parent})

    def identity(self, text: str) -> tuple[int, ...] | None:
        """The two children, the smaller one first."""
        return tuple(sorted(self._read(text)[1])) if self.read(text).valid else None

    def entropy(self) -> dict[str, float]:
        parent, children = math.log2(self.parents), math.log2(self.each * (self.each - 1))
        return {"parent": parent, "children_given_parent": children, "sequence": parent + children}
