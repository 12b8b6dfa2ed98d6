"""The one seam through which files are made to survive a power cut, and a process that is killed.

Content is flushed before its name is; a name is changed by one rename, and the folder flushed after it. What a kill leaves behind has
a name that begins with a dot and ends in `.tmp`.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

SMALL = 10_000_000  # bytes, at most: of a recipe, a manifest, a state, a header, a line of a record


def write_durably(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it into place."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # x: never through a link that has the name
            file.write(content.encode() if isinstance(content, str) else content)
        flush_file(temporary)
        move(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_small(path: Path) -> bytes:
    """A file that is never large; OSError where it is, before it is read."""
    with path.open("rb") as file:
        content = file.read(SMALL + 1)
    if len(content) > SMALL:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def flush_file(path: Path) -> None:
    """fsync a file that was written and closed."""
    _flush(path)


def flush_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
    _flush(folder)


def move(source: Path, target: Path) -> None:
    """Give a flushed file or folder its name, durably. A file takes the place of one that has it, a folder of an empty one."""
    source.replace(target)
    flush_folder(target.parent)


def is_left_over(path: Path) -> bool:
    """Whether it is what a killed process left of its writing."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def sweep(folder: Path) -> None:
    """Remove what a killed process left of its writing in a folder."""
    for left in filter(is_left_over, folder.iterdir() if folder.is_dir() else ()):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
