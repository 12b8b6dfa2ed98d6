"""The lock that lets one process train into a run folder. It is the kernel's lock, so a process that is killed releases it."""

from __future__ import annotations

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
    lock = FileLock(run / LOCK, timeout=0)
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


def _holder(run: Path) -> str:
    try:
        found = json.loads((run / HOLDER).read_text(encoding="utf-8"))
        return f"process {int(found['pid'])} on {str(found['host'])[:100]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
