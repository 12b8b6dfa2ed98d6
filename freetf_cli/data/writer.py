"""Write a data folder (see `dataset`) as documents arrive: hashed, flushed to disk, and renamed into place at the end."""

from __future__ import annotations

import errno
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from freetf_cli import durable
from freetf_cli.data import tokenizer as tokenizers
from freetf_cli.data.manifest import (
    DOCUMENTS,
    MANIFEST,
    OFFSETS,
    FileFacts,
    ForeignFile,
    Manifest,
    Origin,
    SplitFacts,
    TokenizerFacts,
    token_type,
)
from freetf_cli.data.tokenizer import Ids, Tokenizer
from freetf_cli.errors import FreetfError, InputError

SHARD = 1 << 27  # tokens in a shard
BUFFERED = 1 << 20  # bytes of a file kept in memory before they are written
LOCK = ".lock"


class DatasetWriter:
    """Writes a data folder. It appears under its name complete, when the `with` block succeeds, or not at all.

    with DatasetWriter(out, tokenizer, Origin(kind="text", seed=0)) as writer:
        writer.add("train", text, {"source": "a.txt", "factors": {}})
    writer.manifest, writer.notes()
    """

    manifest: Manifest

    def __init__(self, out: Path, tokenizer: Tokenizer, origin: Origin, *, shard: int = SHARD) -> None:
        refuse_existing(out)
        out = out.resolve() if out.is_symlink() else out  # the link stays; renaming would have to replace it
        self.out, self.tokenizer, self.origin, self._shard = out, tokenizer, origin, shard
        self._splits: dict[str, _SplitWriter | _ForeignWriter] = {}
        self._missing, self._control = Counter[str](), Counter[str]()
        self._folder = out.with_name(f".{out.name}.tmp")
        self._lock = FileLock(self._folder / LOCK, timeout=0)

    def __enter__(self) -> DatasetWriter:
        """Create the temporary folder, or take over one from a killed process. A lock shows whether another process is still writing it."""
        with _writing(self.out):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise FreetfError("another process is writing it", str(self.out), "wait for it, or choose another folder") from None
            for left in self._folder.iterdir():
                if left.name != LOCK:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
        return self

    def add(self, split: str, text: str, record: Mapping[str, Any], label: str | None = None, ids: Ids | None = None) -> None:
        """Add a document to a split: its text, its record in documents.jsonl, and the label that the manifest counts.

        ids: the ids of the text, if it has been encoded.
        """
        if ids is None:
            ids = self.tokenizer.encode_array(text, str(record.get("source", "")))
        missing, control = self.tokenizer.losses(text, ids)
        self._missing.update(missing)
        self._control.update(control)
        with _writing(self.out):
            if split not in self._splits:
                self._splits[split] = _SplitWriter(self._folder / split, self.tokenizer, self._shard)
            writer = self._splits[split]
            assert isinstance(writer, _SplitWriter), "a split is text or refers to files"
            writer.add(ids, text, record, label)

    def refer(self, split: str, files: list[ForeignFile], offsets: NDArray[np.int64], edges: tuple[bool, bool], size: int) -> None:
        """Make a split of token files that stay where they are. offsets: as in offsets.bin; size: bytes of text, see `SplitFacts`."""
        with _writing(self.out):
            self._splits[split] = _ForeignWriter(self._folder / split, files, offsets, edges, size)

    def notes(self) -> list[str]:
        """What the text lost to the tokenizer, and how many held-out documents are copies of documents in the train split."""
        notes = []
        if n := self._missing.total():
            often = ", ".join(f"{char!r} ({k:,})" for char, k in self._missing.most_common(3))
            notes.append(f"the tokenizer drops or changes {n:,} character{'s' * (n > 1)}, most often {often}")
        if n := self._control.total():
            often = ", ".join(f"{token} ({k:,})" for token, k in self._control.most_common(3))
            notes.append(f"the text spells {n:,} control token{'s' * (n > 1)} of the tokenizer: {often}")
        train = self._splits.get("train")
        for name, split in self._splits.items():
            if train not in (None, split) and (copies := int(np.isin(split.hashes, train.hashes).sum())):
                notes.append(f"{copies:,} of {len(split.hashes):,} documents of {name} are exact copies of documents in train")
        return notes

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        done = False
        try:
            if kind is None:
                with _writing(self.out):
                    self._finish()
                done = True
        finally:
            for split in self._splits.values():
                split.close()
            if not done:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.release()

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
        (self.out / LOCK).unlink(missing_ok=True)  # not before: another writer would take over a folder without a lock


def refuse_existing(out: Path) -> None:
    """Raise InputError if the path is the working folder, or exists and is not an empty folder."""
    if out.resolve() == Path.cwd():  # it would be replaced, and a shell in it left in a deleted folder
        raise InputError("the working folder cannot be the output", hint="name another: -o DIR")
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
        self.hashes = array("q")  # of the documents' texts
        self._tokens = self._bytes = 0
        self._labels: Counter[str] = Counter()
        self._append(np.empty(0, np.int64))

    def add(self, ids: Ids, text: str, record: Mapping[str, Any], label: str | None) -> None:
        self._append(ids)
        self._lines.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")
        self.hashes.append(hash(text))
        self._bytes += len(text.encode())
        self._labels.update([] if label is None else [label])

    def _append(self, ids: Ids) -> None:
        """Append a document and a separator to the stream, in shards, and to the offsets where the next document begins."""
        ids = np.append(ids, self._separator)
        while len(ids):
            number, place = divmod(self._tokens, self._shard)
            if place == 0:
                self._shards.append(self._open(f"tokens-{number:05d}.bin"))
            part, ids = ids[: self._shard - place], ids[self._shard - place :]
            self._shards[-1].write(part.astype(self._type).tobytes())
            self._tokens += len(part)
        self._offsets.write((self._tokens - len(self._separator)).to_bytes(8, "little"))

    def _open(self, name: str) -> BinaryIO:
        return (self._folder / name).open("wb", buffering=BUFFERED)

    def finish(self) -> SplitFacts:
        files = {Path(file.name).name: _finish_file(file) for file in (*self._shards, self._offsets, self._lines)}
        durable.flush(self._folder)
        labels = dict(sorted(self._labels.items()))
        return SplitFacts(documents=len(self.hashes), tokens=self._tokens, bytes=self._bytes, labels=labels, files=files)

    def close(self) -> None:
        """Close the files. Errors are ignored: a full disk has been reported before."""
        for file in (*self._shards, self._offsets, self._lines):
            with suppress(OSError):
                file.close()


class _ForeignWriter:
    """Writes a split whose tokens stay in files of other programs: only the offsets of its documents."""

    hashes = array("q")  # none: there is no text to compare

    def __init__(self, folder: Path, files: list[ForeignFile], offsets: NDArray[np.int64], edges: tuple[bool, bool], size: int) -> None:
        folder.mkdir()
        self._folder, self._files, self._edges, self._bytes = folder, files, edges, size
        self._documents = len(offsets) - 1
        self._tokens = sum(count for file in files for _, count in file.parts) + sum(edges)
        self._offsets = (folder / OFFSETS).open("wb")
        offsets.astype("<i8").tofile(self._offsets)

    def finish(self) -> SplitFacts:
        files = {OFFSETS: _finish_file(self._offsets)}
        durable.flush(self._folder)
        sizes = {"documents": self._documents, "tokens": self._tokens, "bytes": self._bytes}
        return SplitFacts(**sizes, labels={}, files=files, foreign=self._files, edges=list(self._edges))

    def close(self) -> None:
        with suppress(OSError):
            self._offsets.close()


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
        hint = "free some space, or write elsewhere" if error.errno == errno.ENOSPC else ""
        kind = InputError if error.errno == errno.ENAMETOOLONG else FreetfError
        raise kind(f"cannot be written: {error.strerror or error}", str(out), hint) from None
