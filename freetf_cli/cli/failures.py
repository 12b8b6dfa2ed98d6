"""Turns every exception into a line on stderr and an exit code."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from freetf_cli.errors import ExitCode, FreetfError, InputError, InputErrors, Interrupted, is_out_of_memory, nearest
from freetf_cli.records import SCHEMA_VERSION


class PipeClosed(FreetfError):
    """The reader of the output went away, as with `| head` (exit 141, no message)."""

    exit_code = ExitCode.PIPE

    def lines(self) -> list[str]:
        return []


def prepare_streams() -> None:
    """Make the standard streams safe to use, even if the parent process closed them."""
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115 (open as long as the process)
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        # The next file that a command opens would get the number of the closed stream, and the output would be written into it.
        raise FreetfError("standard output is closed")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="freetf.escape")  # printing κ on an ASCII terminal must not fail


def _escape(fault: UnicodeError) -> tuple[str, int]:
    """Write characters that the encoding lacks as \\uXXXX, which is also valid in JSON."""
    if not isinstance(fault, UnicodeEncodeError):
        raise fault
    return json.dumps(fault.object[fault.start : fault.end])[1:-1], fault.end


codecs.register_error("freetf.escape", _escape)


def attempt(work: Callable[[], int | None], words: Sequence[str]) -> int:
    """Run a function, report what it raises, and return the exit code."""
    try:
        return work() or ExitCode.OK
    except typer.Exit as leave:
        return leave.exit_code
    except SystemExit as leave:  # of a shell's completion
        return int(leave.code or ExitCode.OK)
    except BaseException as error:
        if isinstance(error, OSError):
            _drop_stdout()
        failure = as_failure(error, words)
        _report(failure, error, words[: words.index("--")] if "--" in words else words)
        return failure.exit_code


def as_failure(error: BaseException, words: Sequence[str]) -> FreetfError:
    """Any exception as a FreetfError."""
    if isinstance(error, FreetfError):
        return error
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Interrupted("interrupted")
    if hasattr(error, "format_message"):  # not every release of Typer has a public base class for usage errors
        return _usage_failure(error)
    if isinstance(error, BrokenPipeError):
        return PipeClosed("broken pipe")
    if isinstance(error, OSError):
        return _system_failure(error, words)
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from "):  # Path.resolve, up to Python 3.12
        return InputError("the path is a loop of links", str(error).removeprefix("Symlink loop from ").strip("'"))
    if is_out_of_memory(error):
        return FreetfError("out of memory", hint="use a smaller train.batch, a larger train.grad_accum_steps, or a smaller --count")
    summary = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return FreetfError(f"internal error: {summary}", hint="run again with --debug for the traceback")


def _usage_failure(error: Any) -> InputError:
    """A Typer error in the form `no such option '--cuont'; did you mean '--count'?`."""
    message = re.split(r" \(Possible options:| Did you mean|, unable to parse", error.format_message())[0]
    message = re.sub("Value error, |Input (?=should be)", "", message).rstrip(".")
    context = getattr(error, "ctx", None)
    hint = f"see `{context.command_path} --help`" if context else "see `freetf --help`"
    if context and message.startswith("No such option"):
        option = error.option_name
        known = [name for parameter in context.command.get_params(context) for name in parameter.opts]
        near = nearest(option, known)
        message, hint = f"no such option '{option}'", near if near.startswith("did you mean") else hint
    elif context and (unknown := re.match("No such command '(.*)'", message)):
        hint = nearest(unknown[1], context.command.commands)
    return InputError(_lower(message), hint=hint)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _system_failure(error: OSError, words: Sequence[str]) -> FreetfError:
    """Exit 2 if the operating system refuses to read a path that the user named, or its length; else 1."""
    what = _lower(error.strerror or str(error) or type(error).__name__)
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
    if error.errno == errno.ENOSPC:
        return FreetfError(what, name, "free some space, or write elsewhere")
    outputs = ("-o", "--out", "--report", "--figure")
    inputs = [word for before, word in zip(["", *words], words, strict=False) if before not in outputs]
    return (InputError if (name and name in inputs) or error.errno == errno.ENAMETOOLONG else FreetfError)(what, name)


def _report(failure: FreetfError, error: BaseException, words: Sequence[str]) -> None:
    if "--debug" in words:
        traceback.print_exception(error)
    if "--json" in words and failure.lines():
        lines = [json.dumps(error_record(failure), ensure_ascii=False)]
    else:  # escape control characters: a file name must not control the terminal
        lines = [
            "freetf: error: " + re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", line) for line in failure.lines()
        ]
    with suppress(OSError, ValueError):  # stderr is closed
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()


def error_record(failure: FreetfError) -> dict[str, Any]:
    """The JSON form: `error` is the first error; `errors` lists all if there are several."""
    several = failure.errors if isinstance(failure, InputErrors) else [failure]
    records = [{"what": one.what, "where": one.where, "hint": one.hint, "exit_code": int(failure.exit_code)} for one in several]
    return {"schema_version": SCHEMA_VERSION, "error": records[0]} | ({"errors": records} if len(records) > 1 else {})


def _drop_stdout() -> None:
    """Discard what stdout still buffers, or the interpreter fails again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # stdout is closed, or captured in memory
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
