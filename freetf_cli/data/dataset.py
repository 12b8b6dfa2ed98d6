"""The data folder: token shards, offsets and records of the documents, and a manifest with a hash of every file.

    letters/manifest.json  tokenizer.json
            train/tokens-00000.bin   the stream of tokens, little-endian uint16 (uint32 for a vocabulary above 65,536)
            train/offsets.bin        int64, documents + 1 of them: the position of each document in the stream
            train/documents.jsonl    a record for each document: text and factors, or source and factors

With a separator the stream is `SEP d1 SEP d2 SEP …`, and row i, `SEP di SEP`, is stream[offsets[i] : offsets[i + 1] + 1]. Without one
the documents follow each other, and row i is stream[offsets[i] : offsets[i + 1]].

Token files that other programs made (see `foreign`) stay where they are: the manifest has their paths and hashes in place of tokens-*.bin.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freetf_cli.data import tokenizer as tokenizers
from freetf_cli.data.foreign import map_parts
from freetf_cli.data.manifest import DOCUMENTS, MANIFEST, OFFSETS, Manifest, SplitFacts, parse_manifest, token_type
from freetf_cli.data.tokenizer import Ids, Tokenizer
from freetf_cli.durable import sha256_of
from freetf_cli.errors import InputError, nearest

LARGEST_MANIFEST = 16 << 20  # bytes


class Split:
    """A split of a data folder, memory-mapped. len(split): documents; tokens: length of the stream."""

    def __init__(self, folder: Path, facts: SplitFacts, tokenizer: Tokenizer) -> None:
        self.facts, self.tokens = facts, facts.tokens
        self._extra = 0 if tokenizer.separator is None else 1
        shards = sorted(name for name in facts.files if name.startswith("tokens-"))
        self._shards = [_map(folder / name, token_type(tokenizer.vocab_size)) for name in shards] or _foreign_shards(
            facts, tokenizer.separator
        )
        self._starts = np.array([0, *itertools.accumulate(map(len, self._shards))], np.int64)
        self.offsets: NDArray[np.int64] = _map(folder / OFFSETS, np.dtype("<i8"))
        self._documents = folder / DOCUMENTS
        self._check(folder, tokenizer.vocab_size)

    def __len__(self) -> int:
        return self.facts.documents

    @property
    def row_lengths(self) -> NDArray[np.int64]:
        """Tokens in the row of each document, separators included [documents]."""
        return np.diff(self.offsets) + self._extra

    def slice(self, start: int, stop: int) -> Ids:
        """Tokens start … stop − 1 of the stream."""
        first, last = np.searchsorted(self._starts, [start + 1, stop])  # shards first − 1 … last − 1 hold them
        parts = zip(self._shards[first - 1 : last], self._starts[first - 1 : last], strict=False)
        return np.concatenate([np.empty(0, np.int64), *(shard[max(start - begin, 0) : stop - begin] for shard, begin in parts)])

    def row(self, index: int) -> Ids:
        """The tokens of document `index`, with its separators."""
        return self.slice(int(self.offsets[index]), int(self.offsets[index + 1]) + self._extra)

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of documents.jsonl: `factors`, and `text` or `source`. Empty ones if the tokens are in files of other programs."""
        if not self._documents.exists():
            yield from ({} for _ in range(len(self)))
            return
        with self._documents.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def _check(self, folder: Path, vocabulary: int) -> None:
        """Check that the files fit each other, which hashes do not show."""
        fits = len(self.offsets) == len(self) + 1 and int(self._starts[-1]) == self.tokens
        fits = fits and self.offsets[0] == 0 and int(self.offsets[-1]) + self._extra == self.tokens
        if not (fits and (np.diff(self.offsets) >= 0).all()):
            raise InputError("the data folder is damaged: offsets and tokens do not fit the manifest", str(folder))
        if any(shard.max(initial=0) >= vocabulary or shard.min(initial=0) < 0 for shard in self._shards):
            raise InputError(f"the data folder is damaged: a token is outside the vocabulary of {vocabulary}", str(folder))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data folder whose files were checked against its manifest. sha256: of the manifest, which contains all other hashes."""

    folder: Path
    manifest: Manifest
    sha256: str
    tokenizer: Tokenizer
    splits: dict[str, Split]

    @classmethod
    def open(cls, folder: str | Path) -> Dataset:
        """Open and check a data folder; InputError names the file that is missing, truncated or damaged."""
        folder = Path(folder)
        file = folder / MANIFEST
        if not file.is_file():
            what = "not a data folder: it has no manifest.json" if folder.is_dir() else "no such data folder"
            hint = "`freetf prepare` and `freetf gen-synthetic` make data folders; name another one with --data DIR, or --set data.dir=DIR"
            raise InputError(what, str(folder.absolute()), hint)
        if file.stat().st_size > LARGEST_MANIFEST:
            raise InputError("the manifest is too large", str(file))
        content = file.read_bytes()
        manifest = parse_manifest(content, file)
        _check_files(folder, manifest)
        tokenizer, described = tokenizers.load(folder / tokenizers.FILE), manifest.tokenizer
        if (tokenizer.vocab_size, tokenizer.separator) != (described.vocabulary, described.separator):
            raise InputError("the tokenizer is not the one that the manifest describes", str(folder / tokenizers.FILE))
        splits = {name: Split(folder / name, facts, tokenizer) for name, facts in manifest.splits.items()}
        return cls(folder, manifest, hashlib.sha256(content).hexdigest(), tokenizer, splits)

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise InputError(f"the data has no split '{name}'", str(self.folder), nearest(name, self.splits))
        return self.splits[name]


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Check size and hash of every file. Links inside the folder are refused, as they can lead out of it; the folder itself can be one."""
    for name, split in manifest.splits.items():
        _refuse_link(folder / name)
        for file, facts in split.files.items():
            _check_file(folder / name / file, facts.sha256, facts.bytes)
        for foreign in split.foreign:
            _check_file(Path(foreign.path), foreign.sha256, foreign.bytes)
    _check_file(folder / tokenizers.FILE, manifest.tokenizer.sha256)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise InputError("a link instead of a file of the data folder", str(path))


def _check_file(path: Path, sha256: str, size: int | None = None) -> None:
    _refuse_link(path)
    if not path.is_file():
        raise InputError("the data folder is damaged: a file is missing", str(path))
    actual = path.stat().st_size
    if size is not None and actual != size:
        how = f"truncated: {actual} of {size} bytes" if actual < size else f"damaged: {actual} bytes, not {size}"
        raise InputError(f"the data folder is damaged: a file is {how}", str(path))
    if sha256_of(path) != sha256:
        raise InputError("the data folder is damaged: the SHA-256 of a file is not the manifest's", str(path))


def _foreign_shards(facts: SplitFacts, separator: int | None) -> list[NDArray[Any]]:
    """The stream in files of other programs, with the first and the last separator added if the files lack them."""
    edge = np.array([separator or 0], np.int64)
    for file in facts.foreign:
        if any(offset + count * np.dtype(file.type).itemsize > file.bytes for offset, count in file.parts):
            raise InputError("the data folder is damaged: the manifest names tokens beyond the end of a file", file.path)
    runs = [run for file in facts.foreign for run in map_parts(Path(file.path), file.type, file.parts)]
    return [edge] * facts.edges[0] + runs + [edge] * facts.edges[1]


def _map(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    if path.stat().st_size % kind.itemsize:
        raise InputError("the data folder is damaged: the size of a file is not a whole number of items", str(path))
    return np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)
