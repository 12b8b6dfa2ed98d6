"""The lock that lets one process train into a run folder. It is the kernel's lock, so a process that is killed releases it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from freetf_cli.errors import FreetfError

LOCK, HOLDER = ".lock", ".lock.json"


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder inside the `with` block. Processes that only read a run do not need it.

    The folder is created if it does not exist, and removed again if nothing was put into it. Raises FreetfError, which names the holder,
    if another process has the lock.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK, timeout=0.2)  # `is_locked` holds it for a moment
    try:
        lock.acquire()
    except Timeout:
        raise FreetfError(f"{_holder(run)} is training this run", str(run), "wait for it, or choose another -o") from None
    try:
        (run / HOLDER).unlink(missing_ok=True)
        with (run / HOLDER).open("x", encoding="utf-8") as file:  # x: never write through a link of that name
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        yield
    finally:
        (run / HOLDER).unlink(missing_ok=True)
        if made and {path.name for path in run.iterdir()} <= {LOCK}:
            (run / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # a parent that is not empty stays
                for folder in made:
                    folder.rmdir()
        lock.release()


def is_locked(run: Path) -> bool:
    """Whether a process trains this run. Nothing is written, so that it works in a folder that may only be read.

    It asks the kernel, also about a process on another host where the file system passes locks on, as NFS does by default.
    """
    try:
        file = os.open(run / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(file)
    return False


def _holder(run: Path) -> str:
    try:
        found = json.loads((run / HOLDER).read_text(encoding="utf-8"))
        return f"process {int(found['pid'])} on {str(found['host'])[:100]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
