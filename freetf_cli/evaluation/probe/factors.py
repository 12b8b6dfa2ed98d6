"""Readers of the factors in a run's rows: the task itself, or a linear classifier of labelled text.

Rows of a task show their factors exactly (`Task.read`). The label of a prepared text, such as its sentiment, is read from its words by
logistic regression, trained on the train split. Such a reading is a function of the text, so information about it is a fact about the
reading, not an estimate of the information about the true label. Reports state its accuracy on held-out texts.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from freetf_cli.data.batches import IGNORE, DataSource
from freetf_cli.data.rows import TRAIN, Factors
from freetf_cli.errors import InputError
from freetf_cli.tasks.factors import Factor, Reading, RowReader, encode

TRAINING_TEXTS = 4000  # texts to train a classifier on
LEAST_USE = 2  # texts that a word must occur in
PRECISE = 30.0  # inverse of the penalty; on film reviews 1 reads 2 % fewer, 10 as many
MOST_LABELS = 20  # values; with more, a label is not a class but free text, such as an answer
WORD = r"[a-z']+"


def probe_library(module: str) -> Any:
    """Import a module of the optional extra `probe`; InputError with the command that installs it if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        name = module.partition(".")[0]
        raise InputError(f"probing needs {name}, which is not installed", hint="pip install 'freetf[probe]'") from None


def factor_reader(source: DataSource, split: str, sequences: int, longest: int | None = None) -> RowReader | None:
    """The reader for a run's data; None where no factor is known.

    split, sequences: the held-out rows on which a classifier is tested. longest: as long as the texts that it will read, in tokens; longer
    rows are cut for the test, which would otherwise be easier. InputError without the extra `probe`.
    """
    if not has_factors(source):
        return None
    probe_library("sklearn")  # the probes need it too: fail before the sampling
    if source.task is not None and source.task.factors:
        return source.task
    rows, texts = _labelled(source, TRAIN, _training_rows(source))
    reader = TextLabels(texts, rows, _label_factors(rows))
    reader.notes = tuple(_accuracy_notes(reader, source, split, sequences, longest))
    return reader


def has_factors(source: DataSource) -> bool:
    """Whether `factor_reader` finds a reader, without training one."""
    if source.task is not None and source.task.factors:
        return True
    count = _training_rows(source)
    return bool(count and _label_factors([row for row in source.held_out_factors(TRAIN, count) if row]))


class TextLabels(RowReader):
    """Labels read from words and pairs of words: logistic regression on their tf-idf. A text without any known word is unread."""

    def __init__(self, texts: Sequence[str], rows: Sequence[Factors], factors: Sequence[Factor]) -> None:
        """Train on texts whose labels are `rows`."""
        linear, features = probe_library("sklearn.linear_model"), probe_library("sklearn.feature_extraction.text")
        self.factors = tuple(factors)
        self._vectorizer = features.TfidfVectorizer(token_pattern=WORD, ngram_range=(1, 2), min_df=LEAST_USE, sublinear_tf=True)
        self._models: dict[str, Any] = {}
        try:
            counts = self._vectorizer.fit_transform(texts)
        except ValueError:  # no word occurs in two texts
            return
        self._models = {
            name: linear.LogisticRegression(C=PRECISE, max_iter=1000).fit(counts, labels)
            for name, labels in encode(self.factors, rows).items()
        }

    def read_all(self, texts: Sequence[str]) -> list[Reading]:
        if not self._models:
            return [Reading() for _ in texts]
        counts = self._vectorizer.transform(texts)
        found = {factor.name: [factor.values[n] for n in self._models[factor.name].predict(counts)] for factor in self.factors}
        known = counts.getnnz(axis=1) > 0
        return [Reading({name: values[i] for name, values in found.items()} if known[i] else {}) for i in range(len(texts))]


def _accuracy_notes(reader: RowReader, source: DataSource, split: str, sequences: int, longest: int | None) -> list[str]:
    """How well a classifier reads held-out texts, a line for each label."""
    rows, texts = _labelled(source, split, sequences, longest)
    truth = encode(reader.factors, rows)
    found = encode(reader.factors, [reading.factors for reading in reader.read_all(texts)] if texts else [])
    where = "of the very texts that it learned from" if split == TRAIN else "held-out sequences"
    where += f", cut to {longest} tokens" if longest is not None and longest < source.context + 1 else ""
    notes = []
    for factor in reader.factors:
        right = float((truth[factor.name] == found[factor.name]).mean()) if rows else math.nan
        values = ", ".join(factor.values)
        how = f"is read from words and pairs of words by a linear classifier, {right:.1%} right on {len(rows)} {where}"
        notes.append(f"{factor.name} ({values}) {how}")
    return notes


def _training_rows(source: DataSource) -> int:
    """The number of rows to train a classifier on; 0 where the data has no train split."""
    try:
        return min(TRAINING_TEXTS, source.rows.size(TRAIN) or TRAINING_TEXTS)
    except InputError:
        return 0


def _label_factors(rows: Sequence[Factors]) -> list[Factor]:
    """The labels that are classes, with the values that occur."""
    names = [name for name, value in (rows[0] if rows else {}).items() if isinstance(value, str)]
    values = {name: tuple(sorted({str(row[name]) for row in rows})) for name in names}
    return [Factor(name, found) for name, found in values.items() if 1 < len(found) <= MOST_LABELS]


def _labelled(source: DataSource, split: str, sequences: int, longest: int | None = None) -> tuple[list[Factors], list[str]]:
    """Rows with a known label, and their texts."""
    rows, texts = source.held_out_factors(split, sequences), row_texts(source, split, sequences, longest)
    kept = [(row, text) for row, text in zip(rows, texts, strict=True) if row]
    return [row for row, _ in kept], [text for _, text in kept]


def row_texts(source: DataSource, split: str, sequences: int, longest: int | None = None) -> list[str]:
    """The texts of held-out rows, from the first input to the last target; at most `longest` tokens of each."""
    texts = []
    for batch in source.held_out(split, sequences, 256):
        for row, targets in zip(batch.inputs, batch.targets, strict=True):
            last = np.flatnonzero(targets != IGNORE)[-1]
            texts.append(source.tokenizer.decode([*row[: last + 1], targets[last]][:longest]))
    return texts
