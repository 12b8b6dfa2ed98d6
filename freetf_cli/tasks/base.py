"""What every synthetic task offers, and how its random rows are keyed.

Row i of a stream depends on (task, params, seed, i) alone: rows are drawn in fixed blocks of 1,024 from a counter-based
generator keyed by all of these and the block's number, so neither the batch size nor the order of the calls matters.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from freetf_cli.errors import InputError, nearest

BLOCK = 1024  # rows drawn at a time
PAD = -1  # after the end of a row that is shorter than its array

Tokens = NDArray[np.int64]
Value = int | float | str


@dataclass(frozen=True)
class Example:
    """One row as text, and what was drawn to make it."""

    text: str
    factors: dict[str, Any]


@dataclass(frozen=True)
class Param:
    """A task's parameter: its default decides its type; numbers lie in [low, high], words among the choices."""

    default: Value
    about: str
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """A block of drawn rows. tokens [rows, row_tokens], PAD after a short row's end; example(i) is row i as text."""

    tokens: Tokens
    example: Callable[[int], Example]


class Task(ABC):
    """A source of random rows whose hidden factors, and often whose entropy, are known.

    A row holds `row_tokens` tokens, separators included; predictions count from the token at `loss_start` on.
    alphabet: the characters in the order of their ids; None for a byte tokenizer. The separator's id comes after them.
    label: the factor that a summary counts, if any. floor_bits: entropy of a row's counted targets in bits per
    sequence, the lowest cross-entropy that any model can reach; None where it is not known.
    """

    name: ClassVar[str]
    PARAMS: ClassVar[Mapping[str, Param]]
    separator: ClassVar[bool] = False
    label: ClassVar[str | None] = None
    alphabet: str | None
    row_tokens: int
    loss_start: int = 1
    floor_bits: float | None = None

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params: dict[str, Any] = dict(params)
        self._cached: tuple[tuple[int, int], Rows] | None = None

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Rows:
        """A block of BLOCK fresh rows."""

    @abstractmethod
    def entropy(self) -> dict[str, float]:
        """Exact entropies in bits per sequence, by name."""

    @abstractmethod
    def prompt(self, seed: int, index: int) -> str:
        """The text that a sample may begin with."""

    def tokens(self, seed: int, start: int, count: int) -> Tokens:
        """Rows start … start + count − 1 of a stream as token ids [count, row_tokens]; PAD after a short row's end."""
        parts = [rows.tokens[low:high] for rows, low, high in self._pieces(seed, start, count)]
        return np.concatenate(parts) if parts else np.empty((0, self.row_tokens), np.int64)

    def examples(self, seed: int, start: int, count: int) -> list[Example]:
        """The same rows as text with their factors."""
        return [rows.example(i) for rows, low, high in self._pieces(seed, start, count) for i in range(low, high)]

    def _pieces(self, seed: int, start: int, count: int) -> list[tuple[Rows, int, int]]:
        """The blocks that hold rows start … start + count − 1, each with the part [low, high) of it."""
        stop = start + count
        spans = [(b, max(start - b * BLOCK, 0), min(stop - b * BLOCK, BLOCK)) for b in range(start // BLOCK, -(-stop // BLOCK))]
        return [(self._block(seed, block), low, high) for block, low, high in spans if low < high]

    def _block(self, seed: int, block: int) -> Rows:
        cached = self._cached  # looked at once: another thread may put its own block there meanwhile
        if cached is None or cached[0] != (seed, block):
            self._cached = cached = (seed, block), self.draw(generator(self.name, self.params, seed, block))
        return cached[1]


def generator(*key: object) -> np.random.Generator:
    """A generator keyed by plain values, the same in every process and on every machine."""
    text = json.dumps(key, sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def stream_seed(seed: int, split: str) -> int:
    """The seed of a split's own stream, so that held-out rows in memory are drawn apart from the training rows."""
    digest = hashlib.blake2b(f"{seed}/{split}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def letters_to_text(alphabet: str) -> Callable[[Tokens], str]:
    """From token ids [characters] back to the text that they spell."""
    table = np.frombuffer(alphabet.encode("ascii"), np.uint8)
    return lambda ids: table[ids].tobytes().decode("ascii")


def resolve(task: str, specs: Mapping[str, Param], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter's value: the given ones, checked, over the defaults."""
    for name in given:
        if name not in specs:
            raise InputError(f"task '{task}' has no parameter '{name}'", hint=nearest(name, specs))
    return {name: _checked(f"{task}: {name}", spec, given.get(name, spec.default)) for name, spec in specs.items()}


def _checked(name: str, spec: Param, value: Any) -> Value:
    """A value of the parameter's own type and within its bounds; numbers may be written as text, also as 1/16."""
    if spec.choices:
        if value not in spec.choices:
            raise InputError(f"{name} = {value!r} is not a choice", hint=nearest(str(value), spec.choices))
        return str(value)
    number = _number(value)
    whole = isinstance(spec.default, int)
    if number is None or (whole and number.denominator != 1):
        raise InputError(f"{name} must be {'a whole number' if whole else 'a number'}, not {value!r}")
    if not spec.low <= number <= spec.high:
        raise InputError(f"{name} = {value} is outside {spec.low:g} … {spec.high:g}")
    return int(number) if whole else float(number)


def _number(value: Any) -> Fraction | None:
    """The value as an exact number, or None. A float keeps its own value: 0.1 stays the float 0.1."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return Fraction(value)
    except (ValueError, OverflowError, ZeroDivisionError):
        return None
