"""What each character of a sample is, so that terminal and HTML colour it alike."""

from __future__ import annotations

import itertools
import re
from typing import Literal

from freetf_cli.report.console import visible

Part = Literal["prompt", "blank", "noise", "target", "wrong", "text"]

# A row of `letters`: `K>` in front, then underscores, the target letter and exclamation marks; a bad sample may hold a stray `>`.
_LETTERS = re.compile(r"[A-Z]>[A-Z_!>]*")


def box_title(*, shared: bool, latent: bool) -> str:
    """What is written over a box of samples."""
    return "shared Z" if shared else "independent Z" if latent else "no Z"


def is_letters(row: str) -> bool:
    return _LETTERS.fullmatch(row) is not None


def parts(row: str, prompt: str = "") -> list[tuple[str, Part]]:
    """The row in pieces; joined they are the row with control characters made visible.

    prompt: what the row was given, if known; the prompt of a letters row shows by itself.
    """
    if is_letters(row):
        return [(row[:2], "prompt"), *_letter_parts(row)]
    given = prompt if row.startswith(prompt) else ""
    pieces: list[tuple[str, Part]] = [(visible(given), "prompt"), (visible(row[len(given) :]), "text")]
    return [piece for piece in pieces if piece[0]]


def _letter_parts(row: str) -> list[tuple[str, Part]]:
    def kind(char: str) -> Part:
        if char == "_":
            return "blank"
        if char == "!":
            return "noise"
        return "target" if char == row[0] else "wrong"

    return [("".join(group), part) for part, group in itertools.groupby(row[2:], kind)]
