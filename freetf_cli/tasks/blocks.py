"""blocks: find the block that holds the question's letters, the toy task of Multi-Token Attention (arXiv 2504.00927).

    ctrwn.yzefm.nsrdx.msglk#mkmsglk

The question: four blocks, `#`, the letters m and k. The answer: msglk, the one block that holds both.
`blocks` blocks of `n` distinct lower-case letters (5), joined by dots; `#`; `query` letters of one of them (2) in any
order; then the answer: that block (`which` = all), or only its first or last letter. A row is `SEP text SEP`, and the loss
counts the answer and the closing separator. blocks = 0 stands for as many whole blocks as the released row of 319 characters
holds: 52 for n = 5, 34 for n = 8.

Mended against the released generator: it cuts the block string at a character, so that with n = 8 its 35th block keeps two
letters and one row in 35 has no answer, where here every block is whole; it knows `all` only; and exactly one block
answers a question here whatever n and query are, since each distractor that holds all the question's letters is drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from freetf_cli.errors import InputError
from freetf_cli.tasks.base import BLOCK, Example, Param, Rows, Task, letters_to_text, stream_seed

ROW_CHARACTERS = 319  # question and whole-block answer, as released
ALPHABET = ascii_lowercase + ".#"
DOT, HASH, SEPARATOR = 26, 27, 28
Letters = NDArray[np.int64]


class Blocks(Task):
    """Multi-Token Attention's task, whole blocks only."""

    name = "blocks"
    alphabet = ALPHABET
    separator = True
    floor_bits = 0.0  # the question decides the answer
    PARAMS: ClassVar[Mapping[str, Param]] = {
        "n": Param(5, "letters in a block", 2, 13),
        "query": Param(2, "letters in the question", 1, 12),
        "which": Param("all", "the answer: the whole block, or a letter of it", choices=("all", "first", "last")),
        "blocks": Param(0, "blocks in a row; 0: as many as 319 characters hold", 0, 1000),
    }

    def __init__(self, params: Mapping[str, Any]) -> None:
        n, query = params["n"], params["query"]
        if query >= n:
            raise InputError(f"blocks: query = {query} must be less than n = {n}")
        count = params["blocks"] or (ROW_CHARACTERS - n - (1 + query) + 1) // (n + 1)
        super().__init__({**params, "blocks": count})
        self.n, self.query, self.count = n, query, count
        self.answer = {"all": slice(0, n), "first": slice(0, 1), "last": slice(n - 1, n)}[params["which"]]
        self.question = count * (n + 1) - 1 + 1 + query  # characters up to the answer
        self.loss_start = 1 + self.question
        self.row_tokens = self.loss_start + len(range(n)[self.answer]) + 1

    def draw(self, rng: np.random.Generator) -> Rows:
        blocks = distinct(rng, (BLOCK, self.count), self.n)
        index = rng.integers(self.count, size=BLOCK)
        target = blocks[np.arange(BLOCK), index]
        order = distinct(rng, (BLOCK,), self.query, among=self.n)
        asked = np.take_along_axis(target, order, axis=1)
        self._redraw(rng, blocks, index, asked)
        tokens = self._assemble(blocks, asked, target)
        text = letters_to_text(ALPHABET)

        def example(i: int) -> Example:
            return Example(text(tokens[i, 1:-1]), {"answer": text(target[i, self.answer]), "block": int(index[i])})

        return Rows(tokens, example)

    def _redraw(self, rng: np.random.Generator, blocks: Letters, index: Letters, asked: Letters) -> None:
        """Draw anew, in place, every distractor that holds all the letters asked for, until none does."""
        while True:
            holds = (blocks[:, :, :, None] == asked[:, None, None, :]).any(axis=2).all(axis=2)
            holds[np.arange(BLOCK), index] = False
            if not holds.any():
                return
            blocks[holds] = distinct(rng, (int(holds.sum()),), self.n)

    def _assemble(self, blocks: Letters, asked: Letters, target: Letters) -> Letters:
        """Token rows [BLOCK, row_tokens] out of blocks [BLOCK, count, n], question letters and target blocks."""
        dots = np.full((*blocks.shape[:2], 1), DOT)
        joined = np.concatenate([blocks, dots], axis=2).reshape(BLOCK, -1)
        joined[:, -1] = HASH
        edge = np.full((BLOCK, 1), SEPARATOR)
        return np.concatenate([edge, joined, asked, target[:, self.answer], edge], axis=1)

    def prompt(self, seed: int, index: int) -> str:
        """A whole question, up to its last letter."""
        return self.examples(stream_seed(seed, "prompt"), index, 1)[0].text[: self.question]

    def entropy(self) -> dict[str, float]:
        return {"answer_given_question": 0.0}


def distinct(rng: np.random.Generator, shape: tuple[int, ...], count: int, among: int = 26) -> Letters:
    """Draws of `count` distinct numbers below `among`, in random order: [*shape, count]. The first steps of a shuffle."""
    rows = int(np.prod(shape))
    pool = np.tile(np.arange(among), (rows, 1))
    row = np.arange(rows)
    for k in range(count):
        chosen = rng.integers(k, among, size=rows)
        pool[row, k], pool[row, chosen] = pool[row, chosen], pool[row, k]
    return pool[:, :count].reshape(*shape, count)
