"""coins: noisy copies of one hidden coin, the example of the paper's section 2.

    {"text": "0110111111", "factors": {"z": 1}}

Z is a fair coin; each of `length` symbols (64) is Z, flipped with probability `flip` (0.1). There is no separator and no
prompt: the first symbol is given, the others are predicted.

The paper's two formulas are misprinted. By its own words P(X = 1 | Z = z) = (1 − ε) z + ε (1 − z), where it prints
ε and 1 − ε exchanged; and what it prints as its equation (2) is the probability of a **0**: after one 1 it gives
2ε(1 − ε), while a second 1 has probability ε² + (1 − ε)². What follows, after k ones in t symbols:

    P(Z = 1 | x) = 1 / (1 + (ε / (1 − ε))^(2k − t)),    P(X_{t+1} = 1 | x) = (1 − ε) P(Z = 1 | x) + ε P(Z = 0 | x)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from freetf_cli.data.tasks.base import BLOCK, Example, Param, Rows, Task, letters_to_text


class Coins(Task):
    """Section 2's sequences, with the hidden coin as their factor."""

    name = "coins"
    label = "z"
    alphabet = "01"
    PARAMS: ClassVar[Mapping[str, Param]] = {
        "length": Param(64, "symbols in a row", 2, 4096),
        "flip": Param(0.1, "probability that a symbol is not Z", 0, 1),
    }

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.row_tokens, self.flip = params["length"], params["flip"]
        self.floor_bits = self.entropy()["given_first"]

    def draw(self, rng: np.random.Generator) -> Rows:
        z = rng.integers(2, size=BLOCK)
        flipped = rng.random((BLOCK, self.row_tokens)) < self.flip
        tokens = np.asarray(z[:, None] ^ flipped, np.int64)
        text = letters_to_text("01")
        return Rows(tokens, lambda i: Example(text(tokens[i]), {"z": int(z[i])}))

    def prompt(self, seed: int, index: int) -> str:
        """One symbol; 0 and 1 take turns."""
        return str((seed + index) % 2)

    def next_is_one(self, ones: int, seen: int) -> float:
        """P(X_{t+1} = 1 | x_1 … x_t) with `ones` ones among the t = `seen` symbols; the first symbol is fair."""
        weights = [_power(1 - self.flip, a) * _power(self.flip, seen - a) for a in (ones, seen - ones)]
        if not sum(weights):
            raise ValueError(f"{ones} ones in {seen} symbols cannot happen with flip = {self.flip}")
        return ((1 - self.flip) * weights[0] + self.flip * weights[1]) / sum(weights)

    def entropy(self) -> dict[str, float]:
        """Bits per sequence, exact: all sequences with k ones have the same probability."""
        length = self.row_tokens
        sequence = -sum(
            2 ** (math.log2(math.comb(length, k)) + each) * each for k in range(length + 1) if (each := self._log2(k)) > -math.inf
        )
        return {"sequence": sequence, "given_first": sequence - 1}

    def _log2(self, ones: int) -> float:
        """log2 of the probability of one sequence with so many ones."""
        zeros = self.row_tokens - ones
        return float(np.logaddexp2(*(_log2_run(1 - self.flip, a) + _log2_run(self.flip, b) for a, b in ((ones, zeros), (zeros, ones))))) - 1


def _power(base: float, exponent: int) -> float:
    return float(base**exponent)


def _log2_run(p: float, count: int) -> float:
    """log2 of p to the power of count, with 0 to the power of 0 being 1."""
    return count * math.log2(p) if p > 0 else (0.0 if count == 0 else -math.inf)
