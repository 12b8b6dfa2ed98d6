"""Write a data folder (see `dataset`): streamed and hashed, flushed to disk, and renamed into place at the end."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from freetf_cli import durable
from freetf_cli.data import tokenizer as tokenizers
from freetf_cli.data.manifest import (
    DOCUMENTS,
    FORMAT,
    MANIFEST,
    OFFSETS,
    VERSION,
    FileFacts,
    Manifest,
    Origin,
    SplitFacts,
    TokenizerFacts,
    token_type,
)
from freetf_cli.data.tokenizer import Ids, Tokenizer
from freetf_cli.errors import FreetfError, InputError
from freetf_cli.records import SCHEMA_VERSION

SHARD = 1 << 27  # tokens in a shard
BUFFERED = 1 << 20  # tokens, or bytes, kept in memory before they are written


class DatasetWriter:
    """Writes a data folder. It appears under its name complete, when the `with` block succeeds, or not at all.

    with DatasetWriter(out, tokenizer, Origin(kind="text", seed=0)) as writer:
        writer.add("train", tokenizer.encode_array(text), {"source": "a.txt", "factors": {}}, size=len(text.encode()))
    writer.manifest
    """

    manifest: Manifest

    def __init__(self, out: Path, tokenizer: Tokenizer, origin: Origin, *, shard: int = SHARD) -> None:
        refuse_existing(out)
        self.out, self.tokenizer, self.origin, self._shard = out, tokenizer, origin, shard
        self._splits: dict[str, _SplitWriter] = {}

    def __enter__(self) -> DatasetWriter:
        with _writing(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", suffix=".partial", dir=self.out.parent))
            self._folder.chmod(0o755)
        return self

    def add(self, split: str, ids: Ids, record: Mapping[str, Any], *, size: int, label: str | None = None) -> None:
        """Add a document to a split: its ids without separators, its record in documents.jsonl, the size of its text in bytes."""
        if split not in self._splits:
            with _writing(self.out):
                self._splits[split] = _SplitWriter(self._folder / split, self.tokenizer, self._shard)
        with _writing(self.out):
            self._splits[split].add(ids, record, size, label)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                with _writing(self.out):
                    self._finish()
        finally:
            for split in self._splits.values():
                split.abandon()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self) -> None:
        """Write the manifest, flush everything to disk, then rename the folder."""
        if not self._splits:
            raise InputError("there is no document to write", str(self.out))
        tokenizer = self.tokenizer
        facts = TokenizerFacts(name=tokenizer.name, vocabulary=tokenizer.vocab_size, sha256=tokenizer.sha256, separator=tokenizer.separator)
        self.manifest = Manifest(
            **dict(self.origin),
            schema_version=SCHEMA_VERSION,
            format=FORMAT,
            format_version=VERSION,
            tokenizer=facts,
            splits={name: split.finish() for name, split in self._splits.items()},
        )
        _write_file(self._folder / tokenizers.FILE, self.tokenizer.json.encode("utf-8"))
        _write_file(self._folder / MANIFEST, self.manifest.model_dump_json(indent=1).encode("utf-8") + b"\n")
        durable.flush(self._folder)
        if self.out.is_dir():
            self.out.rmdir()  # it is empty, as checked at the start
        durable.move(self._folder, self.out)


def refuse_existing(out: Path) -> None:
    """Raise InputError if the path exists and is not an empty folder."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise InputError("it exists already", str(out), "choose another folder or remove it first")


class _SplitWriter:
    """Writes the files of one split as documents arrive."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard: int) -> None:
        folder.mkdir()
        self._folder, self._vocabulary, self._separator, self._shard = folder, tokenizer.vocab_size, tokenizer.separator, shard
        self._offsets, self._lines = _HashedFile(folder / OFFSETS), _HashedFile(folder / DOCUMENTS)
        self._shards: list[_HashedFile] = []
        self._waiting: list[Ids] = []
        self._held = self._documents = self._tokens = self._written = self._bytes = 0
        self._labels: Counter[str] = Counter()
        self._first = np.array([] if self._separator is None else [self._separator], np.int64)
        self._stream(self._first)
        self._offsets.write(_offset(0))

    def add(self, ids: Ids, record: Mapping[str, Any], size: int, label: str | None) -> None:
        self._stream(ids)
        self._stream(self._first)
        self._documents += 1
        self._bytes += size
        self._labels.update([] if label is None else [label])
        self._offsets.write(_offset(self._tokens - len(self._first)))
        self._lines.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")

    def _stream(self, ids: Ids) -> None:
        self._waiting.append(ids)
        self._tokens += len(ids)
        self._held += len(ids)
        if self._held >= BUFFERED:
            self._flush()

    def _flush(self) -> None:
        """Write the buffered tokens; begin a new shard when one is full."""
        ids = np.concatenate([self._first[:0], *self._waiting]).astype(token_type(self._vocabulary))
        self._waiting, self._held = [], 0
        while len(ids):
            if self._written == len(self._shards) * self._shard:
                self._shards.append(_HashedFile(self._folder / f"tokens-{len(self._shards):05d}.bin"))
            part, ids = np.split(ids, [len(self._shards) * self._shard - self._written])
            self._shards[-1].write(part.tobytes())
            self._written += len(part)

    def finish(self) -> SplitFacts:
        self._flush()
        files = {file.path.name: file.finish() for file in (*self._shards, self._offsets, self._lines)}
        durable.flush(self._folder)
        labels = dict(sorted(self._labels.items()))
        return SplitFacts(documents=self._documents, tokens=self._tokens, bytes=self._bytes, labels=labels, files=files)

    def abandon(self) -> None:
        for file in (*self._shards, self._offsets, self._lines):
            file.close()


class _HashedFile:
    """A file whose SHA-256 is computed while it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=BUFFERED)
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def finish(self) -> FileFacts:
        self._file.close()
        durable.flush(self.path)
        return FileFacts(bytes=self._size, sha256=self._hash.hexdigest())

    def close(self) -> None:
        with suppress(OSError):  # a full disk was reported already, and the file is removed
            self._file.close()


def _write_file(path: Path, data: bytes) -> None:
    file = _HashedFile(path)
    file.write(data)
    file.finish()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FreetfError(f"cannot be written: {error.strerror or error}", str(out)) from None


def _offset(value: int) -> bytes:
    return value.to_bytes(8, "little")
