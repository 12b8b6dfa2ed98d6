"""Make a data folder from token files of other programs, without copying them.

    refer_to_tokens(["shards/"], Path("data/web"), kind="datatrove", tokenizer="tokenizer.json")

Files named after splits (train.bin and val.bin, or the folders of a data set) become those splits. Otherwise the documents are divided in
order: by default the first 90 % are train. If the tokenizer has a separator, a document is the tokens between two separators, whether a
file has one before or after each document. If it has none, the index of the file names the documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from freetf_cli.data.foreign import SCANNED, Places, TokenFile, find_files, open_tokens, scan
from freetf_cli.data.manifest import ForeignFile, Origin
from freetf_cli.data.prepare import Advance, choose_tokenizer, summary
from freetf_cli.data.splits import DEFAULT_SPLIT, Shares
from freetf_cli.data.tokenizer import SEPARATOR, Tokenizer
from freetf_cli.data.writer import DatasetWriter, refuse_existing
from freetf_cli.durable import sha256_of
from freetf_cli.errors import InputError
from freetf_cli.records import DatasetSummary

SPLIT_NAMES = ("train", "val", "valid", "validation", "test")  # files of these names are splits, besides those that --split names


def refer_to_tokens(
    paths: Sequence[str],
    out: Path,
    *,
    kind: str,
    tokenizer: str,
    separator_token: str | None = None,
    split: Shares = DEFAULT_SPLIT,
    column: str | None = None,
    progress: Advance = lambda *said: None,
) -> DatasetSummary:
    """Write a data folder that refers to token files by their paths and hashes.

    tokenizer: the tokenizer.json that made them. InputError if a token is outside its vocabulary, or a file is damaged.
    """
    refuse_existing(out)
    found = find_files(paths, kind)
    chosen = choose_tokenizer(tokenizer, separator_token)
    notes = [f"{tokenizer}: {what}" for what in chosen.notes()]
    with DatasetWriter(out, chosen, Origin(kind="text", seed=0)) as writer:
        streams = {}
        for name, group in _by_split(found, split).items():
            files = []
            for path in group:
                files.append(_Scanned.open(path, kind, chosen, column or "input_ids"))
                progress(1)
            streams[name] = _Stream.of(files, chosen)
        for name, stream, first, last in _divided(streams, split):
            writer.refer(name, *stream.documents(first, last, chosen))
    notes += [note for stream in streams.values() for note in stream.notes]
    return summary(writer, notes)


def _by_split(files: list[Path], shares: Shares) -> dict[str, list[Path]]:
    """The files by split, if every file is named after a split and more than one split occurs; otherwise all files, under an empty name."""
    names = [next((name for name in (file.stem, file.parent.name) if name in (*shares, *SPLIT_NAMES)), "") for file in files]
    if "" in names or len(set(names)) == 1:
        return {"": files}
    return {name: [file for file, its in zip(files, names, strict=True) if its == name] for name in dict.fromkeys(names)}


@dataclass(frozen=True, eq=False)
class _Scanned:
    """A token file, its hash, and the positions of the separator in it."""

    file: TokenFile
    sha256: str
    separators: Places

    @classmethod
    def open(cls, path: Path, kind: str, tokenizer: Tokenizer, column: str) -> _Scanned:
        file = open_tokens(path, kind, tokenizer.vocab_size, column)
        return cls(file, sha256_of(file.path), scan(file, tokenizer.vocab_size, tokenizer.separator))


@dataclass(frozen=True, eq=False)
class _Stream:
    """The tokens of several files as one stream, as in a data folder: with a separator before each document and after the last.

    bounds: where each document begins and the last one ends, [documents + 1]; edges: whether the first and the last separator are missing
    from the files. Bounds are counted as if a missing separator were there.
    """

    files: list[_Scanned]
    bounds: Places
    edges: tuple[bool, bool]
    notes: list[str]

    @classmethod
    def of(cls, files: list[_Scanned], tokenizer: Tokenizer) -> _Stream:
        begins = [0, *itertools.accumulate(one.file.tokens for one in files)]
        tokens = begins[-1]
        where = str(files[0].file.path)
        if not tokens:
            raise InputError("there are no tokens", where)
        known = [np.array([one.file.tokens]) if one.file.ends is None else one.file.ends for one in files]
        ends = np.concatenate([end + begin for end, begin in zip(known, begins, strict=False)])
        if tokenizer.separator is None:
            return cls(files, np.append(0, ends), (False, False), [])
        places = np.concatenate([one.separators + begin for one, begin in zip(files, begins, strict=False)])
        if not len(places):
            hint = "write them with one (Megatron: --append-eod), or name the token that ends documents: --separator-token TOKEN"
            raise InputError(f"the tokens have no separator, {SEPARATOR} ({tokenizer.separator})", where, hint)
        edges = bool(places[0] != 0), bool(places[-1] != tokens - 1)
        bounds = np.concatenate([[0] * edges[0], places + edges[0], [tokens + edges[0]] * edges[1]]).astype(np.int64)
        notes = []
        if all(one.file.ends is not None for one in files) and len(ends) != len(bounds) - 1:
            notes.append(f"{where}: the separator makes {len(bounds) - 1:,} documents, the index names {len(ends):,}")
        return cls(files, bounds, edges, notes)

    def documents(self, first: int, last: int, tokenizer: Tokenizer) -> tuple[list[ForeignFile], Places, tuple[bool, bool], int]:
        """Documents first … last − 1: their files, their offsets, which edge separators are missing, and the bytes of their text."""
        bounds = self.bounds[first : last + 1]
        closing = 0 if tokenizer.separator is None else 1  # the separator after a document is the one before the next
        start, stop = int(bounds[0]) - self.edges[0], int(bounds[-1]) + closing - self.edges[0]
        edges = start < 0, self.edges[1] and last == len(self.bounds) - 1
        files, begin, size = [], 0, 0.0
        for one in self.files:
            if parts := one.file.clip(max(start, 0) - begin, stop - begin):
                path = one.file.path
                about = {
                    "path": str(path),
                    "bytes": path.stat().st_size,
                    "sha256": one.sha256,
                    "type": one.file.type,
                    "parts": [*map(list, parts)],
                }
                files.append(ForeignFile.model_validate(about))
                size += sum(float(tokenizer.byte_counts[piece].sum()) for piece in _pieces(TokenFile(path, one.file.type, parts, None)))
            begin += one.file.tokens
        return files, bounds - bounds[0], edges, round(size)


def _pieces(file: TokenFile) -> Iterator[np.ndarray]:
    for array in file.arrays():
        yield from (array[start : start + SCANNED] for start in range(0, len(array), SCANNED))


def _divided(streams: dict[str, _Stream], shares: Shares) -> Iterator[tuple[str, _Stream, int, int]]:
    """For each split: its name, its stream, and its range of documents there (first, end)."""
    for name, stream in streams.items():
        count, upto, first = len(stream.bounds) - 1, Fraction(0), 0
        for part, share in {name: 1}.items() if name else shares.items():
            upto += Fraction(str(share))
            last = round(count * upto)
            if last <= first:
                what = f"too few documents for every split: {count}"
                raise InputError(what, str(stream.files[0].file.path), "--split train=1 makes one split of all")
            yield part, stream, first, last
            first = last
