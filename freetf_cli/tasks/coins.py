"""coins: noisy copies of one hidden coin, the example of the paper's section 2.

    {"text": "0111111111111111", "factors": {"z": 1}}

Z is a fair coin; each of `length` symbols (64) is Z, flipped with probability ε = `flip` (0.1). A row is `SEP text SEP`, so that a
model can decide the coin before the first symbol. The closing separator costs nothing, since all rows are equally long.

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
from numpy.typing import NDArray

from freetf_cli.tasks.base import BLOCK_ROWS, Example, Param, Rows, Task, decoder
from freetf_cli.tasks.factors import Factor, Reading, Span, spans_of

SEPARATOR = 2  # the id after those of 0 and 1


class Coins(Task):
    """Section 2's sequences; the factor is the hidden coin."""

    label = "z"
    alphabet = "01"
    separator = True
    factors = (Factor("z", (0, 1)),)
    PARAMS: ClassVar[Mapping[str, Param]] = {
        "length": Param(64, "symbols in a row", 2, 4096),
        "flip": Param(0.1, "probability that a symbol is not Z", 0, 1),
    }

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.length, self.flip = params["length"], params["flip"]
        self.row_tokens = self.length + 2
        self.floor_bits = self.entropy()["sequence"]

    def draw(self, rng: np.random.Generator) -> Rows:
        z = rng.integers(2, size=BLOCK_ROWS)
        flipped = rng.random((BLOCK_ROWS, self.length)) < self.flip
        tokens = np.full((BLOCK_ROWS, self.row_tokens), SEPARATOR, np.int64)
        tokens[:, 1:-1] = z[:, None] ^ flipped
        text = decoder("01")
        return Rows(tokens, lambda i: Example(text(tokens[i, 1:-1]), {"z": int(z[i])}))

    def prompt(self, seed: int, index: int) -> str:
        """Empty: a row begins after the separator."""
        return ""

    def read(self, text: str) -> Reading:
        """z: the commoner symbol; unread in a tie. A row of the right length is valid."""
        excess = 2 * text.count("1") - len(text)
        return Reading({"z": None if excess == 0 else int(excess > 0)}, valid=len(text) == self.length)

    def spans(self, text: str) -> list[Span]:
        """Flipped symbols are noise."""
        z = self.read(text).factors["z"]
        return spans_of(text, ["plain" if z is None else "target" if char == str(z) else "noise" for char in text])

    def entropy(self) -> dict[str, float]:
        """Entropies of the coin and of the sequence, bits. Sequences with the same number of ones are equally likely."""
        length = self.length
        logs = [(math.comb(length, ones), self._log2(ones)) for ones in range(length + 1)]
        sequence = -sum(2 ** (math.log2(ways) + log2) * log2 for ways, log2 in logs if log2 > -math.inf)
        return {"z": 1.0, "sequence": sequence}

    def predictive(self, ones: NDArray[np.int64], seen: NDArray[np.int64]) -> NDArray[np.float64]:
        """P(the next symbol is 1) after `ones` ones among `seen` symbols, for ε in (0, 1): equation 2, in the form above."""
        log_odds = (2.0 * ones - seen) * math.log((1 - self.flip) / self.flip)
        heads = (1 + np.tanh(log_odds / 2)) / 2
        return np.asarray((1 - self.flip) * heads + self.flip * (1 - heads), np.float64)

    def _log2(self, ones: int) -> float:
        """log2 of the probability of one sequence with `ones` ones, averaged over Z."""
        zeros = self.length - ones
        heads = _log2_power(1 - self.flip, ones) + _log2_power(self.flip, zeros)
        tails = _log2_power(1 - self.flip, zeros) + _log2_power(self.flip, ones)
        return float(np.logaddexp2(heads, tails)) - 1


def _log2_power(p: float, count: int) -> float:
    """log2(p ** count), where 0 ** 0 = 1."""
    if p > 0:
        return count * math.log2(p)
    return 0.0 if count == 0 else -math.inf
