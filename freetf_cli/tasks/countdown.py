"""countdown: make a target from given numbers by arithmetic, a task with many right answers (Gandhi et al., arXiv 2404.03683).

    {"text": "32 47 20 59 : 47 - 20 = 27 , 32 + 27 = 59", "factors": {"operator": "-"}}

How a row is made: `numbers` numbers (4) from 1 to `largest` − 1 (99); then step by step two of the numbers that are left, at random, are
replaced by their sum, difference, product or quotient, one of those that are whole numbers from 1 to `largest`; the last number is
the target, at least 10, else the row is drawn again. The question is the numbers and the target; the answer is the steps, with the larger
number first. Above: three numbers. Only the answer and the closing separator are targets. Numbers, signs and commas are one token
each.

Every answer that follows the rules and ends with the target is right, whatever its steps and their order. The published data has the
same steps, without spaces (arXiv 2410.14157), and larger intermediate results; here every result must be a word of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from freetf_cli.tasks.base import BLOCK_ROWS, Example, Param, Rows, decoder, distinct
from freetf_cli.tasks.factors import Factor, Ints, Reading
from freetf_cli.tasks.questions import Question

OPERATORS = "+-*/"
LEAST_TARGET = 10


class Countdown(Question):
    """Numbers and a target; the factor is the operator of the first step."""

    label = "operator"
    factors = (Factor("operator", OPERATORS),)
    PARAMS: ClassVar[Mapping[str, Param]] = {
        "numbers": Param(4, "numbers to combine", 2, 8),
        "largest": Param(100, "largest number, target or result", 20, 1000),
    }

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.count, self.largest = params["numbers"], params["largest"]
        self.alphabet: tuple[str, ...] = (*map(str, range(1, self.largest + 1)), *OPERATORS, "=", ",", ":", "$")
        self.loss_start = 1 + self.count + 2
        self.row_tokens = self.loss_start + 6 * (self.count - 1)  # the separator takes the place of the last comma

    def draw(self, rng: np.random.Generator) -> Rows:
        equals, comma, colon, _, edge = range(self.largest + len(OPERATORS), len(self.alphabet) + 1)
        given, steps = self._solved(rng)
        while len(low := np.flatnonzero(steps[:, -1, 3] < LEAST_TARGET)):
            drawn = self._solved(rng)
            given[low], steps[low] = drawn[0][low], drawn[1][low]
        a, operator, b, result = (steps[:, :, k] for k in range(4))
        signs = [np.full_like(a, one) for one in (equals, comma)]
        answer = np.stack([a - 1, self.largest + operator, b - 1, signs[0], result - 1, signs[1]], axis=2).reshape(BLOCK_ROWS, -1)
        answer[:, -1] = edge
        columns = [np.full((BLOCK_ROWS, 1), one) for one in (edge, colon)]
        tokens = np.concatenate([columns[0], given - 1, result[:, -1:] - 1, columns[1], answer], axis=1)
        text = decoder(self.alphabet)
        return Rows(tokens, lambda i: Example(text(tokens[i, 1:-1]), {"operator": OPERATORS[operator[i, 0]]}))

    def _solved(self, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Numbers [rows, count], and the steps of a solution [rows, count − 1, 4], each a, operator, b, result."""
        given = rng.integers(1, self.largest, size=(BLOCK_ROWS, self.count))
        left, steps, row = given, [], np.arange(BLOCK_ROWS)[:, None]
        for size in range(self.count, 1, -1):
            order = distinct(rng, (BLOCK_ROWS,), size, size)
            left = left[row, order]
            pair = np.sort(left[:, :2], axis=1)
            b, a = pair[:, 0], pair[:, 1]
            results = np.stack([a + b, a - b, a * b, np.where(a % b == 0, a // b, 0)], axis=1)
            possible = (results >= 1) & (results <= self.largest)  # never none: a − b is, or a / b = 1
            operator = np.where(possible, rng.random(possible.shape), -1).argmax(1)
            result = results[row[:, 0], operator]
            steps.append(np.stack([a, operator, b, result], axis=1))
            left = np.concatenate([left[:, 2:], result[:, None]], axis=1)
        return given, np.stack(steps, axis=1)

    def read(self, text: str) -> Reading:
        """Valid: every step is correct and uses two remaining numbers; the last result is the target. operator: the first step's."""
        words = text.split(" ")
        numbers, target, answer = words[: self.count], words[self.count : self.count + 1], words[self.loss_start - 1 :]
        steps = [answer[start : start + 6] for start in range(0, len(answer), 6)]
        operator = answer[1] if len(answer) > 1 and answer[1] in OPERATORS else None
        valid = len(steps) == self.count - 1 and all(step[5:] == [","] for step in steps[:-1]) and len(steps[-1]) == 5
        left = list(numbers)
        for step in steps if valid else []:
            valid = valid and _is_right(step) and _take(left, step[0]) and _take(left, step[2])
            left.append(step[4])
        return Reading({"operator": operator}, valid=valid and left == target)

    def entropy(self) -> dict[str, float]:
        """Empty: no entropy is known, because a question has many right answers that are not equally likely."""
        return {}


def _is_right(step: list[str]) -> bool:
    """Whether a step, `a operator b = result`, is true of whole numbers."""
    a, operator, b, equals, result = step[:5]
    if equals != "=" or operator not in OPERATORS or not (a + b + result).isdigit():
        return False
    x, y, z = int(a), int(b), int(result)
    return z == {"+": x + y, "-": x - y, "*": x * y}.get(operator, x / y)


def _take(left: list[str], number: str) -> bool:
    """Remove a number from the list, if it is there. Returns whether it was."""
    found = number in left
    if found:
        left.remove(number)
    return found
