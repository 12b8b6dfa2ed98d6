"""coins: noisy copies of one hidden coin, the example of the paper's section 2.

    {"text": "0111111111111111", "factors": {"z": 1}}

Z is a fair coin; each of `length` symbols (64) is Z, flipped with probability ε = `flip` (0.1). There is no separator and no
prompt: the first symbol is given, the others are predicted.

The paper's two formulas are misprinted. Its own description gives P(X = 1 | Z = z) = (1 − ε) z + ε (1 − z); it prints ε and 1 − ε
exchanged. Its equation (2) is the probability of a **0**: after a single 1 it gives 2ε(1 − ε), while the probability of a second 1
is ε² + (1 − ε)². After k ones in t symbols the correct formulas are

    P(Z = 1 | x) = 1 / (1 + (ε / (1 − ε))^(2k − t)),    P(X_{t+1} = 1 | x) = (1 − ε) P(Z = 1 | x) + ε P(Z = 0 | x)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from freetf_cli.tasks.base import BLOCK_ROWS, Example, Param, Rows, Task, decoder
from freetf_cli.tasks.factors import Factor, Reading, Span, spans_of


class Coins(Task):
    """Section 2's sequences; the factor is the hidden coin."""

    label = "z"
    alphabet = "01"
    factors = (Factor("z", (0, 1)),)
    PARAMS: ClassVar[Mapping[str, Param]] = {
        "length": Param(64, "symbols in a row", 2, 4096),
        "flip": Param(0.1, "probability that a symbol is not Z", 0, 1),
    }

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.row_tokens, self.flip = params["length"], params["flip"]
        self.floor_bits = self.entropy()["given_first"]

    def draw(self, rng: np.random.Generator) -> Rows:
        z = rng.integers(2, size=BLOCK_ROWS)
        flipped = rng.random((BLOCK_ROWS, self.row_tokens)) < self.flip
        tokens = np.asarray(z[:, None] ^ flipped, np.int64)
        text = decoder("01")
        return Rows(tokens, lambda i: Example(text(tokens[i]), {"z": int(z[i])}))

    def prompt(self, seed: int, index: int) -> str:
        """Prompt number `index`: 0 and 1 alternate."""
        return str((seed + index) % 2)

    def other_prompt(self, factors: Mapping[str, Any]) -> str:
        return str(1 - factors["z"])

    def read(self, text: str) -> Reading:
        """z: the commoner symbol after the first, which is given; unread in a tie. Every row is possible, so validity means nothing."""
        excess = 2 * text[1:].count("1") - len(text[1:])
        return Reading({"z": None if excess == 0 else int(excess > 0)})

    def spans(self, text: str) -> list[Span]:
        """Flipped symbols are noise."""
        z = self.read(text).factors["z"]
        return spans_of(text, ["plain" if z is None else "target" if char == str(z) else "noise" for char in text])

    def entropy(self) -> dict[str, float]:
        """Bits per sequence, in all and after the given first symbol. Sequences with equally many ones are equally likely."""
        length = self.row_tokens
        logs = [(math.comb(length, ones), self._log2(ones)) for ones in range(length + 1)]
        sequence = -sum(2 ** (math.log2(ways) + log2) * log2 for ways, log2 in logs if log2 > -math.inf)
        return {"sequence": sequence, "given_first": sequence - 1}

    def _log2(self, ones: int) -> float:
        """log2 of the probability of one sequence with `ones` ones, averaged over Z."""
        zeros = self.row_tokens - ones
        heads = _log2_power(1 - self.flip, ones) + _log2_power(self.flip, zeros)
        tails = _log2_power(1 - self.flip, zeros) + _log2_power(self.flip, ones)
        return float(np.logaddexp2(heads, tails)) - 1


def _log2_power(p: float, count: int) -> float:
    """log2(p ** count), where 0 ** 0 = 1."""
    if p > 0:
        return count * math.log2(p)
    return 0.0 if count == 0 else -math.inf
