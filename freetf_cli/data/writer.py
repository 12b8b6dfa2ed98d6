"""Write a data folder (see `dataset`) as documents arrive: hashed, flushed to disk, and renamed into place at the end."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from freetf_cli import durable
from freetf_cli.data import tokenizer as tokenizers
from freetf_cli.data.manifest import DOCUMENTS, MANIFEST, OFFSETS, FileFacts, Manifest, Origin, SplitFacts, TokenizerFacts, token_type
from freetf_cli.data.tokenizer import Ids, Tokenizer
from freetf_cli.errors import FreetfError, InputError

SHARD = 1 << 27  # tokens in a shard
BUFFERED = 1 << 20  # bytes of a file kept in memory before they are written


class DatasetWriter:
    """Writes a data folder. It appears under its name complete, when the `with` block succeeds, or not at all.

    with DatasetWriter(out, tokenizer, Origin(kind="text", seed=0)) as writer:
        writer.add("train", text, {"source": "a.txt", "factors": {}})
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

    def add(self, split: str, text: str, record: Mapping[str, Any], label: str | None = None) -> None:
        """Add a document to a split: its text, its record in documents.jsonl, and the label that the manifest counts."""
        ids = self.tokenizer.encode_array(text, str(record.get("source", "")))
        with _writing(self.out):
            if split not in self._splits:
                self._splits[split] = _SplitWriter(self._folder / split, self.tokenizer, self._shard)
            self._splits[split].add(ids, record, len(text.encode()), label)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                with _writing(self.out):
                    self._finish()
        finally:
            for split in self._splits.values():
                split.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _finish(self) -> None:
        """Write the manifest, flush everything to disk, then rename the folder."""
        if not self._splits:
            raise InputError("there is no document to write", str(self.out))
        tokenizer = self.tokenizer
        facts = TokenizerFacts(name=tokenizer.name, vocabulary=tokenizer.vocab_size, sha256=tokenizer.sha256, separator=tokenizer.separator)
        splits = {name: split.finish() for name, split in self._splits.items()}
        self.manifest = Manifest(**dict(self.origin), tokenizer=facts, splits=splits)
        durable.write_durably(self._folder / tokenizers.FILE, tokenizer.json)
        durable.write_durably(self._folder / MANIFEST, self.manifest.model_dump_json(indent=1) + "\n")
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
    """Writes the files of one split."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard: int) -> None:
        folder.mkdir()
        self._folder, self._shard, self._type = folder, shard, token_type(tokenizer.vocab_size)
        self._separator = np.array([] if tokenizer.separator is None else [tokenizer.separator], np.int64)
        self._shards: list[BinaryIO] = []
        self._offsets, self._lines = self._open(OFFSETS), self._open(DOCUMENTS)
        self._documents = self._tokens = self._bytes = 0
        self._labels: Counter[str] = Counter()
        self._stream(self._separator)
        self._write_offset()

    def add(self, ids: Ids, record: Mapping[str, Any], size: int, label: str | None) -> None:
        self._stream(ids)
        self._stream(self._separator)
        self._write_offset()
        self._lines.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")
        self._documents += 1
        self._bytes += size
        self._labels.update([] if label is None else [label])

    def _stream(self, ids: Ids) -> None:
        """Append tokens to the stream; begin a new shard when one is full."""
        while len(ids):
            number, place = divmod(self._tokens, self._shard)
            if place == 0:
                self._shards.append(self._open(f"tokens-{number:05d}.bin"))
            part, ids = ids[: self._shard - place], ids[self._shard - place :]
            self._shards[-1].write(part.astype(self._type).tobytes())
            self._tokens += len(part)

    def _write_offset(self) -> None:
        self._offsets.write((self._tokens - len(self._separator)).to_bytes(8, "little"))

    def _open(self, name: str) -> BinaryIO:
        return (self._folder / name).open("wb", buffering=BUFFERED)

    def finish(self) -> SplitFacts:
        files = {Path(file.name).name: _finish_file(file) for file in (*self._shards, self._offsets, self._lines)}
        durable.flush(self._folder)
        labels = dict(sorted(self._labels.items()))
        return SplitFacts(documents=self._documents, tokens=self._tokens, bytes=self._bytes, labels=labels, files=files)

    def close(self) -> None:
        """Close the files of a folder that is removed. A full disk was reported already."""
        for file in (*self._shards, self._offsets, self._lines):
            with suppress(OSError):
                file.close()


def _finish_file(file: BinaryIO) -> FileFacts:
    file.close()
    path = Path(file.name)
    durable.flush(path)
    return FileFacts(bytes=path.stat().st_size, sha256=durable.sha256_of(path))


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FreetfError(f"cannot be written: {error.strerror or error}", str(out)) from None
