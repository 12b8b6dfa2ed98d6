"""Splits of a data set: what share of the documents each has, and which split a document is in.

    assigner = SplitAssigner({"train": 0.9, "val": 0.1}, seed=0)
    assigner.split(17)                       # "train" or "val"

Documents are assigned in runs: for shares of 0.9 and 0.1, each run of 10 has 9 documents of one split and 1 of the other, in an order
shuffled by (seed, run). So proportions are exact, labels stay balanced even if the input is sorted, and a smaller count yields a
prefix of each split.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache

from freetf_cli.data.files import Note
from freetf_cli.data.manifest import SPLIT_NAME
from freetf_cli.data.text import Document
from freetf_cli.errors import InputError
from freetf_cli.streams import data_generator
from freetf_cli.tasks.base import exact_number

DEFAULT_SPLIT = {"train": 0.9, "val": 0.1}
LONGEST_RUN = 1_000_000  # documents

Shares = Mapping[str, float | Fraction]


def parse_split(text: str, count: int | None = None) -> dict[str, Fraction]:
    """Shares of one from `train=0.9,val=0.1`, or from numbers of rows that sum to `count`, such as `train=9000,val=1000`."""
    values: dict[str, Fraction] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals or not re.fullmatch(SPLIT_NAME, name) or name in values:
            raise InputError(f"--split takes NAME=SHARE,NAME=SHARE, not '{text}'", hint="for example --split train=0.9,val=0.1")
        share = exact_number(number)
        if share is None:
            raise InputError(f"--split {text}: '{number}' is not a number")
        if share <= 0:
            raise InputError(f"--split {text}: a share must be more than 0")
        values[name] = share
    total = sum(values.values())
    if total == 1:
        return values
    if "/" in text or any(value.denominator != 1 for value in values.values()):
        raise InputError(f"the shares of --split {text} sum to {float(total):g}, not to 1")
    if count is None:
        raise InputError(f"--split {text}: the number of documents is not known in advance", hint="give shares that sum to 1")
    if total != count:
        raise InputError(f"the rows of --split {text} sum to {total}, not to the count, {count}")
    return {name: value / count for name, value in values.items()}


class SplitAssigner:
    """The split of the i-th document, as a function of (shares, seed, i)."""

    def __init__(self, shares: Shares, seed: int) -> None:
        """InputError if the shares do not sum to 1, or need runs of more than a million documents."""
        self.shares = {name: Fraction(str(value)) for name, value in shares.items()}
        if sum(self.shares.values()) != 1:
            raise InputError(f"the shares of the splits sum to {float(sum(self.shares.values())):g}, not to 1")
        self._run = math.lcm(*(share.denominator for share in self.shares.values()))
        if self._run > LONGEST_RUN:
            raise InputError("the shares of the splits are too fine", hint="give them with fewer digits")
        self._names = [name for name, share in self.shares.items() for _ in range(int(share * self._run))]
        self._order = lru_cache(maxsize=1)(lambda run: data_generator("split", seed, run).permutation(self._run))

    def split(self, index: int) -> str:
        run, place = divmod(index, self._run)
        return self._names[int(self._order(run)[place])]

    def assign(self, documents: Iterator[Document], note: Note) -> Iterator[tuple[str, Document]]:
        """Each document with its split. If a split would stay empty, the last document is cut into parts, with a note."""
        empty = dict(self.shares)
        last: tuple[str, Document] | None = None
        for index, document in enumerate(documents):
            if last is not None:
                yield last
            last = self.split(index), document
            empty.pop(last[0], None)
        if last is not None and empty:
            name, document = last
            parts = {part: empty.get(part, 1 - sum(empty.values(), Fraction())) for part in self.shares if part in empty or part == name}
            note(document.source, f"too few documents for every split, so it is cut into {', '.join(parts)}")
            yield from _cut(document, parts)
        elif last is not None:
            yield last


def _cut(document: Document, shares: Mapping[str, Fraction]) -> Iterator[tuple[str, Document]]:
    """Parts of a document of these shares, by characters and in order, so that held-out text is its end."""
    text, start, upto = document.text, 0, Fraction(0)
    for name, share in shares.items():
        upto += share
        stop = round(len(text) * upto)
        if stop <= start:
            what = f"the text is too short to give each split a part: '{name}' is {float(share):g} of {len(text)} characters"
            raise InputError(what, document.source, "--split train=1 makes one split of all")
        yield name, Document(text[start:stop], document.source, document.label)
        start = stop
