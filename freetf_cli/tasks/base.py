"""The interface of a synthetic task.

Row i of a stream depends only on (task, parameters, seed, i). Rows are drawn in blocks of 1,024 by a counter-based generator
whose key is (task, parameters, seed, block number), so neither batch size nor the order of calls matters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from freetf_cli.errors import InputError, nearest
from freetf_cli.streams import data_generator
from freetf_cli.tasks.factors import Ints, Reading, RowReader

BLOCK_ROWS = 1024  # rows drawn at a time
PAD = -1  # fills an array after the end of a shorter row

Tokens = NDArray[np.int64]
Value = int | float | str


@dataclass(frozen=True)
class Example:
    """One row: its text, and the factors that were drawn to make it."""

    text: str
    factors: dict[str, Any]


@dataclass(frozen=True)
class Param:
    """A parameter of a task. The type is the default's; a number lies in [low, high], a word is one of `choices`."""

    default: Value
    help: str
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """A block of drawn rows: tokens [rows, row_tokens], padded with PAD; example(i) is row i as text with its factors."""

    tokens: Tokens
    example: Callable[[int], Example]


class Task(RowReader):
    """A source of random rows whose hidden factors, and often whose entropy, are known.

    row_tokens: tokens of the longest row, separators included. loss_start: index of the first token that counts as a target.
    alphabet: the characters in the order of their ids, or the words; None: the byte tokenizer. pattern: what a word is (None: what stands
    between single spaces). separator: whether a row stands between separators, whose id follows those of the alphabet.
    label: the factor that a data set's summary counts. hidden_word: the word that replaces inputs which the model must not see
    (`data.teacherless`), if there is one.
    floor_bits: the entropy of a row's targets in bits per sequence, the lowest cross-entropy any model can reach; None if unknown.
    factors: those that `read` finds in a generated row; none if rows cannot be read exactly.
    objects: of an open-ended task, the number of things that valid rows show (see `identity`), all equally likely; None of another task.
    """

    name: ClassVar[str]
    PARAMS: ClassVar[Mapping[str, Param]]
    separator: ClassVar[bool] = False
    label: ClassVar[str | None] = None
    alphabet: str | tuple[str, ...] | None
    hidden_word: str | None = None
    pattern: str | None = None
    row_tokens: int
    loss_start: int = 1
    floor_bits: float | None = None
    objects: int | None = None

    def __init_subclass__(cls) -> None:
        cls.name = cls.__module__.rpartition(".")[2]

    def __init__(self, params: Mapping[str, Any]) -> None:
        """params: a value for each of PARAMS, checked (see `resolve`)."""
        self.params: dict[str, Any] = dict(params)
        self._block = lru_cache(maxsize=1)(lambda seed, block: self.draw(data_generator(self.name, self.stream_params(), seed, block)))

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Rows:
        """Draw BLOCK_ROWS rows."""

    def stream_params(self) -> dict[str, Any]:
        """The parameters that the stream of rows depends on."""
        return self.params

    @abstractmethod
    def entropy(self) -> dict[str, float]:
        """Exact entropies in bits per sequence, by name."""

    @abstractmethod
    def prompt(self, seed: int, index: int) -> str:
        """A text that a sample can begin with."""

    def check_prompt(self, prompt: str) -> None:
        """Raise InputError if no row begins with this prompt."""

    def alternatives(self, rows: Tokens) -> Tokens:
        """Rows of this task [rows, tokens] with each of the answers that are right, [answers, rows, tokens]; by default their own only."""
        return rows[None]

    def read(self, text: str) -> Reading:
        """The factors that a generated row shows, and whether it is valid."""
        return Reading()

    def identity(self, text: str) -> Hashable | None:
        """The object that a valid row of an open-ended task shows, whatever the order of its parts; None for an invalid row."""
        return None

    def read_all(self, texts: Sequence[str]) -> list[Reading]:
        return [self.read(text) for text in texts]

    def tokens(self, seed: int, start: int, count: int) -> Tokens:
        """Rows start … start + count − 1 of a stream as token ids [count, row_tokens], padded with PAD."""
        parts = [rows.tokens[low:high] for rows, low, high in self._slices(seed, start, count)]
        return np.concatenate([np.empty((0, self.row_tokens), np.int64), *parts])

    def stream(self, seed: int, start: int, count: int) -> Iterator[Example]:
        """The same rows as text with their factors, as they are drawn."""
        return (rows.example(i) for rows, low, high in self._slices(seed, start, count) for i in range(low, high))

    def examples(self, seed: int, start: int, count: int) -> list[Example]:
        return list(self.stream(seed, start, count))

    def _slices(self, seed: int, start: int, count: int) -> Iterator[tuple[Rows, int, int]]:
        """The blocks that hold these rows, each with the range [low, high) of its rows to take."""
        stop = start + count
        while start < stop:
            block, low = divmod(start, BLOCK_ROWS)
            high = min(low + stop - start, BLOCK_ROWS)
            yield self._block(seed, block), low, high
            start += high - low


def decoder(alphabet: str | Sequence[str]) -> Callable[[Tokens], str]:
    """A function from token ids [characters or words] to the text that they stand for."""
    if not isinstance(alphabet, str):
        return lambda ids: " ".join(map(alphabet.__getitem__, ids.tolist()))
    table = np.frombuffer(alphabet.encode("ascii"), np.uint8)
    return lambda ids: table[ids].tobytes().decode("ascii")


def distinct(rng: np.random.Generator, shape: tuple[int, ...], count: int, among: int) -> Ints:
    """`count` distinct integers below `among` in random order, [*shape, count], by a partial Fisher–Yates shuffle."""
    rows = int(np.prod(shape))
    pool = np.tile(np.arange(among), (rows, 1))
    row = np.arange(rows)
    for k in range(count):
        chosen = rng.integers(k, among, size=rows)
        pool[row, k], pool[row, chosen] = pool[row, chosen], pool[row, k]
    return pool[:, :count].reshape(*shape, count)


def resolve(task: str, params: Mapping[str, Param], given: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every parameter: the given one, checked, or the default."""
    for name in given:
        if name not in params:
            raise InputError(f"task '{task}' has no parameter '{name}'", hint=nearest(name, params))
    return {name: _checked(f"{task}: {name}", param, given.get(name, param.default)) for name, param in params.items()}


def _checked(name: str, param: Param, value: Any) -> Value:
    """The value in the parameter's own type and within its bounds. Numbers may be given as text, such as 1/16."""
    if param.choices:
        if value not in param.choices:
            raise InputError(f"{name} = {value!r} is not a choice", hint=nearest(str(value), param.choices))
        return str(value)
    number = exact_number(value)
    whole = isinstance(param.default, int)
    if number is None or (whole and (number.denominator != 1 or "/" in str(value))):
        raise InputError(f"{name} must be {'a whole number' if whole else 'a number'}, not {value!r}")
    if not param.low <= number <= param.high:
        raise InputError(f"{name} = {value} is outside {param.low:g} … {param.high:g}")
    return int(number) if whole else float(number)


def exact_number(value: Any) -> Fraction | None:
    """The value as an exact number (the float 0.1 stays that float), or None if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return Fraction(float(value) if "e" in str(value).lower() else value)  # not 1e999999999, whose digits would fill the memory
    except (ValueError, OverflowError, ZeroDivisionError):
        return None
