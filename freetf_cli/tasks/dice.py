"""dice: rolls of one loaded die.

    {"text": "3353136333635331", "factors": {"face": 3}}

A face from 1 to 6 is drawn; each of `length` rolls (16) shows it with probability `favour` (0.5), else one of the other faces.
The first roll is given, the others are predicted.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from freetf_cli.tasks.base import BLOCK_ROWS, Example, Param, Rows, Task, decoder
from freetf_cli.tasks.factors import Factor, Reading, Span, spans_of

FACES = "123456"


class Dice(Task):
    """Rolls of a loaded die; the factor is the face that it favours."""

    label = "face"
    alphabet = FACES
    factors = (Factor("face", range(1, 7)),)
    PARAMS: ClassVar[Mapping[str, Param]] = {
        "length": Param(16, "rolls in a row", 2, 24),
        "favour": Param(0.5, "probability of the favoured face", 0, 1),
    }

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.row_tokens, self.favour = params["length"], params["favour"]
        self.floor_bits = self.entropy()["given_first"]

    def draw(self, rng: np.random.Generator) -> Rows:
        face = rng.integers(6, size=BLOCK_ROWS)
        shape = BLOCK_ROWS, self.row_tokens
        other = (face[:, None] + rng.integers(1, 6, size=shape)) % 6
        tokens = np.where(rng.random(shape) < self.favour, face[:, None], other)
        text = decoder(FACES)
        return Rows(tokens, lambda i: Example(text(tokens[i]), {"face": int(face[i]) + 1}))

    def prompt(self, seed: int, index: int) -> str:
        """The faces in turn."""
        return FACES[(seed + index) % 6]

    def other_prompt(self, factors: Mapping[str, Any]) -> str:
        return FACES[factors["face"] % 6]

    def read(self, text: str) -> Reading:
        """face: the commonest roll after the first, which is given; unread in a tie. Every row is possible, so validity means nothing."""
        counts = Counter(text[1:]).most_common(2)
        tie = not counts or (len(counts) == 2 and counts[0][1] == counts[1][1])
        return Reading({"face": None if tie else int(counts[0][0])})

    def spans(self, text: str) -> list[Span]:
        """Rolls of the face that is read are the target."""
        face = str(self.read(text).factors["face"])
        return spans_of(text, ["target" if char == face else "plain" for char in text])

    def entropy(self) -> dict[str, float]:
        """All sequences with the same counts of faces have the same probability."""
        length, bits = self.row_tokens, 0.0
        for bars in itertools.combinations(range(length + 5), 5):  # counts of the six faces, as gaps between five bars
            counts = np.diff([-1, *bars, length + 5]) - 1
            p = float(np.mean(self.favour**counts * ((1 - self.favour) / 5) ** (length - counts)))
            ways = math.factorial(length) // math.prod(map(math.factorial, counts.tolist()))
            bits -= ways * p * math.log2(p) if p else 0.0
        return {"sequence": bits, "given_first": bits - math.log2(6)}
