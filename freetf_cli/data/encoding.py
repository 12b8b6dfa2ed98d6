"""Encode a stream of documents on all cores, in order and in constant memory.

The threads are those of the `tokenizers` library, which distributes the documents of a batch over them. Meanwhile the next documents are
read and those of the previous batch are written. Each document is encoded by itself, so the result does not depend on the batches or
the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from functools import partial

from freetf_cli.data.background import start, wait
from freetf_cli.data.text import Document
from freetf_cli.data.tokenizer import Ids, Tokenizer

CHARACTERS = 1 << 21  # in a batch; the library needs about 30 bytes for each, and two batches are in memory at a time
DOCUMENTS = 1 << 12  # in a batch, at most

Assigned = tuple[str, Document]  # a document and the name of its split


def encode_documents(tokenizer: Tokenizer, documents: Iterable[Assigned]) -> Iterator[tuple[str, Document, Ids]]:
    """Each document with its ids. InputError for a character outside the vocabulary; it names the document."""
    before: tuple[list[Assigned], Future[list[Ids]]] | None = None
    for batch in _batches(documents):
        future = _start(tokenizer, batch)
        if before is not None:
            yield from _finish(*before)
        before = batch, future
    if before is not None:
        yield from _finish(*before)


def _start(tokenizer: Tokenizer, batch: list[Assigned]) -> Future[list[Ids]]:
    return start(partial(tokenizer.encode_batch, [document.text for _, document in batch], [document.source for _, document in batch]))


def _finish(batch: list[Assigned], future: Future[list[Ids]]) -> Iterator[tuple[str, Document, Ids]]:
    encoded: list[Ids] = wait(future)
    for (split, document), ids in zip(batch, encoded, strict=True):
        yield split, document, ids


def _batches(documents: Iterable[Assigned]) -> Iterator[list[Assigned]]:
    batch: list[Assigned] = []
    characters = 0
    for split, document in documents:
        batch.append((split, document))
        characters += len(document.text)
        if characters >= CHARACTERS or len(batch) >= DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
