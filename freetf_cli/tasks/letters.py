"""letters: a run of one letter somewhere in a noisy line, the task of the paper's section 4.1.

    {"text": "J>________!________________!___________JJJJJJJJ___________________",
     "factors": {"letter": "J", "position": 37, "noise": [8, 25]}}

How a row is made: a line of `length` underscores (64); one of `letters` letters (26) and a start position, both uniform; `target`
copies (8) of the letter from that position; then each character becomes `!` with probability `noise` (1/16); last, the clean
prompt, here `J>`, goes in front. Positions count from 0 after the prompt.

There is no begin or end token: the letter is given and `>` costs nothing. So the lowest possible cross-entropy is
H(S | letter) = H(position) + H(noise) − H(position | S, letter), where the last term is what noise hides of the position.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from freetf_cli.errors import InputError
from freetf_cli.tasks.base import BLOCK_ROWS, Example, Param, Rows, Task, decoder
from freetf_cli.tasks.factors import Factor, Reading, Role, Span, spans_of

PROMPT = 2  # characters of `K>`
FIRST = ascii_uppercase.index("K")  # the letter of the paper's Figure 4


class Letters(Task):
    """Section 4.1's sequences; the factors are letter, position and noise."""

    PARAMS: ClassVar[Mapping[str, Param]] = {
        "length": Param(64, "characters after the prompt", 1, 512),
        "target": Param(8, "copies of the letter", 1, 512),
        "noise": Param(1 / 16, "probability that a character becomes '!'", 0, 1),
        "letters": Param(26, "letters to choose from", 1, 26),
    }

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__(params)
        self.length, self.target = params["length"], params["target"]
        self.noise, self.letters = params["noise"], params["letters"]
        if self.target > self.length:
            raise InputError(f"letters: target = {self.target} is longer than length = {self.length}")
        self.places = self.length - self.target + 1
        self.alphabet: str = ascii_uppercase[: self.letters] + "_!>"
        self.row_tokens = PROMPT + self.length
        self.floor_bits = self.entropy()["given_letter"]
        letter = Factor("letter", ascii_uppercase[: self.letters], given=True)
        self.factors = (letter, Factor("position", range(self.places)), Factor("noise", (False, True), sites=self.length))
        self.prompts: tuple[str, ...] = tuple(f"{char}>" for char in ascii_uppercase[: self.letters])

    def draw(self, rng: np.random.Generator) -> Rows:
        blank, noisy, prompt_end = (self.letters + k for k in range(3))
        letter = rng.integers(self.letters, size=BLOCK_ROWS)
        position = rng.integers(self.places, size=BLOCK_ROWS)
        hidden = rng.random((BLOCK_ROWS, self.length)) < self.noise
        since = np.arange(self.length) - position[:, None]
        line = np.where((since >= 0) & (since < self.target), letter[:, None], blank)
        tokens = np.empty((BLOCK_ROWS, self.row_tokens), np.int64)
        tokens[:, 0], tokens[:, 1] = letter, prompt_end
        tokens[:, PROMPT:] = np.where(hidden, noisy, line)
        text = decoder(self.alphabet)

        def example(i: int) -> Example:
            noise = np.flatnonzero(hidden[i]).tolist()
            return Example(text(tokens[i]), {"letter": ascii_uppercase[letter[i]], "position": int(position[i]), "noise": noise})

        return Rows(tokens, example)

    def prompt(self, seed: int, index: int) -> str:
        """Prompt number `index`: one letter after another; with seed 0 the first is the paper's `K>`."""
        return f"{ascii_uppercase[(FIRST + seed + index) % self.letters]}>"

    def check_prompt(self, prompt: str) -> None:
        if not re.match("[A-Z]>", prompt):
            raise InputError("a row of letters begins with a letter and '>'", f"prompt {prompt[:40]!r}", "for example --prompt 'K>'")

    def other_prompt(self, factors: Mapping[str, Any]) -> str:
        number: int = ascii_uppercase.index(factors["letter"]) + self.letters // 2
        return self.prompts[number % len(self.prompts)]

    def read(self, text: str) -> Reading:
        """Valid: some start has only the prompt's letter or `!` at its places, every other place is `_` or `!`, and a letter is visible.

        position: the first such start; in an invalid row the leftmost copy of the letter. letter: the commonest in the line.
        """
        letter, line = text[:1], text[PROMPT:]
        visible = [place for place, char in enumerate(line) if char == letter]
        starts = self._starts(letter, line, visible)
        commonest = Counter(char for char in line if char in ascii_uppercase).most_common(1)
        factors = {
            "letter": commonest[0][0] if commonest else None,
            "position": starts[0] if starts else min(visible[0], self.places - 1) if visible else None,
            "noise": [place for place, char in enumerate(line[: self.length]) if char == "!"],
        }
        return Reading(factors, valid=bool(starts))

    def _starts(self, letter: str, line: str, visible: list[int]) -> list[int]:
        """Every start that the target can have, given where its letter is visible."""
        if not visible or len(line) != self.length or set(line) - {letter, "_", "!"}:
            return []
        first, last = max(0, visible[-1] - self.target + 1), min(visible[0], self.places - 1)
        return [start for start in range(first, last + 1) if not set(line[start : start + self.target]) - {letter, "!"}]

    def spans(self, text: str) -> list[Span]:
        roles: dict[str, Role] = {"_": "blank", "!": "noise", text[:1]: "target"}
        return spans_of(text, ["prompt" if place < PROMPT else roles.get(char, "invalid") for place, char in enumerate(text)])

    def marks(self, text: str) -> dict[str, list[bool]]:
        line = text[PROMPT:]
        return {"the letter": [char in ascii_uppercase for char in line], "noise": [char == "!" for char in line]}

    def entropy(self) -> dict[str, float]:
        letter, position = math.log2(self.letters), math.log2(self.places)
        noise = self.length * _bits(self.noise)
        given_letter = position + noise - position_ambiguity(self.length, self.target, self.noise)
        factors = {"letter": letter, "position": position, "noise": noise}
        return factors | {"given_letter": given_letter, "sequence": letter + given_letter}


def _bits(p: float) -> float:
    """Entropy of a coin that shows heads with probability p."""
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def position_ambiguity(length: int, target: int, noise: float) -> float:
    """H(position | S, letter) in bits: the uncertainty about the start of the run that noise leaves.

    The `!` in S show where the noise is, so a start is possible exactly if it would leave the same letters visible. All
    possible starts are equally likely, so the entropy is the mean of log2(number of possible starts).
    """
    return _some_visible(length, target, noise) + _none_visible(length, target, noise)


def _some_visible(length: int, target: int, noise: float) -> float:
    """The part of that mean from rows in which at least one letter is visible.

    The run could start s places earlier if the s characters before it are noise and so are its own last s; likewise
    later. With i and j hidden letters at the run's left and right end, and u and v characters of noise beyond them, there
    are 1 + min(u, j) + min(i, v) possible starts.
    """
    places, end = length - target + 1, np.arange(target)
    mean = _capped(target, noise) @ np.log2(1 + end[:, None] + end) @ _capped(target, noise).T
    visible = np.where(end[:, None] + end < target - 1, (1 - noise) ** 2, 1 - noise)
    weight = np.where(end[:, None] + end < target, noise ** (end[:, None] + end) * visible, 0.0)
    j, i = np.meshgrid(end, end)
    return float(sum((weight * mean[np.minimum(j, p), np.minimum(i, places - 1 - p)]).sum() for p in range(places))) / places


def _capped(target: int, noise: float) -> NDArray[np.float64]:
    """P(min(length of a run of noise, cap) = value) as [cap, value], both below `target`."""
    cap, value = np.arange(target)[:, None], np.arange(target)
    return np.where(value < cap, noise**value * (1 - noise), np.where(value == cap, noise**value, 0.0))


def _none_visible(length: int, target: int, noise: float) -> float:
    """The part from rows whose letters are all hidden: the run may be in any of the c windows that are all noise.

    It is the mean over noise patterns of (c / places)·log2 c. state[r, c]: probability of c full windows so far, the last r
    characters being noise (r counts up to `target`).
    """
    places = length - target + 1
    state = np.zeros((target + 1, places + 1))
    state[0, 0] = 1.0
    for _ in range(length):
        after = np.zeros_like(state)
        after[0] = (1 - noise) * state.sum(axis=0)
        after[1:target] = noise * state[: target - 1]
        after[target, 1:] = noise * (state[target - 1] + state[target])[:-1]
        state = after
    windows = np.arange(1, places + 1)
    return float(state.sum(axis=0)[1:] @ (windows * np.log2(windows))) / places
