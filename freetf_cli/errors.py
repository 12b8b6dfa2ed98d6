"""The errors that users see, and the exit codes.

An error says WHAT is wrong, WHERE (file, key, line), and what to do about it (HINT). Library code raises these errors; only
`cli.app` turns them into a line on stderr and an exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """All exit codes of `freetf`."""

    OK = 0
    FAILED = 1  # failed while running
    USAGE = 2  # bad usage, recipe or input; also a damaged file
    CHECK = 3  # a check did not hold: compare --fail-if, evaluate --min, reproduce
    STOPPED = 75  # stopped by a signal; run it again: train resumes from its checkpoint, prepare and gen-synthetic start over
    INTERRUPTED = 130  # SIGINT
    PIPE = 141  # the reader of the output went away


class FreetfError(Exception):
    """Something failed while running (exit 1)."""

    exit_code: int = ExitCode.FAILED

    def __init__(self, what: str, where: str = "", hint: str = "") -> None:
        super().__init__(what, where, hint)
        self.what, self.where, self.hint = what, where, hint

    def lines(self) -> list[str]:
        """One line per error: `WHAT, WHERE; HINT`."""
        line = self.what + (f", {self.where}" if self.where else "") + (f"; {self.hint}" if self.hint else "")
        return [" ".join(line.split())]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class InputError(FreetfError):
    """Bad usage, recipe or input, or a damaged file (exit 2)."""

    exit_code = ExitCode.USAGE


class InputErrors(InputError):
    """Several input errors, shown together (exit 2)."""

    def __init__(self, errors: Sequence[InputError]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = list(errors)

    def lines(self) -> list[str]:
        return [line for error in self.errors for line in error.lines()]


class CheckFailed(FreetfError):
    """A check that the user asked for did not hold (exit 3)."""

    exit_code = ExitCode.CHECK


class Stopped(FreetfError):
    """Stopped by SIGTERM, SIGUSR1 or SIGHUP, with all finished steps of a training run saved (exit 75)."""

    exit_code = ExitCode.STOPPED


class Interrupted(FreetfError):
    """Stopped by SIGINT, with all finished steps saved (exit 130)."""

    exit_code = ExitCode.INTERRUPTED


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is Python's, CUDA's or the CPU allocator's out-of-memory error. Does not import torch."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint with the most similar choice, `did you mean 'kappa'?`, or with all choices if none is similar."""
    names = sorted(choices)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"choose from: {', '.join(names)}" if names else ""
