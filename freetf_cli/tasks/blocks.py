"""blocks: find the block that holds the question's letters, the toy task of Multi-Token Attention (arXiv 2504.00927).

    {"text": "ctrwn.yzefm.nsrdx.msglk#mkmsglk", "factors": {"answer": "msglk", "block": 3}}

The question is four blocks, `#` and the letters m and k. The answer is msglk, the one block that holds both letters.

How a row is made: `blocks` blocks of `n` distinct lower-case letters (5), joined by dots; `#`; `query` letters of one block (2) in any
order; then the answer: that block (`which` = all), or only its first or last letter. A row is `SEP text SEP`; the answer and the
closing separator are the targets. blocks = 0 means as many blocks as fit in the released row of 319 characters: 52 for n = 5,
34 for n = 8.

Differences from the released generator: it cuts the string of blocks at a character, so that for n = 8 its 35th block has two
letters and one row in 35 has no answer, while here every block is whole; and it knows only `all`. As there, no block stands twice in a
row, and exactly one holds the question's letters: a distractor that does, or that is a copy, is drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from string import ascii_lowercase
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from freetf_cli.errors import InputError
from freetf_cli.streams import stream_seed
from freetf_cli.tasks.base import BLOCK_ROWS, Example, Param, Rows, Task, decoder, distinct
from freetf_cli.tasks.factors import Ints, Reading, Span

ROW_CHARACTERS = 319  # question and whole-block answer, as released
ALPHABET = ascii_lowercase + ".#"
DOT, HASH, SEPARATOR = 26, 27, 28


class Blocks(Task):
    """Multi-Token Attention's task, with whole blocks only. The question decides the answer, so there is no factor for Z to encode."""

    alphabet = ALPHABET
    separator = True
    floor_bits = 0.0
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
        distractors = math.perm(26, n) - math.perm(n, query) * math.perm(26 - query, n - query)  # blocks without the question's letters
        if count - 1 > distractors // 2:  # drawing the last ones, all different, would take minutes
            raise InputError(f"blocks: blocks = {count} is more than half of the {distractors} different blocks that may stand in a row")
        super().__init__({**params, "blocks": count})
        self.n, self.query, self.count = n, query, count
        self.answer = {"all": slice(0, n), "first": slice(0, 1), "last": slice(n - 1, n)}[params["which"]]
        self.question = count * (n + 1) - 1 + 1 + query  # characters before the answer
        self.loss_start = 1 + self.question
        self.row_tokens = self.loss_start + len(range(n)[self.answer]) + 1

    def draw(self, rng: np.random.Generator) -> Rows:
        blocks = distinct(rng, (BLOCK_ROWS, self.count), self.n, 26)
        index = rng.integers(self.count, size=BLOCK_ROWS)
        target = blocks[np.arange(BLOCK_ROWS), index]
        order = distinct(rng, (BLOCK_ROWS,), self.query, self.n)
        asked = np.take_along_axis(target, order, axis=1)
        self._redraw(rng, blocks, index, asked)
        tokens = self._assemble(blocks, asked, target)
        text = decoder(ALPHABET)

        def example(i: int) -> Example:
            return Example(text(tokens[i, 1:-1]), {"answer": text(target[i, self.answer]), "block": int(index[i])})

        return Rows(tokens, example)

    def _redraw(self, rng: np.random.Generator, blocks: Ints, index: Ints, asked: Ints) -> None:
        """Draw again, in place, every distractor that holds all the question's letters or stands in its row twice, until none does."""
        rows = np.arange(BLOCK_ROWS)
        while len(rows):
            wrong = repeated(blocks[rows])
            wrong |= (blocks[rows, :, :, None] == asked[rows, None, None, :]).any(axis=2).all(axis=2)
            wrong[np.arange(len(rows)), index[rows]] = False
            row, place = np.nonzero(wrong)
            blocks[rows[row], place] = distinct(rng, (len(row),), self.n, 26)
            rows = rows[np.unique(row)]

    def _assemble(self, blocks: Ints, asked: Ints, target: Ints) -> Ints:
        """Token rows [rows, row_tokens] from blocks [rows, count, n], question letters and target blocks."""
        dots = np.full((*blocks.shape[:2], 1), DOT)
        joined = np.concatenate([blocks, dots], axis=2).reshape(BLOCK_ROWS, -1)
        joined[:, -1] = HASH
        edge = np.full((BLOCK_ROWS, 1), SEPARATOR)
        return np.concatenate([edge, joined, asked, target[:, self.answer], edge], axis=1)

    def prompt(self, seed: int, index: int) -> str:
        """A whole question, up to its last letter."""
        return self.examples(stream_seed(seed, "prompt"), index, 1)[0].text[: self.question]

    def read(self, text: str) -> Reading:
        """Valid: a well-formed question, then the answer of the one block that holds its letters."""
        asked, answer = text[: self.question], text[self.question :]
        blocks, query = asked[: -self.query - 1].split("."), set(asked[-self.query :])
        holding = [number for number, block in enumerate(blocks) if query <= set(block)]
        formed = len(blocks) == len(set(blocks)) == self.count and all(len(block) == len(set(block)) == self.n for block in blocks)
        formed = formed and asked[-self.query - 1] == "#" and len(query) == self.query and len(holding) == 1
        right = formed and answer == blocks[holding[0]][self.answer]
        return Reading({"answer": answer, "block": holding[0] if formed else None}, valid=right)

    def spans(self, text: str) -> list[Span]:
        """A right answer is the target."""
        pieces: list[Span] = [(text[: self.question], "plain"), (text[self.question :], "target" if self.read(text).valid else "invalid")]
        return [piece for piece in pieces if piece[0]]

    def entropy(self) -> dict[str, float]:
        return {"answer_given_question": 0.0}


def repeated(blocks: Ints) -> NDArray[np.bool_]:
    """Which blocks of a row [rows, count, n] stand there before too, [rows, count]."""
    words = blocks @ 26 ** np.arange(blocks.shape[2])
    order = words.argsort(axis=1, kind="stable")
    sorted_words = np.take_along_axis(words, order, axis=1)
    copies = np.zeros(words.shape, bool)
    np.put_along_axis(copies, order[:, 1:], sorted_words[:, 1:] == sorted_words[:, :-1], axis=1)
    return copies
