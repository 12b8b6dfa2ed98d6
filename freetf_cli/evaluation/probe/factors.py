"""The factors of a sequence as numbers: the true ones of data, and those that a generated text shows.

A factor has `kinds` possible values at each of `sites` places: position and letter have one site, noise one for every place of the
line. Values are int64 arrays, [N] for one site and [N, sites] for more, UNREAD where a text does not show them.

Letters and coins are read exactly. The label of a text (sentiment, genre) is read by a naive Bayes classifier of its words, trained on
the train split; what it reads is a function of the text, so information about it is no estimate of information about the true
label but a fact about this reading. Its accuracy on held-out texts is told with the results.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freetf_cli.data.batches import IGNORE, Batch, DataSource
from freetf_cli.data.rows import TRAIN, Factors
from freetf_cli.errors import InputError
from freetf_cli.evaluation.probe.information import UNREAD
from freetf_cli.evaluation.probe.letters import PROMPT, read_letters

Ints = NDArray[np.int64]
TRAINING_TEXTS = 4000  # that a classifier sees
LEAST_USE = 2  # texts that a word must be in
MOST_LABELS = 20  # of more kinds than this a label is no class, but an answer of its own


@dataclass(frozen=True)
class Factor:
    """A factor's name, how many values it can have, and at how many sites. given: by the prompt, so that no Z need tell it."""

    name: str
    kinds: int
    sites: int = 1
    given: bool = False


@dataclass(frozen=True)
class FactorReader:
    """How to know the factors of one kind of data.

    truth: from what the data says of a row. read: from a text. valid: could the task have made this text? None where that cannot be said.
    prompts: all that the task has, where a factor is given. other_prompt: one that is not the row's own. notes: how it reads, for people.
    """

    factors: tuple[Factor, ...]
    truth: Callable[[Sequence[Factors]], dict[str, Ints]]
    read: Callable[[Sequence[str]], dict[str, Ints]]
    valid: Callable[[str], bool] | None = None
    prompts: tuple[str, ...] = ()
    other_prompt: Callable[[Factors], str] = lambda row: ""
    notes: tuple[str, ...] = ()


def factor_reader(source: DataSource, split: str, sequences: int) -> FactorReader | None:
    """The reader for a run's data; None where no factor is known. split, sequences: the held-out rows that a classifier is tested on."""
    if source.facts.task == "letters":
        return letters_reader(source.facts.params)
    if source.facts.task == "coins":
        return coins_reader()
    return _text_reader(source, split, sequences)


def has_factors(source: DataSource) -> bool:
    """Whether `factor_reader` finds one, without its work."""
    if source.facts.task in ("letters", "coins"):
        return True
    rows = _training_rows(source)
    return bool(_label_tables([row for row in source.held_out_factors(TRAIN, rows) if row] if rows else []))


def letters_reader(params: Mapping[str, Any]) -> FactorReader:
    """letter, position and noise of the letters task."""
    length, target, letters = (int(params.get(name, default)) for name, default in (("length", 64), ("target", 8), ("letters", 26)))
    factors = (Factor("letter", letters, given=True), Factor("position", length - target + 1), Factor("noise", 2, length))

    def marks(places: Sequence[Sequence[int]]) -> Ints:
        out = np.zeros((len(places), length), np.int64)
        for row, found in zip(out, places, strict=True):
            row[[place for place in found if place < length]] = 1
        return out

    def truth(rows: Sequence[Factors]) -> dict[str, Ints]:
        return {
            "letter": np.array([ascii_uppercase.index(row["letter"]) for row in rows]),
            "position": np.array([row["position"] for row in rows]),
            "noise": marks([row["noise"] for row in rows]),
        }

    def read(texts: Sequence[str]) -> dict[str, Ints]:
        readings = [read_letters(text, length, target) for text in texts]
        starts = [UNREAD if reading.start is None else min(reading.start, length - target) for reading in readings]
        return {
            "letter": np.array([_commonest_letter(text[PROMPT:]) for text in texts]),
            "position": np.array(starts),
            "noise": marks([sorted(reading.noise) for reading in readings]),
        }

    prompts = tuple(f"{letter}>" for letter in ascii_uppercase[:letters])
    return FactorReader(
        factors,
        truth,
        read,
        valid=lambda text: read_letters(text, length, target).valid,
        prompts=prompts,
        other_prompt=lambda row: prompts[(ascii_uppercase.index(row["letter"]) + letters // 2) % letters],
    )


def _commonest_letter(line: str) -> int:
    found = Counter(char for char in line if char in ascii_uppercase).most_common(1)
    return ascii_uppercase.index(found[0][0]) if found else UNREAD


def coins_reader() -> FactorReader:
    """z of the coins task: what most symbols show, but for the first, which is given; unread in a tie."""

    def read(texts: Sequence[str]) -> dict[str, Ints]:
        ones = [2 * text[1:].count("1") - len(text[1:]) for text in texts]
        return {"z": np.array([UNREAD if excess == 0 else int(excess > 0) for excess in ones])}

    def truth(rows: Sequence[Factors]) -> dict[str, Ints]:
        return {"z": np.array([row["z"] for row in rows])}

    return FactorReader((Factor("z", 2),), truth, read, other_prompt=lambda row: str(1 - row["z"]))


class NaiveBayes:
    """Multinomial naive Bayes over the words of a text, each counted once a text, with add-one smoothing."""

    def __init__(self, texts: Sequence[str], labels: Ints, kinds: int) -> None:
        bags = [set(words(text)) for text in texts]
        use = Counter(word for bag in bags for word in bag)
        self.vocabulary = {word: index for index, word in enumerate(sorted(word for word, n in use.items() if n >= LEAST_USE))}
        counts = np.ones((kinds, len(self.vocabulary)))
        for bag, label in zip(bags, labels.tolist(), strict=True):
            counts[label, self._indices(bag)] += 1
        self._log_likelihood = np.log(counts / counts.sum(1, keepdims=True))
        self._log_prior = np.log((np.bincount(labels, minlength=kinds) + 1) / (len(labels) + kinds))

    def read(self, texts: Sequence[str]) -> Ints:
        """The likeliest label [N]; UNREAD where no word is known."""
        found = [self._indices(set(words(text))) for text in texts]
        scores = [self._log_likelihood[:, indices].sum(1) + self._log_prior for indices in found]
        return np.array([int(score.argmax()) if indices else UNREAD for score, indices in zip(scores, found, strict=True)], np.int64)

    def _indices(self, bag: set[str]) -> list[int]:
        return [self.vocabulary[word] for word in sorted(bag) if word in self.vocabulary]


def words(text: str) -> list[str]:
    """Lower-case words of letters and apostrophes."""
    return re.findall(r"[a-z']+", text.lower())


def _text_reader(source: DataSource, split: str, sequences: int) -> FactorReader | None:
    """Labels that every labelled row has as words: sentiment and genre of `reviews`, the label of a prepared folder."""
    rows = _training_rows(source)
    known, texts = _labelled(source, TRAIN, rows) if rows else ([], [])
    tables = _label_tables(known)
    if not tables:
        return None
    readers = {name: NaiveBayes(texts, _numbers(known, name, table), len(table)) for name, table in tables.items()}
    held_out, held_out_texts = _labelled(source, split, sequences)
    notes = []
    for name, table in tables.items():
        truth = _numbers(held_out, name, table)
        right = float((readers[name].read(held_out_texts) == truth).mean()) if held_out else math.nan
        where = "of the very texts that it learned from" if split == TRAIN and source.rows.size(TRAIN) is not None else "held-out sequences"
        notes.append(f"{name} ({', '.join(table)}) is read from words by naive Bayes, {right:.1%} right on {len(held_out)} {where}")
    return FactorReader(
        factors=tuple(Factor(name, len(table)) for name, table in tables.items()),
        truth=lambda rows: {name: _numbers(rows, name, table) for name, table in tables.items()},
        read=lambda samples: {name: reader.read(samples) for name, reader in readers.items()},
        notes=tuple(notes),
    )


def _training_rows(source: DataSource) -> int:
    """How many rows of the train split a classifier sees: none where a folder to measure on has no such split."""
    try:
        return min(TRAINING_TEXTS, source.rows.size(TRAIN) or TRAINING_TEXTS)
    except InputError:
        return 0


def _label_tables(known: Sequence[Factors]) -> dict[str, list[str]]:
    """The labels that can be read as classes, by name; empty where there are none."""
    names = [name for name, value in (known[0] if known else {}).items() if isinstance(value, str)]
    tables = {name: sorted({str(row[name]) for row in known}) for name in names}
    return {name: table for name, table in tables.items() if 1 < len(table) <= MOST_LABELS}


def _labelled(source: DataSource, split: str, sequences: int) -> tuple[list[Factors], list[str]]:
    """Rows of which something is known, with their texts."""
    factors = source.held_out_factors(split, sequences)
    if not any(factors):
        return [], []
    texts = [text for batch in source.held_out(split, sequences, 256) for text in row_texts(source, batch)]
    kept = [(row, text) for row, text in zip(factors, texts, strict=True) if row]
    return [row for row, _ in kept], [text for _, text in kept]


def row_texts(source: DataSource, batch: Batch) -> list[str]:
    """The text of each row, up to its last counted target."""
    ends = [int(np.flatnonzero(targets != IGNORE)[-1]) + 1 for targets in batch.targets]
    return [source.tokenizer.decode(row[:end]) for row, end in zip(batch.inputs, ends, strict=True)]


def _numbers(rows: Sequence[Factors], name: str, table: Sequence[str]) -> Ints:
    """Labels as their places in the table; UNREAD for one that training did not have."""
    places = {label: place for place, label in enumerate(table)}
    return np.array([places.get(str(row.get(name)), UNREAD) for row in rows], np.int64)
