"""The two streams: results go to stdout; progress, warnings and hints to stderr.

Consoles are created at call time from `sys.stdout` and `sys.stderr`, so that a caller who replaces those sees the output.
A stream that is not a terminal gets no colour, no animation and no wrapping: a truncated line in a pipe is lost data.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
from contextlib import suppress
from enum import IntEnum
from typing import IO, Any, cast

from rich.console import Console
from rich.text import Text

PIPE_WIDTH = 100_000  # wider than any line
PAGE_WIDTH = 100  # of boxes and sparklines in a pipe


class Verbosity(IntEnum):
    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


_verbosity, _progress = Verbosity.NORMAL, True


def set_verbosity(quiet: bool, verbose: bool, progress: bool = True) -> None:
    """Set how much is said, from --quiet and -v; quiet wins. progress: False hides only the display of progress."""
    global _verbosity, _progress
    _verbosity = Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL
    _progress = progress


def shows_progress() -> bool:
    return _progress and _verbosity > Verbosity.QUIET


def out() -> Console:
    """The console for results."""
    return _console(sys.stdout)


def err() -> Console:
    """The console for progress, warnings and hints."""
    return _console(sys.stderr)


def warn(text: str) -> None:
    """Say something the user should know. Shown even with --quiet."""
    _say("warning: ", "yellow", text)


def hint(text: str) -> None:
    """Suggest what to do next. Not shown with --quiet."""
    if _verbosity > Verbosity.QUIET:
        _say("hint: ", "cyan", text)


def note(text: str) -> None:
    """Say what is going on. Not shown with --quiet."""
    if _verbosity > Verbosity.QUIET:
        _say("", "", text)


def detail(text: str) -> None:
    """Say in detail what is going on. Shown only with -v."""
    if _verbosity is Verbosity.VERBOSE:
        _say("", "dim", text)


def page_width(console: Console) -> int:
    """The width for boxes and sparklines: the terminal's; in a pipe COLUMNS, or PAGE_WIDTH without it."""
    return console.width if console.width < PIPE_WIDTH else _environment_columns() or PAGE_WIDTH


# A model may generate anything. C0 and C1 controls drive a terminal, bidirectional overrides reorder a line, line separators
# break it, a lone surrogate cannot be encoded, and the noncharacters at the end of the plane are not allowed in XML.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def visible(text: str) -> str:
    """The text with control characters (all but newline and tab) as escapes that can be read: `\\x1b`."""
    return _CONTROLS.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def _say(label: str, style: str, text: str) -> None:
    line = Text.assemble(("freetf: ", "dim"), (label, style), visible(text))
    with suppress(OSError):  # a message that nobody can read is no reason to fail
        err().print(line, soft_wrap=True)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave a closed pipe to the caller, which has an exit code for it; rich itself would exit with 1."""
        raise BrokenPipeError


def _console(stream: IO[str]) -> Console:
    terminal = stream.isatty()
    # None lets rich follow the terminal when it is resized; an invalid COLUMNS must not reach rich.
    columns = None if "COLUMNS" not in os.environ else _environment_columns() or 80
    return _Console(
        file=cast(IO[str], _Carried(stream)),
        force_terminal=terminal,
        force_interactive=None if terminal else False,
        force_jupyter=False,
        width=columns if terminal else PIPE_WIDTH,
        color_system="auto" if terminal else None,
        markup=False,
        highlight=False,
        emoji=False,
    )


def _environment_columns() -> int | None:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) > 0 else None


class _Carried:
    """A stream that replaces characters its encoding lacks by similar ones or by escapes."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return self._stream.write(text.encode(encoding, "freetf.lookalike").decode(encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


# One character for one where there is one, so that columns stay aligned.
_LOOKALIKES = {
    **dict(zip("▁▂▃▄▅▆▇█", "_.-~=+*#", strict=True)),
    **dict(zip("κ×·–→✓✗│┤└─", "kx-->+x||+-", strict=True)),
    **dict(zip("−≈≤≥±‖", ("-", "~", "<=", ">=", "+/-", "||"), strict=True)),
    "∞": "inf",
    "…": "...",
}


def _lookalike(fault: UnicodeError) -> tuple[str, int]:
    assert isinstance(fault, UnicodeEncodeError)
    plain = (_LOOKALIKES.get(char) or char.encode("unicode_escape").decode("ascii") for char in fault.object[fault.start : fault.end])
    return "".join(plain), fault.end


codecs.register_error("freetf.lookalike", _lookalike)
