"""Files that survive a power cut or a killed process. Every file that must survive is written through this module.

Content is flushed to the disk before its name: a file gets its name by one rename, and then the folder is flushed. What a killed process
leaves behind has a name that begins with a dot and ends in `.tmp`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from pathlib import Path

NOT_REGULAR = "it is a pipe, a device or a socket, not a regular file"
SMALL = 10_000_000  # bytes: size limit of recipes, manifests, states, headers and lines of records


def write_durably(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it into place."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # x: never write through a link of that name
            file.write(content.encode() if isinstance(content, str) else content)
        flush(temporary)
        move(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        name_path(error, path)
        raise


def name_path(error: BaseException, path: Path) -> None:
    """Raise an error of the operating system again with the path, if it names none: one of a write, of fsync, or inside safetensors."""
    found = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    number = int(found[1]) if found else error.errno if isinstance(error, OSError) and error.filename is None else None
    if number is not None:
        raise OSError(number, os.strerror(number), str(path)) from error


def read_small(path: Path) -> bytes:
    """The content of a file. Raises OSError if it has more than SMALL bytes, before it is read."""
    with path.open("rb") as file:
        content = file.read(SMALL + 1)
    if len(content) > SMALL:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """fsync a file that was written and closed, or a folder, so that renames in it survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move(source: Path, target: Path) -> None:
    """Rename a flushed file or folder durably. A file may replace a file or a link, and a folder an empty folder."""
    if target.exists() and not target.is_file() and not target.is_dir():
        raise OSError(errno.EEXIST, NOT_REGULAR, str(target))
    source.replace(target)
    flush(target.parent)


def is_left_over(path: Path) -> bool:
    """Whether a killed process left this file or folder while it was writing."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def sweep(folder: Path) -> None:
    """Remove what killed processes left in a folder."""
    for left in filter(is_left_over, folder.iterdir() if folder.is_dir() else ()):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
