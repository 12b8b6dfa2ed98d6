"""One process trains into a run folder. The lock is the kernel's: a process that is killed holds it no longer."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from freetf_cli.errors import FreetfError

LOCK, HOLDER = ".lock", ".lock.json"


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """Have a run folder to oneself while the block runs; made if it is not there, and gone again if nothing came into it.

    Raises FreetfError, which names the holder, if another process has it. Whoever only reads a run does not ask.
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
        with (run / HOLDER).open("x", encoding="utf-8") as file:  # x: never through a link that has the name
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        yield
    finally:
        (run / HOLDER).unlink(missing_ok=True)
        if made and {path.name for path in run.iterdir()} <= {LOCK}:
            (run / LOCK).unlink(missing_ok=True)
            _remove_empty(made)
        lock.release()


def _remove_empty(folders: Sequence[Path]) -> None:
    """Folders, the innermost first, as far as nobody has put anything into them."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _holder(run: Path) -> str:
    try:
        found = json.loads((run / HOLDER).read_text(encoding="utf-8"))
        return f"process {int(found['pid'])} on {str(found['host'])[:100]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
