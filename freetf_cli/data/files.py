"""Open the files that a user names: files, folders, archives and standard input.

    for file in open_files("../shared/data/movie_reviews", note):
        file.name, file.label           # "movie_reviews/movie_reviews.zip/movie_reviews/neg/cv000_29416.txt", "neg"

.gz, .bz2 and .zst files are unpacked, and the members of a .zip archive are files. All are read as streams: nothing is extracted to disk.
Whatever is not read is noted, or raises an InputError.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import struct
import sys
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from freetf_cli.data.hub import HUB
from freetf_cli.durable import is_left_over
from freetf_cli.errors import FreetfError, InputError

CHUNK = 1 << 20  # bytes read at a time
UNPACKED = 64 << 20  # bytes that any archive may unpack to
RATIO = 100  # … or this many times its own size: text compresses to a tenth, a decompression bomb to a thousandth
ABOUT = ("readme", "license", "licence", "copying", "notice", "authors", "changelog")  # files that are not data, if the others have labels
JSONL = (".jsonl", ".ndjson")
PARQUET = ".parquet"
PACKED = (".gz", ".bz2", ".zst")
UNSUPPORTED = (".tar", ".tgz", ".tbz2", ".tzst", ".tar.gz", ".tar.bz2", ".tar.zst", ".7z", ".xz", ".rar")
STDIN = "-"

Note = Callable[[str, str], None]


class Notes:
    """Lines that describe the input, one for each kind: `a.txt and 3 others: skipped, empty`. An instance is a `Note`."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, int]] = {}

    def __call__(self, name: str, what: str) -> None:
        first, others = self._found.get(what, (name, -1))
        self._found[what] = first, others + 1

    def lines(self) -> list[str]:
        counted = ((f"{name} and {n} other{'s' * (n > 1)}" if n else name, what) for what, (name, n) in self._found.items())
        return [f"{names}: {what}" for names, what in counted]


class File(NamedTuple):
    """An open file. chunks: its bytes; kind: its name in lower case without .gz; name: the source of its documents; place: for errors.

    path: where the file is on disk; None if it is compressed or in an archive.
    """

    chunks: Iterator[bytes]
    kind: str
    name: str
    place: str
    label: str | None = None
    path: Path | None = None


def open_files(path: str, note: Note) -> Iterator[File]:
    """Standard input, a data set of the Hub, a file, the members of an archive, or every file below a folder that is not hidden.

    note: called with a name and what was done with it, for everything that is skipped. InputError names the file.
    """
    file = Path(path)
    if path.startswith(HUB):
        yield File(iter(()), HUB, path.removeprefix(HUB), path)
    elif path == STDIN:
        yield File(_chunks(sys.stdin.buffer), "", "stdin", "standard input")
    elif file.is_dir():
        name = _text(file.name if file.name not in ("", "..") else file.resolve().name)
        for member, label, _ in _labelled(((member, None) for member in _walk(file, name, note)), name, note):
            yield from _opened(file / member, f"{name}/{_text(str(member))}", label, note)
    elif file.exists():
        yield from _opened(file, _text(file.name), None, note)
    else:
        raise InputError("no such file or folder", path)


def _walk(top: Path, name: str, note: Note) -> Iterator[PurePosixPath]:
    """The files below a folder, relative to it. Links are followed, but each folder is read once, so that links may form loops."""
    folders, links, seen = [top], list[Path](), set(top.resolve().parents)
    while folders or links:
        folder = (folders or links).pop()
        if (real := folder.resolve()) in seen:
            note(f"{name}/{_text(str(folder.relative_to(top)))}", "skipped, a link to a folder above it or one that is read already")
            continue
        seen.add(real)
        if what := _made_here(folder):
            if folder == top:
                raise InputError(f"{what}, not text", str(folder), "name the text that it was made from")
            note(f"{name}/{_text(str(folder.relative_to(top)))}", f"skipped, {what}")
            continue
        with reading(str(folder)):
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
        for entry in entries:
            path = folder / entry.name
            relative = PurePosixPath(path.relative_to(top).as_posix())
            with reading(str(path)):
                if _is_hidden(entry.name):
                    if not is_left_over(path):
                        note(f"{name}/{_text(str(relative))}", "skipped, hidden")
                elif entry.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                elif entry.is_file() or not path.exists():  # opening a broken link raises the error that names it
                    yield relative
                else:
                    note(f"{name}/{_text(str(relative))}", "skipped, not a regular file")


def _made_here(folder: Path) -> str:
    """What kind of folder of this program it is; empty for any other folder."""
    kinds = {"tokenizer.json": "a data folder", "recipe.toml": "a run", "state.json": "a checkpoint"}
    marks = [name for name in kinds if (folder / name).is_file()]
    has_manifest = any((folder / name).is_file() for name in ("manifest.json", "MANIFEST.sha256"))
    return f"{kinds[marks[-1]]} of freetf" if marks and has_manifest else ""


def _opened(path: Path, name: str, label: str | None, note: Note) -> Iterator[File]:
    """A file, or the members of a .zip archive. A link is of the kind of its own name, or else of that of its target."""
    known = (*JSONL, *PACKED, *UNSUPPORTED, PARQUET, ".zip")
    kind = next((each for each in (path.name.lower(), path.resolve().name.lower()) if each.endswith(known)), path.name.lower())
    with reading(str(path)):
        if not kind.endswith(".zip"):
            with path.open("rb") as stream:
                file = _unpacked(stream, kind, name, str(path), label, os.fstat(stream.fileno()).st_size)
                yield file._replace(path=path) if file.kind == kind else file
            return
        with zipfile.ZipFile(path) as archive:
            _check_count(path, len(archive.infolist()))
            for member, inner, info in _labelled(_members(archive, name, note), name, note):
                place, size = f"{path}, member {member}", info.compress_size
                if info.flag_bits & 1:
                    raise InputError("the archive is encrypted", place, "unpack it and give the folder")
                with reading(place), archive.open(info) as stream:
                    file = _unpacked(stream, member.name.lower(), f"{name}/{member}", place, inner or label, size)
                    yield file._replace(chunks=_capped(file.chunks, place, size))


def _check_count(path: Path, found: int) -> None:
    """Raise BadZipFile unless the archive's end record counts `found` members: a damaged length hides the members after it."""
    with path.open("rb") as stream:
        stream.seek(-min(path.stat().st_size, 22 + 0xFFFF), os.SEEK_END)  # the end record and the longest comment
        tail = stream.read()
    start = tail.rindex(b"PK\5\6") + 10
    if (named := int.from_bytes(tail[start : start + 2], "little")) not in (found & 0xFFFF, 0xFFFF):  # the latter: see the zip64 record
        raise zipfile.BadZipFile(f"it names {named} members, and {found} are found")


def _members(archive: zipfile.ZipFile, where: str, note: Note) -> Iterator[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """The files of an archive by their names; the same name may occur twice."""
    for info in archive.infolist():
        parts = [part for part in _member_name(info).split("/") if part not in ("", ".", "..")]
        path = PurePosixPath(*parts)
        if _member_name(info).endswith("/") and not info.file_size:
            continue  # a folder
        if stat.S_ISLNK(info.external_attr >> 16):
            note(f"{where}/{path}", "skipped, a link in an archive")
        elif any(map(_is_hidden, parts)):
            note(f"{where}/{path}", "skipped, hidden")
        else:
            yield path, info


def _member_name(info: zipfile.ZipInfo) -> str:
    """The name of a member. Old programs write backslashes on Windows, and UTF-8 without the flag that says so elsewhere."""
    name = info.filename
    if not info.flag_bits & 0x800:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    return name.replace("\\", "/")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _labelled(members: Iterable[tuple[PurePosixPath, Any]], where: str, note: Note) -> Iterator[tuple[PurePosixPath, str | None, Any]]:
    """Sorted members with their labels. Files such as a README beside labelled documents are skipped, with a note."""
    ordered = sorted(members, key=lambda member: member[0])
    siblings: dict[PurePosixPath, set[str]] = defaultdict(set)
    for path, _ in ordered:
        siblings[path.parent.parent].add(path.parent.name)
    labels = [path.parent.name if path.parent.name and len(siblings[path.parent.parent] - {""}) > 1 else None for path, _ in ordered]
    for (path, member), label in zip(ordered, labels, strict=True):
        if any(labels) and label is None and path.name.lower().startswith(ABOUT):
            note(f"{where}/{_text(str(path))}", "skipped, a description of the labelled data")
        else:
            yield path, None if label is None else _text(label), member


def _text(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 are written `\\xe9`."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def _unpacked(stream: IO[bytes], kind: str, name: str, place: str, label: str | None, size: int) -> File:
    """A file, unpacked if it is .gz, .bz2 or .zst. size: in bytes, before it is unpacked."""
    chunks = _chunks(stream)
    if kind.endswith(PACKED) and not kind.endswith(UNSUPPORTED):
        inner, _, packer = kind.rpartition(".")
        unpacked = {"gz": lambda: _chunks(gzip.GzipFile(fileobj=stream)), "bz2": lambda: _bunzip2(chunks), "zst": lambda: _unzstd(stream)}
        chunks, kind = _capped(unpacked[packer](), place, size), inner
    if kind.endswith((*UNSUPPORTED, *PACKED, ".zip")):
        raise InputError("this kind of archive, or an archive inside another, is not supported", place, "unpack it and give the folder")
    return File(chunks, kind, name, place, label)


def _chunks(stream: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    return iter(lambda: stream.read(CHUNK), b"")


def _bunzip2(packed: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress consecutive bzip2 streams. Python's reader stops silently where the second is damaged."""
    unpacker = bz2.BZ2Decompressor()
    for data in packed:
        while data or not (unpacker.needs_input or unpacker.eof):
            if unpacker.eof:
                unpacker = bz2.BZ2Decompressor()
            yield unpacker.decompress(data, CHUNK)
            data = unpacker.unused_data
    if not unpacker.eof:
        raise EOFError("it ends too early")


def _unzstd(stream: IO[bytes]) -> Iterator[bytes]:
    """Decompress consecutive Zstandard frames. Unlike the zstandard package, pyarrow raises an error if one is truncated."""
    arrow = import_pyarrow("Zstandard files (.zst)")
    packed = arrow.CompressedInputStream(arrow.PythonFile(stream, mode="r"), "zstd")
    return iter(lambda: packed.read(CHUNK), b"")


def import_pyarrow(what: str) -> Any:
    """The module pyarrow. FreetfError with the command that installs it, if it is missing; what: the files that need it."""
    try:
        import pyarrow
    except ImportError:
        raise FreetfError(f"{what} need pyarrow, which is not installed", hint="pip install 'freetf[data]'") from None
    return pyarrow


def _capped(chunks: Iterator[bytes], place: str, size: int) -> Iterator[bytes]:
    """The chunks of an archive of `size` bytes. Raises InputError once it has unpacked to too much."""
    left = max(UNPACKED, RATIO * size)
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise InputError(f"unpacks to more than {RATIO} times its size", place, "unpack it first if this is intended")
        yield chunk


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn errors of files and archives into input errors."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", place) from None
    except (EOFError, ValueError, RuntimeError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise InputError(f"the archive is damaged or of an unknown kind: {error}", place) from None
