"""Data as training and evaluation see it: batches as a pure function of (seed, step), held-out rows, prompts and facts.

data = open_data(recipe.data, context=recipe.model.context, seed=recipe.train.seed)
batch = data.train_batch(step=0, size=64)      # inputs [64, T], targets [64, T]
for batch in data.held_out("val", sequences=512, size=64): ...
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freetf_cli.config.recipe import DataConfig
from freetf_cli.data.dataset import Dataset
from freetf_cli.data.manifest import Origin
from freetf_cli.data.prepare import task_origin, task_tokenizer
from freetf_cli.data.rows import DocumentRows, Factors, FiniteTaskRows, PackedRows, RowSource, TaskRows
from freetf_cli.data.tokenizer import Tokenizer
from freetf_cli.errors import InputError
from freetf_cli.records import DataFacts
from freetf_cli.streams import data_generator
from freetf_cli.tasks import make_task
from freetf_cli.tasks.base import PAD, Task, Tokens

COUNTED_AT_ONCE = 1 << 22  # tokens
HIDDEN_AT_ONCE = 1024  # training rows
IGNORE = -100  # the target of positions without a loss, as in PyTorch's cross_entropy


@dataclass(frozen=True, eq=False)
class Batch:
    """inputs and targets [B, T], int64. Targets without a loss are IGNORE."""

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Hidden:
    """Teacherless training (arXiv 2403.06963): in a share of the training rows every input after the prompt is replaced by one token.

    The model then predicts all targets of the row from the prompt alone. Whether row g is hidden is a function of (seed, g).
    """

    token: int
    share: float
    seed: int

    def hide(self, batch: Batch, rows: NDArray[np.int64]) -> Batch:
        """The batch of the training rows with these numbers [B]. In some of them the inputs that were targets before are hidden."""
        blocks, places = np.divmod(rows, HIDDEN_AT_ONCE)
        uniform = {block: data_generator("teacherless", self.seed, block).random(HIDDEN_AT_ONCE) for block in np.unique(blocks).tolist()}
        drawn = np.array([uniform[block][place] < self.share for block, place in zip(blocks.tolist(), places.tolist(), strict=True)])
        after = np.zeros(batch.inputs.shape, bool)
        after[:, 1:] = batch.targets[:, :-1] != IGNORE
        return replace(batch, inputs=np.where(drawn[:, None] & after, self.token, batch.inputs))


@dataclass(frozen=True, eq=False)
class DataSource:
    """The sequences of a run.

    context: T. loss_start: index in a row of the first token that is a target. prompt(seed, index): a text that a sample can begin with.
    token_bytes(split): bytes of text that each token stands for [V]; zeros if the data is not text. folder: of the data, if it has one.
    unused: the share of the documents' tokens that rows cut off. hidden: the inputs that training hides, if any.
    """

    tokenizer: Tokenizer
    facts: DataFacts
    context: int
    rows: RowSource
    loss_start: int
    prompt: Callable[[int, int], str]
    token_bytes: Callable[[str], NDArray[np.float64]]
    task: Task | None = None
    folder: Path | None = None
    unused: float = 0.0
    hidden: Hidden | None = None

    def train_batch(self, step: int, size: int, spans: Sequence[range] | None = None) -> Batch:
        """The batch of a step, a function of (seed, step, size) alone. spans: only these rows of it."""
        parts = [range(step * size + span.start, step * size + span.stop) for span in spans or [range(size)]]
        batch = self._batch(np.concatenate([self.rows.train(part.start, len(part)) for part in parts]))
        return batch if self.hidden is None else self.hidden.hide(batch, np.concatenate(parts))

    def held_out(self, split: str, sequences: int, size: int) -> Iterator[Batch]:
        """Batches of `size` held-out rows, always the same: `sequences` of them spread evenly over the split, or all if it has fewer."""
        count = self._count(split, sequences)
        for start in range(0, count, size):
            yield self._batch(self.rows.held_out(split, self._numbers(split, count, range(start, min(start + size, count)))))

    def target_bytes(self, split: str, targets_BT: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bytes of text that the counted targets of each row of a split stand for [B]; 0 if the data is not text.

        A separator has none. A byte-level tokenizer splits characters, and each of its tokens has the bytes that it spells. Where a
        tokenizer alters the text or drops some of it, all tokens of a split together have the bytes of the split's text.
        """
        found_B: NDArray[np.float64] = np.where(targets_BT == IGNORE, 0.0, self.token_bytes(split)[targets_BT.clip(min=0)]).sum(-1)
        return found_B

    def held_out_factors(self, split: str, sequences: int) -> list[Factors]:
        """The known factors of each of these rows."""
        count = self._count(split, sequences)
        return self.rows.factors(split, self._numbers(split, count, range(count)))

    def held_out_documents(self, split: str, sequences: int) -> NDArray[np.int64]:
        """The number of the document in which each of these rows begins. Rows of one document are not independent."""
        count = self._count(split, sequences)
        return self.rows.documents(split, self._numbers(split, count, range(count)))

    def _count(self, split: str, sequences: int) -> int:
        available = self.rows.size(split)
        return sequences if available is None else min(sequences, available)

    def _numbers(self, split: str, count: int, of: range) -> NDArray[np.int64]:
        """The numbers of some of `count` rows that are spread evenly over the split. `count` may be beyond memory."""
        return np.arange(of.start, of.stop) * (self.rows.size(split) or count) // max(count, 1)

    def _batch(self, rows: Tokens) -> Batch:
        ended = rows == PAD
        separator = self.tokenizer.separator
        targets = np.where(ended, IGNORE, rows)[:, 1:]
        targets[:, : self.loss_start - 1] = IGNORE
        return Batch(np.where(ended, 0 if separator is None else separator, rows)[:, :-1], targets)


def open_data(config: DataConfig, *, context: int | None, seed: int) -> DataSource:
    """Open the data of a recipe. context: T; by default one less than the row length of the task.

    InputError if the folder is missing or damaged. A split that is shorter than a row is one when its rows are asked for.
    """
    if config.task is not None:
        return _open_task(make_task(config.task, config.params), config, context, seed)
    return _open_folder(Dataset.open(str(config.dir)), config.rows, context, seed)


def _open_task(task: Task, config: DataConfig, context: int | None, seed: int) -> DataSource:
    context = context or task.row_tokens - 1
    tokenizer = task_tokenizer(task)
    _check_context(context, task.row_tokens, task.loss_start, tokenizer, f"a row of '{task.name}'")
    sha256 = hashlib.sha256(json.dumps([task.name, task.params], sort_keys=True).encode()).hexdigest()
    facts = _facts(task_origin(task, seed), context, name=task.name, vocabulary=tokenizer.vocab_size, sha256=sha256)
    no_bytes = np.zeros(tokenizer.vocab_size)
    width, count = context + 1, config.train_rows
    rows = TaskRows(task, width, seed) if count is None else FiniteTaskRows(task, width, seed, count)
    hidden = _hidden(task, config.teacherless, seed)
    return DataSource(tokenizer, facts, context, rows, task.loss_start, task.prompt, lambda split: no_bytes, task, hidden=hidden)


def _hidden(task: Task, share: float, seed: int) -> Hidden | None:
    """The inputs that teacherless training hides. InputError if the task has no word to hide them with."""
    if not share:
        return None
    if task.hidden_word is None or task.alphabet is None:
        raise InputError(f"data.teacherless = {share:g}: task '{task.name}' has no word that replaces hidden inputs")
    return Hidden(task.alphabet.index(task.hidden_word), share, seed)


def _open_folder(data: Dataset, rows: str, context: int | None, seed: int) -> DataSource:
    about = data.manifest
    is_text = about.kind == "text"
    packed = rows == "packed" or (rows == "auto" and is_text)
    longest = max(int(split.row_lengths.max()) for split in data.splits.values())
    if context is None and is_text:
        what = "model.context is not set, and text has no row length of its own"
        raise InputError(what, str(data.folder), "for example model.context=256")
    context = context or (about.row_tokens or longest) - 1
    unused = 0.0
    if packed:
        about = about.model_copy(update={"loss_start": 1, "row_tokens": context + 1, "floor_bits": None})
    else:
        _check_equal_rows(data)
        _check_context(context, longest, about.loss_start, data.tokenizer, f"the longest document of {data.folder}")
        lengths = np.concatenate([split.row_lengths for split in data.splits.values()])
        unused = 1 - float(np.minimum(lengths, context + 1).sum() / lengths.sum())
    name, vocabulary = data.folder.resolve().name, about.tokenizer.vocabulary
    facts = _facts(about, context, name=name, vocabulary=vocabulary, sha256=data.sha256)
    source: RowSource = (PackedRows if packed else DocumentRows)(data, context + 1, seed)
    task = None if about.task is None else make_task(about.task, about.params)
    prompt = task.prompt if task else _text_prompt(data)
    token_bytes = cache(partial(_token_bytes, data))
    return DataSource(data.tokenizer, facts, context, source, about.loss_start, prompt, token_bytes, task, data.folder, unused)


def _token_bytes(data: Dataset, split: str) -> NDArray[np.float64]:
    """Bytes of a split's text that each token stands for [V]; zeros if the data is not text."""
    tokenizer, part = data.tokenizer, data.split(split)
    if data.manifest.kind != "text":
        return np.zeros(tokenizer.vocab_size)
    if tokenizer.keeps_bytes:
        return tokenizer.byte_counts
    pieces = (part.slice(start, start + COUNTED_AT_ONCE) for start in range(0, part.tokens, COUNTED_AT_ONCE))
    found = sum(float(tokenizer.byte_counts[piece].sum()) for piece in pieces)
    return tokenizer.byte_counts * (part.facts.bytes / max(found, 1.0))


def _facts(about: Origin, context: int, **others: Any) -> DataFacts:
    """The facts of rows that are cropped to the context. The floor is known of whole rows only."""
    length = about.row_tokens  # None if rows differ
    targets = length and min(length, context + 1) - about.loss_start
    floor_bits = about.floor_bits if length and context + 1 >= length else None
    return DataFacts(task=about.task, params=about.params, context=context, targets=targets, floor_bits=floor_bits, **others)


def _text_prompt(data: Dataset) -> Callable[[int, int], str]:
    """Prompts for text: empty (the separator alone), or the first token of a document if there is no separator."""
    if data.tokenizer.separator is not None:
        return lambda seed, index: ""
    split = next(iter(data.splits.values()))
    return lambda seed, index: data.tokenizer.decode(split.row((seed + index) % len(split))[:1])


def _check_context(context: int, longest: int, loss_start: int, tokenizer: Tokenizer, what: str) -> None:
    """A cropped row must have a target left, and rows can be padded only with a separator."""
    if context < loss_start:
        raise InputError(f"model.context = {context} leaves no target: the first one is token {loss_start} of a row")
    if context + 1 > longest and tokenizer.separator is None:
        raise InputError(f"model.context = {context} is too long: {what} has {longest} tokens and no separator to pad with")


def _check_equal_rows(data: Dataset) -> None:
    lengths = {int(length) for split in data.splits.values() for length in np.unique(split.row_lengths)}
    if data.tokenizer.separator is None and len(lengths) > 1:
        raise InputError("without a separator all documents must be equally long to be rows", str(data.folder), "data.rows = 'packed'")
