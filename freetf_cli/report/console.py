"""Where text goes: results to stdout, everything said about them to stderr.

Consoles are made at call time from `sys.stdout` and `sys.stderr`, so that a caller who replaces those sees the output.
A stream that is no terminal gets no colour, no animation and no wrapping: a cut or folded line in a pipe is lost data.
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

PIPE_WIDTH = 100_000  # wider than any line that we print
PAGE_WIDTH = 100  # for plots and boxes whose width is ours to choose, where there is no terminal


class Verbosity(IntEnum):
    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


_verbosity = Verbosity.NORMAL


def set_verbosity(quiet: bool, verbose: bool) -> None:
    """What the user asked for with --quiet and -v; quiet wins."""
    global _verbosity
    _verbosity = Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL


def verbosity() -> Verbosity:
    return _verbosity


def out() -> Console:
    """The console for results."""
    return _console(sys.stdout)


def err() -> Console:
    """The console for progress, warnings and hints."""
    return _console(sys.stderr)


def error(text: str) -> None:
    """Why the command failed; shown always."""
    _say("error: ", "bold red", text)


def warn(text: str) -> None:
    """Something the user should know; shown even with --quiet."""
    _say("warning: ", "yellow", text)


def hint(text: str) -> None:
    """What to do next; not with --quiet."""
    if _verbosity > Verbosity.QUIET:
        _say("hint: ", "cyan", text)


def note(text: str) -> None:
    """What is going on; not with --quiet."""
    if _verbosity > Verbosity.QUIET:
        _say("", "", text)


def detail(text: str) -> None:
    """What is going on, minutely; only with -v."""
    if _verbosity is Verbosity.VERBOSE:
        _say("", "dim", text)


def page_width(console: Console) -> int:
    """The width to lay out plots and boxes for: the terminal's, or in a pipe COLUMNS, else PAGE_WIDTH."""
    if console.width < PIPE_WIDTH:
        return console.width
    return _environment_columns() or PAGE_WIDTH


# A model may generate anything. C0 and C1 controls drive a terminal, bidirectional overrides reorder a line, line separators
# break it, a lone surrogate cannot be encoded at all, and the noncharacters at the end of the plane are not allowed in XML.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def visible(text: str) -> str:
    """The text with control characters (all but newline and tab) as escapes that can be read: `\\x1b`."""
    return _CONTROLS.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def _say(label: str, style: str, text: str) -> None:
    line = Text("freetf: ", style="dim")
    line.append(label, style=style)
    line.append(visible(text), style="not dim")
    with suppress(OSError):  # what nobody can read is no reason to fail
        err().print(line, soft_wrap=True)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave a closed pipe to the caller, who has an exit code for it: rich itself would exit with 1."""
        raise BrokenPipeError


def _console(stream: IO[str]) -> Console:
    terminal = stream.isatty()
    return _Console(
        file=cast(IO[str], _Carried(stream)),
        force_terminal=terminal,
        force_jupyter=False,
        width=_terminal_width() if terminal else PIPE_WIDTH,
        color_system="auto" if terminal else None,
        markup=False,
        highlight=False,
        emoji=False,
    )


def _terminal_width() -> int | None:
    """None lets rich follow the terminal as it is resized; a COLUMNS that makes no sense must not reach rich."""
    return None if "COLUMNS" not in os.environ else _environment_columns() or 80


def _environment_columns() -> int | None:
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) > 0 else None


class _Carried:
    """A stream on which every character arrives: those that its encoding lacks become look-alikes or escapes."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return self._stream.write(text.encode(encoding, "freetf.lookalike").decode(encoding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _braille_lookalikes() -> dict[str, str]:
    """Plots are drawn in braille, two dots by four a character; in ASCII the upper or the lower half stays visible."""
    upper, lower = 0b00011011, 0b11100100
    table = {}
    for dots in range(1, 256):
        table[chr(0x2800 + dots)] = ":" if dots & upper and dots & lower else "'" if dots & upper else "."
    return {**table, "\u2800": " "}


# One character for one where there is one, so that columns stay aligned.
_LOOKALIKES = {
    **dict(zip("▁▂▃▄▅▆▇█", "_.-~=+*#", strict=True)),
    **dict(zip("░▒▓┈", ".:*:", strict=True)),
    **dict(zip("κ×·–→✓✗│┤└─", "kx-->+x||+-", strict=True)),
    **dict(zip("−≈≤≥±‖", ("-", "~", "<=", ">=", "+/-", "||"), strict=True)),
    "∞": "inf",
    "…": "...",
    **_braille_lookalikes(),
}


def _lookalike(fault: UnicodeError) -> tuple[str, int]:
    if not isinstance(fault, UnicodeEncodeError):
        raise fault
    missing = fault.object[fault.start : fault.end]
    plain = (_LOOKALIKES.get(char) or char.encode("unicode_escape").decode("ascii") for char in missing)
    return "".join(plain), fault.end


codecs.register_error("freetf.lookalike", _lookalike)
