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
from typing import IO, Any, NamedTuple

from freetf_cli.errors import InputError, nearest

CHUNK = 1 << 20  # bytes read at a time
UNPACKED = 64 << 20  # bytes that any archive may unpack to
RATIO = 100  # … or this many times its own size: text compresses to a tenth, a decompression bomb to a thousandth
ABOUT = ("readme", "license", "licence", "copying", "notice", "authors", "changelog")  # files that are not data, if the others have labels
JSONL = (".jsonl", ".ndjson")
UNSUPPORTED = (".tar", ".tgz", ".tbz2", ".tar.gz", ".tar.bz2", ".7z", ".xz", ".zst", ".rar")
STDIN = "-"

Note = Callable[[str], None]


@dataclass(frozen=True)
class Document:
    """A text, its source (relative to the path the user gave), and the name of the folder that labels it, if any."""

    text: str
    source: str
    label: str | None = None


class _File(NamedTuple):
    """An open file. name: the source of its documents; place: its location for errors; size: in bytes, before it is unpacked."""

    stream: IO[bytes] | _Capped
    name: str
    place: str
    label: str | None = None
    size: int = 0


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
    for path in map(str, paths):
        found = False
        for file in _files(path, field, note):
            with _reading(file.place):
                for document in _documents(file, field, document_separator, note):
                    found = True
                    yield document
        if not found:
            raise InputError("the input is empty: it has no text", "standard input" if path == STDIN else path)


def _files(path: str, field: str | None, note: Note) -> Iterator[_File]:
    """Standard input, a file, the members of an archive, or every file below a folder that is not hidden."""
    file = Path(path)
    name = file.resolve().name
    if path == STDIN:
        yield _File(sys.stdin.buffer, f"stdin{JSONL[0]}" if field else "stdin", "standard input")
    elif file.is_dir():
        members = [member.relative_to(file) for member in file.rglob("*") if member.is_file()]
        visible = [member.as_posix() for member in members if not any(part.startswith(".") for part in member.parts)]
        for member, label in _labelled(visible, name, note):
            yield from _opened(file / member, f"{name}/{member}", label, note)
    elif file.exists():
        yield from _opened(file, name, None, note)
    else:
        raise InputError("no such file or folder", path)


def _opened(path: Path, name: str, label: str | None, note: Note) -> Iterator[_File]:
    with _reading(str(path)):
        if path.suffix.lower() != ".zip":
            with path.open("rb") as stream:
                yield _File(stream, name, str(path), label, path.stat().st_size)
            return
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            for member, member_label in _labelled(members, name, note):
                place, size = f"{path}, member {member}", members[member].compress_size
                with _reading(place), archive.open(members[member]) as stream:
                    yield _File(_Capped(stream, place, size), f"{name}/{member}", place, member_label, size)


def _labelled(members: Iterable[str], where: str, note: Note) -> Iterator[tuple[str, str | None]]:
    """Sorted members with their labels. Files such as a README beside labelled documents are skipped, with a note."""
    paths = sorted(map(PurePosixPath, members))
    siblings: dict[PurePosixPath, set[str]] = defaultdict(set)
    for path in paths:
        siblings[path.parent.parent].add(path.parent.name)
    labels = [path.parent.name if path.parent.name and len(siblings[path.parent.parent] - {""}) > 1 else None for path in paths]
    for path, label in zip(paths, labels, strict=True):
        if any(labels) and label is None and path.name.lower().startswith(ABOUT):
            note(f"{where}/{path} skipped: it describes the data")
        else:
            yield str(path), label


def _documents(file: _File, field: str | None, document_separator: str | None, note: Note) -> Iterator[Document]:
    """The documents of one file."""
    stream, name, place, label, size = file
    kind = name.lower()
    if kind.endswith(UNSUPPORTED):
        raise InputError("this kind of archive is not supported", place, "unpack it and give the folder")
    if kind.endswith((".gz", ".bz2")):
        unpack = gzip.open if kind.endswith(".gz") else bz2.open
        stream, kind = _Capped(unpack(stream, "rb"), place, size), kind.rpartition(".")[0]
    chunks = _decoded(stream, place)
    if kind.endswith(JSONL) or field is not None:
        for number, line in enumerate(_cut(chunks, "\n"), start=1):
            if line.strip() and (text := _json_text(line, f"{place}, line {number}", field)):
                yield Document(text, f"{name}:{number}", label)
        return
    if document_separator is None:
        texts = iter(["".join(chunks)])
    else:  # next to a separator, line ends are layout, not text
        texts = (piece.strip("\r\n") for piece in _cut(chunks, document_separator))
    empty = True
    for text in filter(None, texts):
        empty = False
        yield Document(text, name, label)
    if empty:
        note(f"{name} skipped: it is empty")


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


def _decoded(stream: IO[bytes] | _Capped, place: str) -> Iterator[str]:
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
    """A stream from an archive that raises InputError once it has unpacked to too much. size: of the archive in bytes."""

    def __init__(self, inner: IO[bytes] | io.BufferedIOBase, place: str, size: int) -> None:
        self._inner, self._place, self._left = inner, place, max(UNPACKED, RATIO * size)

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
