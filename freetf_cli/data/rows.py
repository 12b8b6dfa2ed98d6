"""Sources of rows: a task's stream, one document a row, or windows over a packed stream.

All of them give arrays [rows, T + 1], padded with PAD. Training row g is a function of (seed, g); step s with batch size B takes
rows s·B … s·B + B − 1. Each source has

    train(start, count)       training rows start … start + count − 1 of the seed's order [count, T + 1]
    held_out(split, rows)     rows of a split by number [rows, T + 1]
    factors(split, rows)      their known factors; empty for a row with parts of several documents
    documents(split, rows)    the number of the document in which each of them begins [rows]
    size(split)               the number of rows of a split; None for an endless stream. InputError if the split has none
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freetf_cli.data.dataset import Dataset, Split
from freetf_cli.errors import InputError
from freetf_cli.streams import data_generator, stream_seed
from freetf_cli.tasks.base import PAD, Task, Tokens

TRAIN = "train"
HELD_OUT_SEED = 0  # runs of all seeds are evaluated on the same rows

Factors = dict[str, Any]


class Epochs:
    """The order of a finite number of rows: all of them once an epoch, shuffled by (seed, epoch)."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rows = rows
        self._order = lru_cache(maxsize=2)(lambda epoch: data_generator("epoch", seed, epoch).permutation(rows))

    def rows(self, start: int, count: int) -> list[tuple[int, NDArray[np.int64]]]:
        """(epoch, rows of it) for positions start … start + count − 1 of the sequence of all epochs."""
        epochs, places = np.divmod(np.arange(start, start + count), self._rows)
        return [(epoch, self._order(epoch)[places[epochs == epoch]]) for epoch in np.unique(epochs).tolist()]


class TaskRows:
    """A stream of fresh rows. Each split has its own stream; only that of training depends on the seed."""

    def __init__(self, task: Task, width: int, seed: int) -> None:
        self._task, self._width, self._seed = task, width, seed

    def train(self, start: int, count: int) -> Tokens:
        return self._fit(self._task.tokens(stream_seed(self._seed, TRAIN), start, count))

    def held_out(self, split: str, rows: NDArray[np.int64]) -> Tokens:
        """Held-out rows by their numbers, which are consecutive."""
        return self._fit(self._task.tokens(stream_seed(HELD_OUT_SEED, split), int(rows[0]), len(rows)))

    def factors(self, split: str, rows: NDArray[np.int64]) -> list[Factors]:
        examples = self._task.examples(stream_seed(HELD_OUT_SEED, split), int(rows[0]), len(rows)) if len(rows) else []
        return [example.factors for example in examples]

    def documents(self, split: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows

    def size(self, split: str) -> int | None:
        return None

    def _fit(self, tokens: Tokens) -> Tokens:
        """The rows, cropped or padded to the width."""
        missing = max(self._width - tokens.shape[1], 0)
        return np.pad(tokens[:, : self._width], ((0, 0), (0, missing)), constant_values=PAD)


class FiniteTaskRows(TaskRows):
    """A finite training set: the first `count` rows of the stream, each once an epoch. They are also the split `train`."""

    def __init__(self, task: Task, width: int, seed: int, count: int) -> None:
        super().__init__(task, width, seed)
        self._count, self._epochs = count, Epochs(count, seed)

    @cached_property
    def _table(self) -> NDArray[np.int32]:
        """All training rows, kept in memory: a batch takes rows from anywhere in the stream, and the stream is drawn in blocks."""
        return super().train(0, self._count).astype(np.int32)

    def train(self, start: int, count: int) -> Tokens:
        return self.held_out(TRAIN, np.concatenate([rows for _, rows in self._epochs.rows(start, count)]))

    def held_out(self, split: str, rows: NDArray[np.int64]) -> Tokens:
        return np.asarray(self._table[rows], np.int64) if split == TRAIN else super().held_out(split, rows)

    def factors(self, split: str, rows: NDArray[np.int64]) -> list[Factors]:
        if split != TRAIN:
            return super().factors(split, rows)
        examples = self._task.examples(stream_seed(self._seed, TRAIN), 0, self._count)
        return [examples[row].factors for row in rows]

    def size(self, split: str) -> int | None:
        return self._count if split == TRAIN else None


class _FolderRows:
    """Rows of a data folder. All of the train split come once an epoch, in an order shuffled by (seed, epoch)."""

    def __init__(self, data: Dataset, width: int, seed: int) -> None:
        self._data, self._width, self._seed = data, width, seed

    @cached_property
    def _epoch_rows(self) -> int:
        """Rows of an epoch."""
        return len(self._data.split(TRAIN))

    def document_labels(self, split: str) -> list[str | None]:
        """The label of each document, from the records of the data folder [documents]."""
        return [(record.get("factors") or {}).get("label") for record in self._data.split(split).records()]

    @cached_property
    def _epochs(self) -> Epochs:
        return Epochs(self._epoch_rows, self._seed)


class DocumentRows(_FolderRows):
    """One document a row, cropped to the width."""

    def train(self, start: int, count: int) -> Tokens:
        return self.held_out(TRAIN, np.concatenate([rows for _, rows in self._epochs.rows(start, count)]))

    def held_out(self, split: str, rows: NDArray[np.int64]) -> Tokens:
        source = self._data.split(split)
        out = np.full((len(rows), self._width), PAD, np.int64)
        for line, row in zip(out, rows, strict=True):
            tokens = source.row(int(row))[: self._width]
            line[: len(tokens)] = tokens
        return out

    def factors(self, split: str, rows: NDArray[np.int64]) -> list[Factors]:
        return _known(self._data.split(split), rows)

    def documents(self, split: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows

    def labels(self, split: str) -> list[str | None]:
        """The label of each row's document [all rows]."""
        return self.document_labels(split)

    def size(self, split: str) -> int | None:
        return len(self._data.split(split))


class PackedRows(_FolderRows):
    """Windows of T + 1 tokens, T apart, so that a token is a target at most once an epoch. Each epoch has its own offset."""

    @property
    def _stride(self) -> int:
        return self._width - 1

    @cached_property
    def _epoch_rows(self) -> int:
        """As many windows as fit at the largest offset."""
        return max(1, (self._data.split(TRAIN).tokens - self._stride) // self._stride)

    def train(self, start: int, count: int) -> Tokens:
        starts = [self._offset(epoch) + windows * self._stride for epoch, windows in self._epochs.rows(start, count)]
        return self._windows(TRAIN, np.concatenate(starts))

    def held_out(self, split: str, rows: NDArray[np.int64]) -> Tokens:
        return self._windows(split, rows * self._stride)

    def factors(self, split: str, rows: NDArray[np.int64]) -> list[Factors]:
        """The factors of the document that contains the whole window, for each window."""
        first, last = self.documents(split, rows), self._document_at(split, rows * self._stride + self._width - 1)
        found = _known(self._data.split(split), first)
        return [factors if whole else {} for factors, whole in zip(found, first == last, strict=True)]

    def documents(self, split: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._document_at(split, rows * self._stride)

    def labels(self, split: str) -> list[str | None]:
        """The label that all documents of a window have, for each window; None where they differ [all windows]."""
        of_documents = self.document_labels(split)
        changes = np.cumsum([False, *(one != other for one, other in pairwise(of_documents))])
        rows = np.arange(self.size(split) or 0)
        first, last = self.documents(split, rows), self._document_at(split, rows * self._stride + self._width - 1)
        return [of_documents[start] if changes[start] == changes[end] else None for start, end in zip(first, last, strict=True)]

    def _document_at(self, split: str, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The documents that tokens of the stream belong to; the last separator belongs to the last document."""
        source = self._data.split(split)
        return np.minimum(np.searchsorted(source.offsets, places, side="right") - 1, len(source) - 1)

    def size(self, split: str) -> int | None:
        tokens = self._data.split(split).tokens
        if tokens < self._width:
            what = f"the text of split '{split}' has {tokens} tokens: less than a row of model.context = {self._stride} and its last target"
            raise InputError(what, str(self._data.folder), "prepare more text or use a smaller model.context")
        return (tokens - 1) // self._stride

    def _offset(self, epoch: int) -> int:
        spare = self._data.split(TRAIN).tokens - 1 - self._epoch_rows * self._stride
        return int(data_generator("offset", self._seed, epoch).integers(min(self._stride - 1, spare) + 1))

    def _windows(self, split: str, starts: NDArray[np.int64]) -> Tokens:
        source = self._data.split(split)
        return np.stack([source.slice(int(start), int(start) + self._width) for start in starts])


def _known(source: Split, documents: NDArray[np.int64]) -> list[Factors]:
    """The factors of documents, from the records of the data folder."""
    wanted = set(documents.tolist())
    found = {index: record.get("factors") or {} for index, record in enumerate(source.records()) if index in wanted}
    return [found.get(index, {}) for index in documents.tolist()]


class Selected:
    """Some rows of one split of another source, such as those of one label. There are no training rows."""

    def __init__(self, rows: DocumentRows | PackedRows, split: str, numbers: NDArray[np.int64]) -> None:
        self._rows, self._split, self._numbers = rows, split, numbers

    def train(self, start: int, count: int) -> Tokens:
        raise ValueError("selected rows are for evaluation")

    def held_out(self, split: str, rows: NDArray[np.int64]) -> Tokens:
        return self._rows.held_out(split, self._chosen(split, rows))

    def factors(self, split: str, rows: NDArray[np.int64]) -> list[Factors]:
        return self._rows.factors(split, self._chosen(split, rows))

    def documents(self, split: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._rows.documents(split, self._chosen(split, rows))

    def size(self, split: str) -> int | None:
        return len(self._numbers) if split == self._split else 0

    def _chosen(self, split: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if split != self._split:
            raise ValueError(f"the rows are of split '{self._split}'")
        chosen: NDArray[np.int64] = self._numbers[rows]
        return chosen


RowSource = TaskRows | DocumentRows | PackedRows | Selected
