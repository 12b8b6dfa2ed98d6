"""Read documents from files, folders, archives, JSONL and pipes, one at a time.

    for document in read_documents(["../shared/data/movie_reviews"]):
        document.label, document.source      # "neg", "movie_reviews/movie_reviews.zip/movie_reviews/neg/cv000_29416.txt"

A file is one document, or several if `document_separator` cuts it. So is each member of a .zip archive. .gz and .bz2 files are
unpacked; a .jsonl file has one document a line, under `field`; `-` is standard input. Text must be UTF-8 without NUL. A byte order mark
is dropped, line ends are kept. Archives are read as streams: nothing is extracted to disk.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import sys
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from freetf_cli.errors import InputError, nearest

CHUNK = 1 << 20  # bytes read at a time
UNPACKED = 64 << 20  # bytes that any archive may unpack to
RATIO = 100  # … or this many times its own size: text compresses to a tenth, a decompression bomb to a thousandth
ABOUT = ("readme", "license", "licence", "copying", "notice", "authors", "changelog")  # files that are not data, if the others have labels
JSONL = (".jsonl", ".ndjson")
TAR = (".tar", ".tgz", ".tbz2", ".tar.gz", ".tar.bz2", ".7z", ".xz", ".zst", ".rar")
STDIN = "-"

Note = Callable[[str], None]


@dataclass(frozen=True)
class Document:
    """A text, its source (relative to the path the user gave), and the name of the folder that labels it, if any."""

    text: str
    source: str
    label: str | None = None


@dataclass(frozen=True)
class _Reader:
    """Options for reading: the field of JSON records, the separator, and a callback for notes."""

    field: str | None
    document_separator: str | None
    note: Note


def read_documents(
    paths: Sequence[str | Path], *, field: str | None = None, document_separator: str | None = None, note: Note = lambda note: None
) -> Iterator[Document]:
    """Every document of the paths, in order; the contents of folders and archives sorted by name.

    A document's label is the name of its folder, if that folder has a sibling with documents (`pos/` beside `neg/`).
    note: called with a line for everything that is skipped. InputError names the file and the line or byte offset.
    """
    if not paths:
        raise InputError("no text is given", hint="give files, folders, archives, or - for standard input")
    if document_separator == "":
        raise InputError("the document separator is empty")
    reader = _Reader(field, document_separator, note)
    for path in paths:
        found = False
        for document in _read_path(str(path), reader):
            found = True
            yield document
        if not found:
            raise InputError("the input is empty: it has no text", "standard input" if str(path) == STDIN else str(path))


def _read_path(path: str, reader: _Reader) -> Iterator[Document]:
    if path == STDIN:
        name = f"stdin{JSONL[0]}" if reader.field else "stdin"
        yield from _read_stream(cast(IO[bytes], sys.stdin.buffer), name, "standard input", reader, None)
        return
    file = Path(path)
    name = file.resolve().name
    if file.is_dir():
        yield from _read_folder(file, name, reader)
    elif file.exists():
        yield from _read_file(file, name, reader)
    else:
        raise InputError("no such file or folder", path)


def _read_folder(folder: Path, name: str, reader: _Reader) -> Iterator[Document]:
    """Every file below a folder, except hidden ones."""
    files = [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()]
    for member, label in _labelled([f for f in files if not any(part.startswith(".") for part in f.split("/"))], name, reader):
        yield from _read_file(folder / member, f"{name}/{member}", reader, label)


def _labelled(members: Iterable[str], where: str, reader: _Reader) -> Iterator[tuple[str, str | None]]:
    """Sorted members with their labels. Files such as a README beside labelled documents are skipped, with a note."""
    paths = sorted(map(PurePosixPath, members))
    siblings: dict[PurePosixPath, set[str]] = defaultdict(set)
    for path in paths:
        siblings[path.parent.parent].add(path.parent.name)
    labels = [path.parent.name if path.parent.name and len(siblings[path.parent.parent] - {""}) > 1 else None for path in paths]
    for path, label in zip(paths, labels, strict=True):
        if any(labels) and label is None and path.name.lower().startswith(ABOUT):
            reader.note(f"{where}/{path} skipped: it describes the data")
        else:
            yield str(path), label


def _read_file(file: Path, name: str, reader: _Reader, label: str | None = None) -> Iterator[Document]:
    with _reading(str(file)):
        if file.suffix.lower() == ".zip":
            yield from _read_zip(file, name, reader)
            return
        with file.open("rb") as stream:
            yield from _read_stream(stream, name, str(file), reader, label, file.stat().st_size)


def _read_zip(file: Path, name: str, reader: _Reader) -> Iterator[Document]:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        for member, label in _labelled(members, name, reader):
            place, info = f"{file}, member {member}", members[member]
            with _reading(place), archive.open(info) as stream:
                packed = _Capped(stream, place, max(UNPACKED, RATIO * info.compress_size))
                yield from _read_stream(cast(IO[bytes], packed), f"{name}/{member}", place, reader, label, info.compress_size)


def _read_stream(stream: IO[bytes], name: str, place: str, reader: _Reader, label: str | None, size: int = 0) -> Iterator[Document]:
    """The documents of one file. name: their source; place: the location for errors; size: of the file in bytes."""
    lower = name.lower()
    if lower.endswith(TAR):
        raise InputError("this kind of archive is not supported", place, "unpack it and give the folder")
    for suffix, opener in ((".gz", gzip.open), (".bz2", bz2.open)):
        if lower.endswith(suffix):
            inner = cast(IO[bytes], opener(stream, "rb"))
            capped = cast(IO[bytes], _Capped(inner, place, max(UNPACKED, RATIO * size)))
            yield from _read_plain(capped, lower.removesuffix(suffix), name, place, reader, label)
            return
    yield from _read_plain(stream, lower, name, place, reader, label)


def _read_plain(stream: IO[bytes], kind: str, name: str, place: str, reader: _Reader, label: str | None) -> Iterator[Document]:
    chunks = _decoded(stream, place)
    if kind.endswith(JSONL) or reader.field is not None:
        for number, line in enumerate(_cut(chunks, "\n"), start=1):
            if line.strip() and (text := _json_text(line, f"{place}, line {number}", reader.field)):
                yield Document(text, f"{name}:{number}", label)
        return
    separator = reader.document_separator  # next to it, line ends are layout, not text
    pieces = ["".join(chunks)] if separator is None else (piece.strip("\r\n") for piece in _cut(chunks, separator))
    empty = True
    for text in filter(None, pieces):
        empty = False
        yield Document(text, name, label)
    if empty:
        reader.note(f"{name} skipped: it is empty")


def _cut(chunks: Iterator[str], mark: str) -> Iterator[str]:
    """The text between marks. Memory holds one piece and one chunk."""
    rest: list[str] = []
    tail = ""  # the end of what was read, where a mark may begin
    for chunk in chunks:
        head, *pieces = (tail + chunk).split(mark)
        for piece in pieces:
            yield "".join([*rest, head])
            rest, head = [], piece
        keep = len(head) - (len(mark) - 1)
        rest.append(head[: max(keep, 0)])
        tail = head[max(keep, 0) :]
    yield "".join([*rest, tail])


def _decoded(stream: IO[bytes], place: str) -> Iterator[str]:
    """The text of a byte stream in chunks. InputError for bytes that are not UTF-8 and for NUL."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    seen, lines, first = 0, 1, True
    while True:
        chunk = stream.read(CHUNK)
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n")
            raise InputError("not UTF-8 text", f"{place}, line {line}, byte {seen - waiting + error.start}", "convert it first") from None
        if (nul := chunk.find(b"\0")) >= 0:
            raise InputError("a NUL byte: this is not text", f"{place}, line {lines + chunk[:nul].count(bytes([10]))}, byte {seen + nul}")
        seen, lines = seen + len(chunk), lines + text.count("\n")
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        if text:
            yield text
        if not chunk:
            return


def _json_text(line: str, place: str, field: str | None) -> str:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError("not a JSON record", place) from None
    if not isinstance(record, dict):
        raise InputError("the record is not a JSON object", place)
    words = [name for name, value in record.items() if isinstance(value, str)]
    if field is None:
        raise InputError("which field of a record is the text?", place, f"give --field: {', '.join(words)}")
    if field not in record:
        raise InputError(f"the record has no field '{field}'", place, nearest(field, words))
    text = record[field]
    if not isinstance(text, str):
        raise InputError(f"field '{field}' is not text", place, nearest(field, words))
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise InputError(f"field '{field}' holds a NUL or half a surrogate pair", place)
    return text


class _Capped(io.RawIOBase):
    """A stream from an archive that raises InputError once it has unpacked to too much."""

    def __init__(self, inner: IO[bytes], place: str, most: int) -> None:
        self._inner, self._place, self._left = inner, place, most

    def read(self, size: int = -1) -> bytes:
        chunk = self._inner.read(CHUNK if size < 0 else size)
        self._left -= len(chunk)
        if self._left < 0:
            raise InputError(f"unpacks to more than {RATIO} times its size", self._place, "unpack it first if this is intended")
        return chunk


@contextmanager
def _reading(place: str) -> Iterator[None]:
    """Turn errors of files and archives into input errors."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"the archive is damaged or of an unknown kind: {error}", place) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", place) from None
