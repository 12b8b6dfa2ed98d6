"""Reading a generated row of the letters task: is it one that the task could make, where does its target start?

read_letters("K>__!KKKKK!KK__", length=13, target=8)      # start 3, valid
"""

from __future__ import annotations

from dataclasses import dataclass

PROMPT = 2  # characters of `K>`


@dataclass(frozen=True)
class LettersReading:
    """start: the first place that the target can have (its leftmost visible letter's in an invalid row; None without one).

    valid: some start has all its places the prompt's letter or `!`, every other place `_` or `!`, and a letter visible.
    noise: places of `!`.
    """

    start: int | None
    valid: bool
    noise: frozenset[int]


def read_letters(text: str, length: int = 64, target: int = 8) -> LettersReading:
    """Read a row, prompt included."""
    letter, line = text[:1], text[PROMPT:]
    noise = frozenset(place for place, char in enumerate(line) if char == "!")
    letters = [place for place, char in enumerate(line) if char == letter]
    if not letters:
        return LettersReading(None, False, noise)
    clean = len(line) == length and all(char in {letter, "_", "!"} for char in line)
    starts = range(max(0, letters[-1] - target + 1), min(letters[0], length - target) + 1)
    possible = [start for start in starts if all(line[place] in {letter, "!"} for place in range(start, start + target))] if clean else []
    return LettersReading(possible[0] if possible else letters[0], bool(possible), noise)
