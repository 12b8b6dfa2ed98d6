"""The base of the open-ended tasks (Nagarajan et al., arXiv 2504.15266): rows of words, random prefixes, objects without order.

task = make_task("circles", {"nodes": 3, "seed_length": 5})
task.prompt(0, 7)                          # "z d l l a": a random prefix, a new one for each row to generate
task.identity("z d l l a 7 1 3 7 1 3")     # (1, 3, 7): the circle, whatever the order of its edges

With `seed_length` > 0 each row begins with a random string of letters ("seed-conditioning"), which is not a target. A row of a finite
training set keeps its string in every epoch, as in the published code. Rows are otherwise the same for every `seed_length`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any, ClassVar

import numpy as np

from freetf_cli.errors import InputError
from freetf_cli.streams import data_generator
from freetf_cli.tasks.base import BLOCK_ROWS, Example, Param, Rows, Task, Tokens, decoder, distinct
from freetf_cli.tasks.factors import Factor, Reading

SEED_LENGTH = Param(0, "random letters before each row", 0, 100)


class OpenEnded(Task):
    """A task with many right rows and no question: `SEP prefix words SEP`, where everything after the prefix is a target."""

    separator = True
    hidden_word = "$"

    def __init__(self, params: Mapping[str, Any], words: Sequence[str], length: int) -> None:
        """words: of the rows, besides letters. length: words of a row after its prefix."""
        super().__init__(params)
        self.seed_length, self._letter = params["seed_length"], len(words)
        letters = ascii_lowercase if self.seed_length else ""
        self.alphabet: tuple[str, ...] = (*words, *letters, "$")
        self.loss_start = 1 + self.seed_length
        self.row_tokens = self.loss_start + length + 1

    def stream_params(self) -> dict[str, Any]:
        """All but the length of the prefix, so that arms of a comparison have the same rows."""
        return {name: value for name, value in self.params.items() if name != "seed_length"}

    @abstractmethod
    def draw_words(self, rng: np.random.Generator) -> Tokens:
        """The words of BLOCK_ROWS rows without prefix, as ids [BLOCK_ROWS, length]."""

    def draw(self, rng: np.random.Generator) -> Rows:
        words, edge = self.draw_words(rng), np.full((BLOCK_ROWS, 1), len(self.alphabet))
        prefix = self._letter + rng.integers(26, size=(BLOCK_ROWS, self.seed_length))  # drawn last: see `stream_params`
        tokens, text = np.concatenate([edge, prefix, words, edge], axis=1), decoder(self.alphabet)

        def example(i: int) -> Example:
            row = text(tokens[i, 1:-1])
            return Example(row, dict(self.read(row).factors))

        return Rows(tokens, example)

    def prompt(self, seed: int, index: int) -> str:
        """A random prefix; empty without one."""
        letters = data_generator(self.name, "prefix", seed, index).integers(26, size=self.seed_length)
        return " ".join(ascii_lowercase[letter] for letter in letters)

    def words(self, text: str) -> list[str]:
        """The words of a row after its prefix."""
        return text.split(" ")[self.seed_length :]


class EdgeLists(OpenEnded):
    """The directed edges of a circle, or of a line, through some of the nodes, in random order: `3 7 7 1 1 3`."""

    closed: ClassVar[bool]

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.size, self.among = params["nodes"], params["among"]
        if self.size > self.among:
            raise InputError(f"{self.name}: nodes = {self.size} is more than among = {self.among}")
        self.edges = self.size if self.closed else self.size - 1
        super().__init__(params, [str(node) for node in range(self.among)], 2 * self.edges)
        self.factors = (Factor("first", range(self.among)), Factor("nodes", (False, True), sites=self.among))
        self.objects: int = math.perm(self.among, self.size) // (self.size if self.closed else 1)
        self.floor_bits = self.entropy()["sequence"]

    def draw_words(self, rng: np.random.Generator) -> Tokens:
        nodes = distinct(rng, (BLOCK_ROWS,), self.size, self.among)
        edges = np.stack([nodes, np.roll(nodes, -1, axis=1)], axis=2)[:, : self.edges]
        order = distinct(rng, (BLOCK_ROWS,), self.edges, self.edges)
        return np.take_along_axis(edges, order[:, :, None], axis=1).reshape(BLOCK_ROWS, -1)

    def walk(self, text: str) -> list[int]:
        """The nodes of a valid row in the order of its edges, from where the line begins or from the first word; empty if invalid."""
        words = self.words(text)
        if len(words) != 2 * self.edges or not all(map(str.isdigit, words)):
            return []
        numbers = [int(word) for word in words]
        follows = dict(zip(numbers[::2], numbers[1::2], strict=True))
        starts = numbers[:1] if self.closed else [node for node in follows if node not in follows.values()]
        path = starts[:1]
        while len(path) <= self.edges and path and path[-1] in follows:
            path.append(follows[path[-1]])
        nodes = path[: self.size]
        whole = len(path) == self.edges + 1 and len(set(nodes)) == self.size == len(follows) + (not self.closed)
        return nodes if whole and (not self.closed or path[-1] == path[0]) else []

    def read(self, text: str) -> Reading:
        """Valid: walking along the edges visits all nodes once, and in a circle returns. first: the first word."""
        nodes = [int(word) for word in self.words(text) if word.isdigit()]
        return Reading({"first": nodes[0] if nodes else None, "nodes": sorted(set(nodes))}, valid=bool(self.walk(text)))

    def identity(self, text: str) -> tuple[int, ...] | None:
        """The nodes in the order of the edges; of a circle, from the smallest one."""
        nodes = self.walk(text)
        begin = nodes.index(min(nodes)) if nodes and self.closed else 0
        return (*nodes[begin:], *nodes[:begin]) or None

    def entropy(self) -> dict[str, float]:
        """Every order of the edges of every object is equally likely."""
        objects, order = math.log2(self.objects), math.log2(math.factorial(self.edges))
        return {"object": objects, "order": order, "sequence": objects + order}
