"""blocks: find the block that holds the question's letters, the toy task of Multi-Token Attention (arXiv 2504.00927).

    {"text": "ctrwn.yzefm.nsrdx.msglk#mkmsglk", "factors": {"answer": "msglk", "block": 3}}

The question is four blocks, `#` and the letters m and k. The answer is msglk, the one block that holds both letters.

How a row is made: `blocks` blocks of `n` distinct lower-case letters (5), joined by dots; `#`; `query` letters of one block (2) in any
order; then the answer: that block (`which` = all), or only its first or last letter. A row is `SEP text SEP`; the answer and the
closing separator are the targets. blocks = 0 means as many blocks as fit in the released row of 319 characters: 52 for n = 5,
34 for n = 8.

valid: how many blocks hold the question's letters (1). With 2, either is a right answer; the row has one of them, chosen uniformly, and the
factor `choice` says which, counted from the left. This bit is all that the question leaves open. The right answers of a row differ.

Differences from the released generator: it cuts the string of blocks at a character, so that for n = 8 its 35th block has two
letters and one row in 35 has no answer, while here every block is whole; and it knows only `all`, and one right answer. As there, no block
stands twice in a row, and no distractor holds all the question's letters: one that does, or that is a copy, is drawn again.
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
from freetf_cli.tasks.base import BLOCK_ROWS, Example, Param, Rows, Task, Tokens, decoder, distinct
from freetf_cli.tasks.factors import Factor, Ints, Reading, Span

ROW_CHARACTERS = 319  # question and whole-block answer, as released
ALPHABET = ascii_lowercase + ".#"
DOT, HASH, SEPARATOR = 26, 27, 28


class Blocks(Task):
    """Multi-Token Attention's task, with whole blocks only.

    If one block is valid, the question decides the answer, and there is no factor for Z to encode; else there is the choice of the block.
    """

    alphabet = ALPHABET
    separator = True
    PARAMS: ClassVar[Mapping[str, Param]] = {
        "n": Param(5, "letters in a block", 2, 13),
        "query": Param(2, "letters in the question", 1, 12),
        "which": Param("all", "the answer: the whole block, or a letter of it", choices=("all", "first", "last")),
        "blocks": Param(0, "blocks in a row; 0: as many as 319 characters hold", 0, 1000),
        "valid": Param(1, "blocks that hold the question's letters; any of them is a right answer", 1, 4),
    }

    def __init__(self, params: Mapping[str, Any]) -> None:
        n, query, valid = params["n"], params["query"], params["valid"]
        if query >= n:
            raise InputError(f"blocks: query = {query} must be less than n = {n}")
        count = params["blocks"] or (ROW_CHARACTERS - n - (1 + query) + 1) // (n + 1)
        distractors = math.perm(26, n) - math.perm(n, query) * math.perm(26 - query, n - query)  # blocks without the question's letters
        if count - 1 > distractors // 2:  # drawing the last ones, all different, would take minutes
            raise InputError(f"blocks: blocks = {count} is more than half of the {distractors} different blocks that may stand in a row")
        if count < valid:
            raise InputError(f"blocks: blocks = {count} is less than valid = {valid}")
        answers = 26 - query if params["which"] != "all" else math.comb(26 - query, n - query)  # different ones, at least
        if valid > 1 and valid > answers // 2:
            raise InputError(f"blocks: valid = {valid} is more than half of the {answers} sets of letters that an answer can be drawn from")
        super().__init__({**params, "blocks": count})
        self.n, self.query, self.count, self.valid = n, query, count, valid
        self.floor_bits = math.log2(valid)
        if valid > 1:
            self.factors = (Factor("choice", range(valid)),)
        self.answer = {"all": slice(0, n), "first": slice(0, 1), "last": slice(n - 1, n)}[params["which"]]
        self.question = count * (n + 1) - 1 + 1 + query  # characters before the answer
        self.loss_start = 1 + self.question
        self.row_tokens = self.loss_start + len(range(n)[self.answer]) + 1

    def stream_params(self) -> dict[str, Any]:
        """Rows with one valid block are those of the task before it had the parameter `valid`."""
        return self.params if self.valid > 1 else {name: value for name, value in self.params.items() if name != "valid"}

    def draw(self, rng: np.random.Generator) -> Rows:
        blocks = distinct(rng, (BLOCK_ROWS, self.count), self.n, 26)
        index = rng.integers(self.count, size=BLOCK_ROWS)
        target = blocks[np.arange(BLOCK_ROWS), index]
        order = distinct(rng, (BLOCK_ROWS,), self.query, self.n)
        asked = np.take_along_axis(target, order, axis=1)
        holding = index[:, None]
        if self.valid > 1:
            holding = self._add_valid(rng, blocks, index, asked)
            index = holding[np.arange(BLOCK_ROWS), rng.integers(self.valid, size=BLOCK_ROWS)]  # uniform, whatever the blocks are
            target = blocks[np.arange(BLOCK_ROWS), index]
        self._redraw(rng, blocks, holding, asked)
        tokens = self._assemble(blocks, asked, target)
        text, choice = decoder(ALPHABET), (holding < index[:, None]).sum(1)

        def example(i: int) -> Example:
            chosen = {"choice": int(choice[i])} if self.valid > 1 else {}
            return Example(text(tokens[i, 1:-1]), {"answer": text(target[i, self.answer]), "block": int(index[i])} | chosen)

        return Rows(tokens, example)

    def _add_valid(self, rng: np.random.Generator, blocks: Ints, index: Ints, asked: Ints) -> Ints:
        """Write more blocks with the question's letters into each row, in place. Returns the places of all of them [rows, valid].

        Such a block has the question's letters and n − query others, in random order, and is drawn again while two answers are equal.
        """
        others = distinct(rng, (BLOCK_ROWS,), self.valid - 1, self.count - 1)
        places = np.concatenate([index[:, None], others + (others >= index[:, None])], axis=1)
        left = (np.arange(26) != asked[:, :, None]).all(axis=1).nonzero()[1].reshape(BLOCK_ROWS, -1)  # letters that are not asked for
        rows = np.arange(BLOCK_ROWS)
        while len(rows):
            shape = (len(rows), self.valid - 1)
            free = distinct(rng, shape, self.n - self.query, left.shape[1])
            free = np.take_along_axis(left[rows, None], free, axis=2)
            drawn = np.concatenate([np.broadcast_to(asked[rows, None], (*shape, self.query)), free], axis=2)
            order = distinct(rng, shape, self.n, self.n)
            blocks[rows[:, None], places[rows, 1:]] = np.take_along_axis(drawn, order, axis=2)
            answers = blocks[rows[:, None], places[rows]][:, :, self.answer]
            rows = rows[repeated(answers).any(axis=1)]
        return places

    def _redraw(self, rng: np.random.Generator, blocks: Ints, holding: Ints, asked: Ints) -> None:
        """Draw again, in place, every distractor that holds all the question's letters or stands in its row twice, until none does."""
        rows = np.arange(BLOCK_ROWS)
        while len(rows):
            wrong = repeated(blocks[rows])
            wrong |= (blocks[rows, :, :, None] == asked[rows, None, None, :]).any(axis=2).all(axis=2)
            wrong[np.arange(len(rows))[:, None], holding[rows]] = False
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

    def other_prompt(self, factors: Mapping[str, Any]) -> str:
        """The question of a row whose answer is another of its valid blocks; "" if only one block is valid."""
        others = self.stream(stream_seed(0, "prompt"), 0, BLOCK_ROWS) if self.valid > 1 else iter(())
        return next((one.text[: self.question] for one in others if one.factors["choice"] != factors["choice"]), "")

    def alternatives(self, rows: Tokens) -> Tokens:
        """The rows [rows, tokens] with each of their right answers, [valid, rows, tokens], from the leftmost block's to the last.

        Rows may be cut off after the first token of the answer.
        """
        blocks = rows[:, 1 : 1 + self.count * (self.n + 1)].reshape(len(rows), self.count, -1)[:, :, : self.n]
        asked = rows[:, self.loss_start - self.query : self.loss_start]
        holding = (blocks[:, :, :, None] == asked[:, None, None, :]).any(axis=2).all(axis=2)
        found = np.repeat(rows[None], self.valid, axis=0)
        answers = blocks[holding].reshape(len(rows), self.valid, self.n)[:, :, self.answer][:, :, : rows.shape[1] - self.loss_start]
        found[:, :, self.loss_start : self.loss_start + answers.shape[2]] = answers.transpose(1, 0, 2)
        return found

    def read(self, text: str) -> Reading:
        """Valid: a well-formed question, then the answer of a block that holds its letters. choice: which of these."""
        asked, answer = text[: self.question], text[self.question :]
        blocks, query = asked[: -self.query - 1].split("."), set(asked[-self.query :])
        holding = [number for number, block in enumerate(blocks) if query <= set(block)]
        formed = len(blocks) == len(set(blocks)) == self.count and all(len(block) == len(set(block)) == self.n for block in blocks)
        formed = formed and asked[-self.query - 1] == "#" and len(query) == self.query and len(holding) == self.valid
        given = [number for number in holding if answer == blocks[number][self.answer]] if formed else []
        if self.valid == 1:
            return Reading({"answer": answer, "block": holding[0] if formed else None}, valid=len(given) == 1)
        block = given[0] if len(given) == 1 else None
        choice = None if block is None else holding.index(block)
        return Reading({"answer": answer, "block": block, "choice": choice}, valid=block is not None)

    def spans(self, text: str) -> list[Span]:
        """A right answer is the target."""
        pieces: list[Span] = [(text[: self.question], "plain"), (text[self.question :], "target" if self.read(text).valid else "invalid")]
        return [piece for piece in pieces if piece[0]]

    def entropy(self) -> dict[str, float]:
        return {"answer_given_question": math.log2(self.valid)}


def repeated(blocks: Ints) -> NDArray[np.bool_]:
    """Which blocks of a row [rows, count, n] stand there before too, [rows, count]."""
    words = blocks @ 26 ** np.arange(blocks.shape[2])
    order = words.argsort(axis=1, kind="stable")
    sorted_words = np.take_along_axis(words, order, axis=1)
    copies = np.zeros(words.shape, bool)
    np.put_along_axis(copies, order[:, 1:], sorted_words[:, 1:] == sorted_words[:, :-1], axis=1)
    return copies
