"""Factors: the hidden properties of a row, as records contain them and as numbers for statistics.

Factor("position", range(57)).encode([17, None])                  # [17, UNREAD]
Factor("noise", (False, True), sites=64).encode([[3, 40]])        # [1, 64], with 1 at places 3 and 40
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

UNREAD = -1  # the number of a factor that a row does not show

Ints = NDArray[np.int64]
Role = Literal["prompt", "blank", "target", "noise", "plain", "invalid"]
Span = tuple[str, Role]


@dataclass(frozen=True)
class Factor:
    """A discrete property of a row.

    values: what it can be; a value's place here is its number. sites: for more than one, the factor is a set of marked places and
    each place is unmarked or marked. given: the prompt fixes it, so Z need not encode it, and Figure 4 does not show it.
    """

    name: str
    values: Sequence[Any]
    sites: int = 1
    given: bool = False

    def encode(self, found: Sequence[Any]) -> Ints:
        """Numbers [N], UNREAD for None or an unknown value. With several sites: marks [N, sites], 1 at each place that is listed."""
        if self.sites == 1:
            numbers = {str(value): number for number, value in enumerate(self.values)}
            return np.array([numbers.get(str(value), UNREAD) for value in found], np.int64)
        marks = np.zeros((len(found), self.sites), np.int64)
        for row, places in zip(marks, found, strict=True):
            row[list(places or ())] = 1
        return marks


def encode(factors: Sequence[Factor], rows: Sequence[Mapping[str, Any]]) -> dict[str, Ints]:
    """Every factor of some rows as numbers, by name."""
    return {factor.name: factor.encode([row.get(factor.name) for row in rows]) for factor in factors}


@dataclass(frozen=True)
class Reading:
    """What a generated row shows.

    factors: in the form of the task's own records; None or missing where the row does not show one.
    valid: whether the task could have made this row; None where validity means nothing.
    """

    factors: Mapping[str, Any] = field(default_factory=dict)
    valid: bool | None = None


class RowReader(ABC):
    """Reads factors from generated rows: a task whose rows show them, or a classifier of labelled text.

    prompts: every prompt of the task, where one of the factors is given. notes: how rows are read, for reports.
    """

    factors: tuple[Factor, ...] = ()
    prompts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @abstractmethod
    def read_all(self, texts: Sequence[str]) -> list[Reading]:
        """What each row shows."""

    def other_prompt(self, factors: Mapping[str, Any]) -> str:
        """A prompt that contradicts these factors; "" if the prompt never does."""
        return ""

    def spans(self, text: str) -> list[Span]:
        """The row in pieces with their roles, for colouring; joined they are the row. Empty if the reader knows no roles."""
        return []

    def marks(self, text: str) -> dict[str, list[bool]]:
        """The marked places of a row, as one heat map for each title."""
        return {}


def spans_of(text: str, roles: Iterable[Role]) -> list[Span]:
    """The text cut where the role of its characters changes. roles: one a character."""
    pairs = zip(text, roles, strict=True)
    return [("".join(char for char, _ in group), role) for role, group in itertools.groupby(pairs, key=lambda pair: pair[1])]
