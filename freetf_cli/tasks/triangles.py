"""triangles: three edges of a fixed random graph that close, an open-ended task after Nagarajan et al. (arXiv 2504.15266).

    {"text": "88 150 150 223 223 88", "factors": {"first": 88}}

How a row is made: one of all triangles of a graph, uniform; its nodes a, b, c in random order; the edges `a b b c c a`. The graph has
`nodes` nodes (256), and each pair is joined with probability `density` (1/4); it is drawn once from the parameters, so it is the same for
all seeds and splits. It is never shown as a whole: a model learns its edges from the triangles. A row is valid if its three pairs are
distinct edges of the graph between three nodes, in any order and direction. Two rows with the same nodes show the same object.

The sizes are ours. They give 8,190 edges and 43,559 triangles: 10,000 training rows show an edge 3.7 times on average, so that most
unseen triangles consist of known edges, and about a fifth of all triangles, so that most triangles are unseen.
`seed_length`: random letters before each row (see `open_ended.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from freetf_cli.errors import InputError
from freetf_cli.streams import data_generator
from freetf_cli.tasks.base import BLOCK_ROWS, Param, Tokens, distinct
from freetf_cli.tasks.factors import Factor, Ints, Reading
from freetf_cli.tasks.open_ended import SEED_LENGTH, OpenEnded


class Triangles(OpenEnded):
    """Triangles of a fixed graph."""

    PARAMS: ClassVar[Mapping[str, Param]] = {
        "nodes": Param(256, "nodes of the graph", 3, 2000),
        "density": Param(0.25, "probability that two nodes are joined", 0, 1),
        "seed_length": SEED_LENGTH,
    }

    def __init__(self, params: Mapping[str, Any]) -> None:
        nodes = params["nodes"]
        super().__init__(params, [str(node) for node in range(nodes)], 6)
        rng = data_generator(self.name, "graph", nodes, params["density"])
        self.upper = np.triu(rng.random((nodes, nodes)) < params["density"], 1)  # [smaller node, larger node]
        self.triangles = triangles_of(self.upper)
        self.objects: int = len(self.triangles)
        if not self.objects:
            raise InputError(f"triangles: the graph of nodes = {nodes} and density = {params['density']:g} has no triangle")
        self.factors = (Factor("first", range(nodes)),)
        self.floor_bits = self.entropy()["sequence"]

    def draw_words(self, rng: np.random.Generator) -> Tokens:
        chosen = self.triangles[rng.integers(self.objects, size=BLOCK_ROWS)]
        nodes = np.take_along_axis(chosen, distinct(rng, (BLOCK_ROWS,), 3, 3), axis=1)
        return nodes[:, [0, 1, 1, 2, 2, 0]]

    def read(self, text: str) -> Reading:
        """Valid: three distinct edges of the graph between three nodes. first: the first word."""
        words = self.words(text)
        return Reading({"first": int(words[0]) if words and words[0].isdigit() else None}, valid=self.identity(text) is not None)

    def identity(self, text: str) -> tuple[int, ...] | None:
        """The three nodes in rising order."""
        words = self.words(text)
        if len(words) != 6 or not all(map(str.isdigit, words)):
            return None
        numbers = [int(word) for word in words]
        edges = {(min(pair), max(pair)) for pair in zip(numbers[::2], numbers[1::2], strict=True)}
        nodes = sorted(set(numbers))
        return tuple(nodes) if len(edges) == len(nodes) == 3 and all(self.upper[edge] for edge in edges) else None

    def entropy(self) -> dict[str, float]:
        """The six orders of each triangle are equally likely."""
        return {"object": math.log2(self.objects), "order": math.log2(6), "sequence": math.log2(6 * self.objects)}


def triangles_of(upper: np.ndarray) -> Ints:
    """Every triangle of a graph [triangles, 3], its nodes rising. upper: the upper half of the adjacency matrix."""
    found = [np.empty((0, 3), np.int64)]
    for node, row in enumerate(upper):
        larger = np.flatnonzero(row)
        pairs = larger[np.argwhere(upper[np.ix_(larger, larger)])]
        found.append(np.concatenate([np.full((len(pairs), 1), node), pairs], axis=1))
    return np.concatenate(found)
