"""pathstar: the path to a goal through a star of arms, a task with one right answer (Bachmann and Nagarajan, arXiv 2403.06963).

    {"text": "28 29 | 45 37 | 0 45 | 0 28 / 0 37 = 0 45 37", "factors": {"arm": 1}}

How a row is made: from a start, `degree` arms (2) of `length` nodes each (5), the start included; all nodes are distinct numbers below
`nodes` (50). The edges, in random order, are the question, followed by the start and the goal, which is the end of one arm, chosen
uniformly; the answer is the path from the start to the goal. Above: degree 2, length 3. Only the answer and the closing separator are
targets. With `order` = reversed the path is written from the goal, which needs no choice.

The tokens are those of the published tokenizer, which also leaves out commas. The first step decides the arm; a model that learns the
other steps by following edges is right with probability 1 / degree. The question decides the answer, so Z from the prior cannot help.
arm: the place of the answer's first step among the neighbours of the start, in rising order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from freetf_cli.errors import InputError
from freetf_cli.tasks.base import BLOCK_ROWS, Example, Param, Rows, decoder, distinct
from freetf_cli.tasks.factors import Factor, Reading
from freetf_cli.tasks.questions import Question


class PathStar(Question):
    """Path-star graphs; the factor is the arm."""

    label = "arm"
    floor_bits = 0.0
    PARAMS: ClassVar[Mapping[str, Param]] = {
        "degree": Param(2, "arms", 2, 100),
        "length": Param(5, "nodes of a path, the start included", 2, 100),
        "nodes": Param(50, "numbers to choose from", 3, 10_000),
        "order": Param("forward", "the path from the start, or from the goal", choices=("forward", "reversed")),
    }

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.degree, self.length, self.nodes = params["degree"], params["length"], params["nodes"]
        self.edges = self.degree * (self.length - 1)
        if self.edges + 1 > self.nodes:
            raise InputError(f"pathstar: {self.degree} arms of length = {self.length} need more than nodes = {self.nodes}")
        self.alphabet: tuple[str, ...] = (*map(str, range(self.nodes)), "|", "/", "=", "$")
        self.loss_start = 1 + 3 * self.edges + 3
        self.row_tokens = self.loss_start + self.length + 1
        self.factors = (Factor("arm", range(self.degree)),)

    def draw(self, rng: np.random.Generator) -> Rows:
        bar, slash, equals, _, edge = range(self.nodes, self.nodes + 5)
        nodes, steps = distinct(rng, (BLOCK_ROWS,), self.edges + 1, self.nodes), self.length - 1
        start, arms = nodes[:, :1], nodes[:, 1:].reshape(BLOCK_ROWS, self.degree, steps)
        before = np.concatenate([np.repeat(start[:, None], self.degree, axis=1), arms[:, :, :-1]], axis=2)
        edges = np.stack([before, arms, np.full_like(arms, bar)], axis=3).reshape(BLOCK_ROWS, self.edges, 3)
        edges = np.take_along_axis(edges, distinct(rng, (BLOCK_ROWS,), self.edges, self.edges)[:, :, None], axis=1)
        edges[:, -1, 2] = slash
        path = np.concatenate([start, arms[:, 0]], axis=1)
        ends = [np.full((BLOCK_ROWS, 1), one) for one in (edge, equals)]
        answer = path if self.params["order"] == "forward" else path[:, ::-1]
        tokens = np.concatenate([ends[0], edges.reshape(BLOCK_ROWS, -1), start, path[:, -1:], ends[1], answer, ends[0]], axis=1)
        text, ranks = decoder(self.alphabet), (arms[:, :, 0] < arms[:, :1, 0]).sum(1)
        return Rows(tokens, lambda i: Example(text(tokens[i, 1:-1]), {"arm": int(ranks[i])}))

    def read(self, text: str) -> Reading:
        """Valid: the answer is the path from the start to the goal. arm: that of the answer's first step; None if no edge leads there."""
        words = text.split(" ")
        question, path = words[: self.loss_start - 1], words[self.loss_start - 1 :]
        pairs = list(zip(question[0:-3:3], question[1:-3:3], strict=False))
        if len(question) < self.loss_start - 1 or not all(word.isdigit() for pair in pairs for word in pair):
            return Reading({"arm": None}, valid=False)
        start, goal, before = question[-3], question[-2], {b: a for a, b in pairs}
        right = [goal]
        while right[-1] in before and len(right) <= self.edges:
            right.append(before[right[-1]])
        path = path if self.params["order"] == "reversed" else path[::-1]  # from the goal
        neighbours = sorted(int(b) for a, b in pairs if a == start)
        first = int(path[-2]) if len(path) > 1 and path[-2].isdigit() else None
        arm = neighbours.index(first) if first in neighbours else None
        return Reading({"arm": arm}, valid=path == right and right[-1] == start)

    def entropy(self) -> dict[str, float]:
        return {"answer_given_question": 0.0}
