"""letters: a run of one letter somewhere in a line, under noise, as in section 4.1 of the paper.

    {"text": "J>________!________________!___________JJJJJJJJ___________________",
     "factors": {"letter": "J", "position": 37, "noise": [8, 25]}}

A line of `length` underscores (64); one of `letters` letters (26) and a start, both uniform; `target` copies (8) of the
letter from there; then each character becomes `!` with probability `noise` (1/16); last, the clean prompt, here `J>`, is put
in front. Positions count from 0 after the prompt. There is no begin or end token: the letter is given and `>` costs
nothing, so what a model must pay for is H(S | letter) = position + noise, less what the noise hides of the position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from freetf_cli.errors import InputError
from freetf_cli.tasks.base import BLOCK, Example, Param, Rows, Task, letters_to_text

PROMPT = 2  # characters of `K>`
FIRST = ascii_uppercase.index("K")  # the letter of the paper's Figure 4


class Letters(Task):
    """Section 4.1's sequences, with letter, position and noise as factors."""

    name = "letters"
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

    def draw(self, rng: np.random.Generator) -> Rows:
        blank, noisy, prompt_end = (self.letters + k for k in range(3))
        letter = rng.integers(self.letters, size=BLOCK)
        position = rng.integers(self.places, size=BLOCK)
        hidden = rng.random((BLOCK, self.length)) < self.noise
        since = np.arange(self.length) - position[:, None]
        line = np.where((since >= 0) & (since < self.target), letter[:, None], blank)
        tokens = np.empty((BLOCK, self.row_tokens), np.int64)
        tokens[:, 0], tokens[:, 1] = letter, prompt_end
        tokens[:, PROMPT:] = np.where(hidden, noisy, line)
        text = letters_to_text(self.alphabet)

        def example(i: int) -> Example:
            noise = np.flatnonzero(hidden[i]).tolist()
            return Example(text(tokens[i]), {"letter": ascii_uppercase[letter[i]], "position": int(position[i]), "noise": noise})

        return Rows(tokens, example)

    def prompt(self, seed: int, index: int) -> str:
        """The letters take turns; seed 0 begins with the paper's `K>`."""
        return f"{ascii_uppercase[(FIRST + seed + index) % self.letters]}>"

    def entropy(self) -> dict[str, float]:
        """Exact: nothing is neglected. Bits per sequence."""
        letter, position = math.log2(self.letters), math.log2(self.places)
        noise = self.length * _bits(self.noise)
        given_letter = position + noise - position_ambiguity(self.length, self.target, self.noise)
        return {
            "letter": letter,
            "position": position,
            "noise": noise,
            "given_letter": given_letter,
            "sequence": letter + given_letter,
        }


def _bits(p: float) -> float:
    """Entropy of a coin that falls with probability p."""
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def position_ambiguity(length: int, target: int, noise: float) -> float:
    """H(position | S, letter) in bits: how far the noise leaves open where the run of letters starts.

    The `!` of S are the noise itself, so a start is possible exactly if it would leave the same letters visible. All
    possible starts are equally likely: the entropy is the mean of log2(number of possible starts).
    """
    return _some_visible(length, target, noise) + _none_visible(length, target, noise)


def _some_visible(length: int, target: int, noise: float) -> float:
    """The share of rows in which a letter is left to see.

    The run could start s places earlier if the s characters before it are noise and so are its own last s; likewise
    later. With i and j hidden letters at the run's left and right end, and u and v characters of noise beyond them, there
    are 1 + min(u, j) + min(i, v) possible starts.
    """
    places, end = length - target + 1, np.arange(target)
    mean = _least(target, noise) @ np.log2(1 + end[:, None] + end) @ _least(target, noise).T
    visible = np.where(end[:, None] + end < target - 1, (1 - noise) ** 2, 1 - noise)
    weight = np.where(end[:, None] + end < target, noise ** (end[:, None] + end) * visible, 0.0)
    j, i = np.meshgrid(end, end)
    return float(sum((weight * mean[np.minimum(j, p), np.minimum(i, places - 1 - p)]).sum() for p in range(places))) / places


def _least(target: int, noise: float) -> NDArray[np.float64]:
    """P(min(run of noise, most) = value), [most, value], both below `target`."""
    most, value = np.arange(target)[:, None], np.arange(target)
    return np.where(value < most, noise**value * (1 - noise), np.where(value == most, noise**value, 0.0))


def _none_visible(length: int, target: int, noise: float) -> float:
    """The share of rows whose letters are all hidden: the run may be in any of the c windows that are all noise.

    Over noise patterns, the mean of (c / places)·log2 c. state[r, c]: probability of r characters of noise up to here
    (at most `target` are told apart) and c full windows so far.
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
