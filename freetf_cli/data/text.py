"""Read documents from files, folders, archives, JSONL and pipes, one at a time.

    for document in read_documents(["../shared/data/movie_reviews"]):
        document.label, document.source      # "neg", "movie_reviews/movie_reviews.zip/movie_reviews/neg/cv000_29416.txt"

A file (see `files`) is one document; a .jsonl file has one document a line, under `field`, and a .parquet file one a row, in the column
`field`. Without `field` that is `text`, if there is one. `document_separator` cuts each into several.
Text must be UTF-8 without NUL. A byte order mark is dropped, line ends are kept.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from freetf_cli.data.files import JSONL, PARQUET, STDIN, File, Note, open_files, reading
from freetf_cli.data.hub import FIELD, HUB, hub_texts
from freetf_cli.data.parquet import column_texts
from freetf_cli.errors import InputError, nearest

PLAIN = (".txt", ".text", ".md")  # text beside records in the same folder, unless they hold records themselves
TABLES = (".json", ".csv", ".tsv")
ARRAY = "write the elements of an array as records, one a line"


@dataclass(frozen=True)
class Document:
    """A text, its source (relative to the path the user gave), and the name of the folder that labels it, if any."""

    text: str
    source: str
    label: str | None = None


def read_documents(
    paths: Sequence[str | Path],
    *,
    field: str | None = None,
    label_field: str | None = None,
    document_separator: str | None = None,
    note: Note = lambda name, what: None,
) -> Iterator[Document]:
    """Every document of the paths, in order; the contents of folders and archives sorted by name.

    A document's label is the name of its folder, if that folder has a sibling with documents (`pos/` beside `neg/`); with `label_field`
    it is that field of its JSON record, a text or a whole number.
    note: called with a name and what happened, for everything that is skipped. InputError names the file and the line or byte offset.
    """
    if not paths:
        raise InputError("no text is given", hint="give files, folders, archives, or - for standard input")
    if document_separator == "":
        raise InputError("the document separator is empty")
    found = False
    for path in map(str, paths):
        files = 0
        for file in open_files(path, note):
            files += 1
            with reading(file.place):
                for document in _documents(file, field, label_field, document_separator, note):
                    found = True
                    yield document
        if not files:
            note(path, "skipped, it has no files to read")
    if not found:
        where = ", ".join("standard input" if str(path) == STDIN else str(path) for path in paths[:3])
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        raise InputError("the input is empty: it has no text", where + more, "hidden files are not read" if Path(paths[0]).is_dir() else "")


def _documents(file: File, field: str | None, label_field: str | None, separator: str | None, note: Note) -> Iterator[Document]:
    """The documents of one file."""
    source = None
    for source, chunks, label in _sources(file, field, label_field, note):
        pieces, empty = 0, True
        for piece in ["".join(chunks)] if separator is None else _cut(chunks, separator):
            pieces += 1
            text = piece if separator is None else piece.strip("\r\n")  # next to a separator, line ends are layout, not text
            if text:
                empty = False
                yield Document(text, source, label)
        if empty:
            note(source, "skipped, empty")
        elif separator is not None and pieces == 1:
            ends = r"; lines end with \r\n" if "\n" in separator and "\r\n" in piece else ""
            note(source, f"the document separator {separator!r} does not occur{ends}")
    if source is None:  # no record
        note(file.name, "skipped, empty")


def _sources(file: File, field: str | None, label_field: str | None, note: Note) -> Iterator[tuple[str, Iterable[str], str | None]]:
    """The source of a file, or of each record, with its text in chunks and its label."""
    is_table, chunks = file.kind == HUB or file.kind.endswith(PARQUET), _decoded(file.chunks, file.place)
    start = next(chunks, "") if field is not None and file.kind.endswith(PLAIN) else "{"
    is_json = file.kind.endswith(JSONL) or (field is not None and start.lstrip().startswith("{"))
    if label_field is not None and (is_table or not is_json):
        raise InputError("a label's field needs JSON records", file.place, "--label-field is for .jsonl; else folders label documents")
    if is_table:
        for number, text in hub_texts(file.place, field) if file.kind == HUB else column_texts(file, field):
            if "\0" in text:
                raise InputError("a NUL in the text", f"{file.place}, row {number}")
            yield f"{file.name}:{number}", [text], file.label
        return
    if not is_json:
        if field is not None:
            note(file.name, "read as text: --field is for JSON lines and Parquet files")
        elif file.kind.endswith(TABLES):
            note(file.name, "read as text, with its markup: records are read from JSON lines (any file with --field) and Parquet files")
        yield file.name, chain([start] if field is not None else [], chunks), file.label
        return
    chunks = chain([start] if file.kind.endswith(PLAIN) else [], chunks)
    for number, line in enumerate(_cut(chunks, "\n"), start=1):
        if line.strip():
            place = f"{file.place}, line {number}"
            text = _json_text(line, place, field)
            yield f"{file.name}:{number}", [text], file.label if label_field is None else _json_label(line, place, label_field)


def _cut(chunks: Iterable[str], mark: str) -> Iterator[str]:
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


def _decoded(chunks: Iterator[bytes], place: str) -> Iterator[str]:
    """The text of bytes in chunks. InputError for bytes that are not UTF-8 and for NUL."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    seen, lines, first = 0, 1, True
    for chunk in chain(filter(None, chunks), [b""]):
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


def _json_label(line: str, place: str, field: str) -> str:
    """The label of a record that `_json_text` accepts."""
    try:
        value: Any = json.loads(line)[field]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise InputError(f"the record has no field '{field}'", place) from None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value):
        raise InputError(f"field '{field}' is no label: not a text or a whole number", place)
    return str(value)


def _json_text(line: str, place: str, field: str | None) -> str:
    try:
        record: Any = json.loads(line, object_pairs_hook=tuple)  # a dictionary would hide that a field occurs twice
    except (ValueError, RecursionError):
        raise InputError("not a JSON record", place, ARRAY if line.lstrip().startswith("[") else "") from None
    if not isinstance(record, tuple):
        raise InputError("the record is not a JSON object", place, ARRAY if isinstance(record, list) else "")
    words = [name for name, value in record if isinstance(value, str)]
    if field is None and FIELD in words:
        field = FIELD
    if field is None:
        if not words:
            raise InputError("no field of the record is text", place)
        raise InputError("which field of a record is the text?", place, f"give --field: {', '.join(dict.fromkeys(words))}")
    values = [value for name, value in record if name == field]
    if not values:
        raise InputError(f"the record has no field '{field}'", place, nearest(field, words))
    if len(values) > 1:
        raise InputError(f"the record has the field '{field}' {len(values)} times", place)
    text = values[0]
    if not isinstance(text, str):
        raise InputError(f"field '{field}' is not text", place, nearest(field, words))
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise InputError(f"field '{field}' holds a NUL or half a surrogate pair", place)
    return text
